/* tests/support/op.h - one call of `birkhoff op` (or transport) from a test: an input file made
 * from numbers, the program run as a user runs it, the output file read back.  Everything lives in
 * a directory that is removed at the end.  Any failure that is not asked for fails the test. */
#ifndef BK_TESTS_SUPPORT_OP_H
#define BK_TESTS_SUPPORT_OP_H

#include "tests/support/check.h"

#include "io/hdf5.h"

typedef struct bk_test_op {
    bk_arena *arena;
    char directory[64], in[96], out[96], err[96];
    bk_h5 *file;    /* the input while it is written */
    bk_h5 *results; /* of the last run that succeeded */
    const char
        *command; /* NULL: birkhoff op ARGUMENTS --in IN --out OUT; else COMMAND IN OUT ARGUMENTS */
    json_t *golden; /* the file of bk_test_op_tests, or NULL */
} bk_test_op;

/* For main: runs the tests with *o open and its golden file (NULL: none) read; their number that
 * failed. */
int bk_test_op_tests(bk_test_op *o, const char *golden, const struct CMUnitTest *tests,
                     size_t count);

/* Datasets of the input file: float64 numbers, int64 integers, an array of a golden file. */
void bk_test_op_reals(bk_test_op *o, const char *name, int dims, const int64_t *shape,
                      const double *values);
void bk_test_op_integers(bk_test_op *o, const char *name, int dims, const int64_t *shape,
                         const int64_t *values);
void bk_test_op_json(bk_test_op *o, const char *name, const json_t *array);
/* Uniform numbers in [least, most), the same ones for the same tag. */
void bk_test_op_random(bk_test_op *o, const char *name, int dims, const int64_t *shape,
                       uint64_t tag, double least, double most);
/* The next dataset starts a new input file. */
void bk_test_op_renew(bk_test_op *o);

/* Runs `birkhoff op ARGUMENTS --in IN --out OUT`, or o->command, on so many ranks; its exit status.
 */
int bk_test_op_status(bk_test_op *o, int ranks, const char *arguments);
/* The same, which must succeed. */
void bk_test_op_run(bk_test_op *o, int ranks, const char *arguments);
/* The same, which must be refused: with that status, one line of error that says the text, and no
 * output. */
void bk_test_op_refuses(bk_test_op *o, int status, int ranks, const char *says,
                        const char *arguments);
/* True when standard error of the last run holds the text. */
bool bk_test_op_says(bk_test_op *o, const char *text);
/* Lines of it that are errors of ours. */
int bk_test_op_error_lines(bk_test_op *o);

/* What the last run wrote: an array in double, its numbers, a root attribute. */
bk_tensor *bk_test_op_array(bk_test_op *o, const char *name);
double *bk_test_op_numbers(bk_test_op *o, const char *name);
double bk_test_op_attribute(bk_test_op *o, const char *name);
bool bk_test_op_has(bk_test_op *o, const char *name);
/* Relative error (check.h) of an array against a golden one. */
double bk_test_op_error(bk_test_op *o, const char *name, const json_t *reference, double floor);

/* Runs on one rank, then on `ranks` with `more` arguments: largest relative error over all
 * datasets; *same = all bits are equal. */
double bk_test_op_compare(bk_test_op *o, int ranks, const char *arguments, const char *more,
                          bool *same);

#endif
