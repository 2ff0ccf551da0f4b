/* io/teacher_file.h - the logits of a teacher for every row of a split, in one HDF5 file whose root
 * attribute `format` is "birkhoff-teacher".
 *
 *   /offsets  int64 [samples+1]      rows of sample i are offsets[i] .. offsets[i+1]-1; samples of
 *                                    other splits have none
 *   /logits   float32 [rows,V], or uint16 with attribute encoding = "bf16"     dense
 *   /index    uint16 or int32 [rows,k], /value float32 [rows,k]     or the k largest raw logits,
 *                                    largest first, equal ones in rising order of the class
 *   /lse      float32 [rows,temperatures]   with log sum exp(t/T) over all V classes for each T
 *   attributes of the root: teacher, data (digests), split, vocabulary, top_k, temperatures; length
 *   and max_length, by which samples were cut; digest (bk_dataset_digest); texts
 *   (bk_h5_set_texts) */
#ifndef BK_IO_TEACHER_FILE_H
#define BK_IO_TEACHER_FILE_H

#include "io/hdf5.h"

/* How rows of a teacher are stored, and sent. */
typedef struct bk_teacher_form {
    int64_t vocabulary;        /* V */
    int64_t top_k;             /* k; 0: dense */
    bool bf16;                 /* dense rows are rounded to bf16 */
    int64_t temperatures;      /* top-k only */
    const double *temperature; /* [temperatures] */
} bk_teacher_form;

/* R rows.  Dense: part 0 are logits, float or bf16 [R,V].  Top-k: int32 index[R,k], float
 * value[R,k], float lse[R,temperatures]. */
enum { BK_TEACHER_PARTS = 3 };
typedef struct bk_teacher_rows {
    void *part[BK_TEACHER_PARTS];
} bk_teacher_rows;

/* Whether rows that take at most `keep` bytes are those. */
bool bk_teacher_rows_fit(const bk_teacher_form *form, int64_t rows, size_t keep);
/* Bytes of a row of each part, 0 for those that the form lacks; returns their sum. */
size_t bk_teacher_row_bytes(const bk_teacher_form *form, size_t bytes[BK_TEACHER_PARTS]);
/* Uninitialised, on the arena. */
bk_teacher_rows bk_teacher_rows_new(bk_arena *arena, const bk_teacher_form *form, int64_t rows);
/* The rows from `first` on. */
bk_teacher_rows bk_teacher_rows_at(const bk_teacher_form *form, bk_teacher_rows rows,
                                   int64_t first);
/* to[0..count) = from[0..count) */
void bk_teacher_rows_copy(const bk_teacher_form *form, bk_teacher_rows to, bk_teacher_rows from,
                          int64_t count);
/* count rows of zeros */
void bk_teacher_rows_clear(const bk_teacher_form *form, bk_teacher_rows rows, int64_t count);
/* "dense fp32", "dense bf16", "the largest 64 at 2 temperatures" */
const char *bk_teacher_form_text(const bk_teacher_form *form, char text[64]);

typedef struct bk_teacher_file {
    const char *path;
    bk_teacher_form form;
    const char *teacher, *data, *split; /* digests of checkpoint and data set; name */
    const char *digest;                 /* of the content, of a file that is there; "": not said */
    int64_t length;                     /* of windows; 0: a row is a sample; -1: not said */
    int64_t max_length;                 /* samples were cut to it; 0: they were not; -1: not said */
    int64_t samples, rows;
    const int64_t *offsets; /* [samples+1] */
    bk_h5 *file;
    const char *part; /* the name while it is written, and a descriptor that locks it */
    int lock;
    bk_teacher_rows kept; /* all rows, where they are few; part 0 NULL: they are read */
} bk_teacher_file;

/* Not collective, here and below: one process writes.  Creates PATH.part, in place of one that was
 * left behind, from all members of `f` above `digest` and those from `length` to `offsets`; while
 * another job writes that name PATH.part.PID, and the last to commit wins.  Rows that take at most
 * `keep` bytes are gathered in memory, so that they may come in any order at no cost.  BK_USAGE
 * when it cannot be made. */
BK_CHECKED bk_status bk_teacher_file_create(bk_arena *arena, size_t keep, bk_teacher_file *f);
/* Rows first .. first+count-1, each of which comes once.  BK_FAULT. */
BK_CHECKED bk_status bk_teacher_file_write(bk_teacher_file *f, int64_t first, int64_t count,
                                           bk_teacher_rows rows);
/* What was gathered, the digest, close, sync, rename to PATH.  On failure PATH.part is removed. */
BK_CHECKED bk_status bk_teacher_file_commit(bk_teacher_file *f);
/* Closes and removes PATH.part. */
void bk_teacher_file_drop(bk_teacher_file *f);

/* Opens and checks everything but the numbers in the rows; offsets and, where they take at most
 * `keep` bytes, all rows lie on the arena.  BK_INPUT. */
BK_CHECKED bk_status bk_teacher_file_open(bk_arena *arena, const char *path, size_t keep,
                                          bk_teacher_file *out);
BK_CHECKED bk_status bk_teacher_file_read(const bk_teacher_file *f, int64_t first, int64_t count,
                                          bk_teacher_rows rows);
/* Of one that was opened. */
BK_CHECKED bk_status bk_teacher_file_close(bk_teacher_file *f);

#endif
