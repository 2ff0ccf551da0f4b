/* io/hdf5.h - the few things Birkhoff does with HDF5 files, with one lock around every call of the
 * library. Files: libver V110, Fletcher32 on chunked datasets, sec2 driver, no file locks, no
 * object times. Errors are BK_INPUT when reading and BK_FAULT when writing, with file, object and
 * reason in the text. */
#ifndef BK_IO_HDF5_H
#define BK_IO_HDF5_H

#include "core/arena.h"
#include "core/attributes.h"
#include "core/tensor.h"

typedef struct bk_h5 bk_h5;

/* After MPI_Init, main thread: sets HDF5_USE_FILE_LOCKING=FALSE unless set, silences the error
 * stack. */
void bk_h5_start(void);
const char *bk_h5_version(void);

BK_CHECKED bk_status bk_h5_create(bk_arena *arena, const char *path,
                                  bk_h5 **file); /* exclusive: fails if it exists */
BK_CHECKED bk_status bk_h5_open(bk_arena *arena, const char *path, bk_h5 **file); /* read-only */
/* The same where messages call the file `what` ("data set") and end in `remedy` ("make it with
 * birkhoff data").  Both are borrowed.  Missing, empty, of another format, truncated and damaged
 * files have messages of their own. */
BK_CHECKED bk_status bk_h5_open_as(bk_arena *arena, const char *path, const char *what,
                                   const char *remedy, bk_h5 **file);
/* Datasets created from now on are shuffled and deflated (0: not). */
void bk_h5_set_deflate(bk_h5 *file, int level);
/* Flush, close; sticky: returns the first error of any call on this file. */
BK_CHECKED bk_status bk_h5_close(bk_h5 *file);

/* Lets the system begin to write what stands in its cache of this file. */
void bk_h5_start_writing_back(bk_h5 *file);

bool bk_h5_exists(bk_h5 *file, const char *object);
/* Stored dtype and shape; real types are reported as BK_F32 or BK_F64, integers by width (i8 as U8,
 * i16 as U16). */
BK_CHECKED bk_status bk_h5_shape(bk_h5 *file, const char *dataset, bk_dtype *dtype, int *dims,
                                 int64_t shape[BK_MAX_DIMS]);
/* Names of the datasets and groups directly below `group`, NULL-ended, sorted, on the arena. */
BK_CHECKED bk_status bk_h5_list(bk_h5 *file, const char *group, bk_arena *arena, char ***names);

/* Paths ("/splits/train") of all datasets of the file, NULL-ended, sorted. */
BK_CHECKED bk_status bk_h5_walk(bk_h5 *file, bk_arena *arena, char ***paths);
BK_CHECKED bk_status bk_h5_make_group(bk_h5 *file, const char *group);

/* Writes a whole dataset (groups on the path are made). */
BK_CHECKED bk_status bk_h5_write(bk_h5 *file, const char *dataset, bk_dtype dtype, int dims,
                                 const int64_t *shape, const void *data);
/* Creates a dataset of `shape`, then writes or reads the 1-D or first-axis range [first,
 * first+count). */
BK_CHECKED bk_status bk_h5_create_dataset(bk_h5 *file, const char *dataset, bk_dtype dtype,
                                          int dims, const int64_t *shape);
BK_CHECKED bk_status bk_h5_write_rows(bk_h5 *file, const char *dataset, bk_dtype dtype,
                                      int64_t first, int64_t count, const void *data);
BK_CHECKED bk_status bk_h5_read_rows(bk_h5 *file, const char *dataset, bk_dtype dtype,
                                     int64_t first, int64_t count, void *data);
/* Reads a whole dataset as `dtype` (converted by the library) to the arena.  Sizes are checked
 * before allocation. */
BK_CHECKED bk_status bk_h5_read(bk_h5 *file, const char *dataset, bk_dtype dtype, bk_arena *arena,
                                bk_tensor **out);

/* A scalar string dataset, byte for byte. */
BK_CHECKED bk_status bk_h5_write_text(bk_h5 *file, const char *dataset, const char *text);
BK_CHECKED bk_status bk_h5_read_text(bk_h5 *file, const char *dataset, bk_arena *arena,
                                     char **text);

/* Attributes of any object ("/" = root).  count = 0: scalar. */
BK_CHECKED bk_status bk_h5_set_attribute(bk_h5 *file, const char *object, const char *name,
                                         bk_dtype dtype, int64_t count, const void *data);
BK_CHECKED bk_status bk_h5_set_attribute_text(bk_h5 *file, const char *object, const char *name,
                                              const char *text);
/* Each of `figures` as a scalar attribute of the root, int64 or double. */
BK_CHECKED bk_status bk_h5_set_figures(bk_h5 *file, const bk_attributes *figures);
/* Also true where damage leaves that open: reading the attribute then says so. */
bool bk_h5_has_attribute(bk_h5 *file, const char *object, const char *name);
BK_CHECKED bk_status bk_h5_attribute(bk_h5 *file, const char *object, const char *name,
                                     bk_dtype dtype, int64_t count, void *data);
/* Number of elements of an attribute (1 for a scalar). */
BK_CHECKED bk_status bk_h5_attribute_count(bk_h5 *file, const char *object, const char *name,
                                           int64_t *count);
/* The attribute `texts` of the root: name, 0 byte, text, 0 byte of each, as uint8; NULL texts are
 * left out, of another object than the root the name is "/object/name".  HDF5 keeps text attributes
 * in a heap without a checksum, and a damaged heap can crash the library; these lie in the
 * checksummed header, and reading believes them. */
BK_CHECKED bk_status bk_h5_set_texts(bk_h5 *file, size_t count, const char *const text[][2]);
/* The text of an attribute, as `texts` has it or else from the heap, without control characters
 * other than line ends. */
BK_CHECKED bk_status bk_h5_attribute_text(bk_h5 *file, const char *object, const char *name,
                                          bk_arena *arena, char **text);

/* Names of the attributes of an object, NULL-ended, sorted. */
BK_CHECKED bk_status bk_h5_attributes(bk_h5 *file, const char *object, bk_arena *arena,
                                      char ***names);

/* Root attributes every file of ours has: format, format_version [1,0], birkhoff_version, created
 * (UTC, ISO 8601). */
BK_CHECKED bk_status bk_h5_stamp(bk_h5 *file, const char *format);
/* BK_INPUT unless the file is of this format and of a major version we know, naming what was found.
 */
BK_CHECKED bk_status bk_h5_expect(bk_h5 *file, const char *format);
/* The major version alone. */
BK_CHECKED bk_status bk_h5_expect_version(bk_h5 *file);

#endif
