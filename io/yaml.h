/* io/yaml.h - YAML text to a tree of values (core/option.h).  libfyaml is the parser only. */
#ifndef BK_IO_YAML_H
#define BK_IO_YAML_H

#include "core/option.h"

/* `name` stands in messages ("runs/a.yaml").  A key given twice, a tab, an alias and other trouble
 * is BK_USAGE with file and line.  An empty document is an empty map. */
BK_CHECKED bk_status bk_yaml_parse(bk_arena *arena, const char *name, const char *text,
                                   size_t length, bk_value **out);
/* Reads the file first; missing or unreadable: BK_USAGE. */
BK_CHECKED bk_status bk_yaml_read(bk_arena *arena, const char *path, bk_value **out);

#endif
