/* tests/support/files.h - a directory of its own for a test, and small files in it. */
#ifndef BK_TESTS_SUPPORT_FILES_H
#define BK_TESTS_SUPPORT_FILES_H

#include "core/arena.h"

/* cmocka group set-up and tear-down: a fresh directory below TMPDIR, removed with all it holds. */
int bk_test_directory_make(void **state);
/* The same in memory where the system has a place for it: syncs cost nothing. */
int bk_test_directory_make_in_memory(void **state);
int bk_test_directory_remove(void **state);

/* "DIRECTORY/NAME"; names rotate through a few buffers.  Directories on the way are made. */
const char *bk_test_path(const char *format, ...) BK_PRINTF(1, 2);

/* Writes bytes to a path; the text form takes a C string. */
void bk_test_write(const char *path, const void *data, size_t bytes);
void bk_test_write_text(const char *path, const char *text);
/* The bytes of a file on the heap. */
char *bk_test_read(const char *path, size_t *bytes);
/* Flips one bit; cuts a file. */
void bk_test_flip(const char *path, size_t byte, int bit);
void bk_test_cut(const char *path, size_t bytes);
/* Copies the plain files of a directory to another, which is made. */
void bk_test_copy_directory(const char *from, const char *to);
void bk_test_remove_tree(const char *path);

#endif
