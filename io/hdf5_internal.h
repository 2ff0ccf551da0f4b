/* io/hdf5_internal.h - between the hdf5*.c files; nobody else includes it. */
#ifndef BK_IO_HDF5_INTERNAL_H
#define BK_IO_HDF5_INTERNAL_H

#include "io/hdf5.h"

#include <hdf5.h>

enum { BK_H5_TEXT = 1024 };

struct bk_h5 {
    hid_t id;
    const char *path, *name; /* name: last part of the path */
    const char *what;        /* "data set", "file": how messages call it */
    const char *remedy;      /* how to get a good one */
    bool writing;
    int deflate;
    bk_status status; /* first failure; a later success does not clear it */
    char text[BK_H5_TEXT];
};

/* One lock around every call of the library, which is not thread-safe. */
void bk_h5_lock(void);
void bk_h5_unlock(void);

/* The innermost message of the library's error stack. */
const char *bk_h5_reason(char text[BK_H5_TEXT]);

/* A call of the library failed (lock held): keeps and returns the failure with the library's
 * reason. `action`: "be read". */
bk_status bk_h5_failed(bk_h5 *file, const char *object, const char *action);
/* What the file holds is not what it should be. */
bk_status bk_h5_refuse(bk_h5 *file, const char *format, ...) BK_PRINTF(2, 3);

hid_t bk_h5_memory_type(bk_dtype dtype);
hid_t bk_h5_disk_type(bk_dtype dtype); /* little-endian */
/* The dtype of a stored type; false when it is neither a real nor an integer. */
bool bk_h5_stored_dtype(hid_t type, bk_dtype *dtype);

/* Makes the groups above (or, with `whole`, including) a path, without object times (lock held). */
bool bk_h5_make_groups(bk_h5 *file, const char *path, bool whole);

#endif
