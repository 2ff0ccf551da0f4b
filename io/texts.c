#include "io/texts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bk_status bk_texts_write(bk_h5 *file, const bk_text *list)
{
    char *texts = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&texts, &bytes);
    if (!stream)
        bk_fatal("out of memory: texts of a file");
    for (const bk_text *t = list; t->name; t++)
        if (t->text)
            fprintf(stream, "%s%c%s%c", t->name, 0, t->text, 0);
    fclose(stream);
    bk_status status = bk_h5_set_attribute(file, "/", "texts", BK_U8, (int64_t)bytes, texts);
    free(texts);
    return status;
}

static const char *find(const char *texts, const char *name)
{
    for (const char *at = texts; *at;) {
        const char *value = at + strlen(at) + 1;
        if (strcmp(at, name) == 0)
            return value;
        at = value + strlen(value) + 1;
    }
    return NULL;
}

bk_status bk_texts_read(bk_h5 *file, const char *format, bk_arena *arena, const char **texts)
{
    int64_t bytes;
    *texts = NULL;
    if (!bk_h5_has_attribute(file, "/", "texts"))
        return bk_h5_expect(file, format);
    BK_TRY(bk_h5_attribute_count(file, "/", "texts", &bytes));
    char *read = bk_arena_zalloc(arena, (size_t)bytes + 3);
    BK_TRY(bk_h5_attribute(file, "/", "texts", BK_U8, bytes, read));
    const char *found = find(read, "format");
    if (!found || strcmp(found, format) != 0)
        return bk_fail(BK_INPUT, "the file is of format \"%.60s\", not \"%s\": name another",
                       found ? found : "unknown", format);
    *texts = read;
    return bk_h5_expect_version(file);
}

bk_status bk_texts_find(bk_h5 *file, const char *texts, const char *name, const char *preset,
                        bk_arena *arena, const char **text)
{
    char *copy;
    const char *found = texts ? find(texts, name) : NULL;
    *text = preset;
    if (found) {
        copy = bk_arena_strdup(arena, found);
        bk_plain_lines(copy);
        *text = copy;
    } else if (!texts && bk_h5_has_attribute(file, "/", name)) {
        BK_TRY(bk_h5_attribute_text(file, "/", name, arena, &copy));
        *text = copy;
    }
    return BK_OK;
}
