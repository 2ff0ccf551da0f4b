/* io/texts.h - the short texts of a file where a checksum covers them.
 *
 * HDF5 keeps text attributes in a heap without a checksum, and a damaged heap can crash the
 * library: they are for people and other tools.  Reading believes the attribute `texts` of the root
 * instead: name, 0 byte, text, 0 byte of each as uint8, which lies in the checksummed header. */
#ifndef BK_IO_TEXTS_H
#define BK_IO_TEXTS_H

#include "io/hdf5.h"

typedef struct bk_text {
    const char *name, *text; /* text NULL: left out */
} bk_text;

/* Not collective, here and below.  Sets the attribute `texts`; the list ends in one without a name.
 */
BK_CHECKED bk_status bk_texts_write(bk_h5 *file, const bk_text *list);
/* *texts on the arena, for bk_texts_find; NULL: the file, of another maker, has text attributes
 * only.  BK_INPUT when it is of another format, or of a major version that is not known. */
BK_CHECKED bk_status bk_texts_read(bk_h5 *file, const char *format, bk_arena *arena,
                                   const char **texts);
/* *text of that name, made plain, on the arena: of `texts`, or where that is NULL the text
 * attribute of the root.  `preset` when there is none. */
BK_CHECKED bk_status bk_texts_find(bk_h5 *file, const char *texts, const char *name,
                                   const char *preset, bk_arena *arena, const char **text);

#endif
