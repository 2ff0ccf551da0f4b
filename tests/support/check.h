/* tests/support/check.h - what the tests share: tapes, comparisons, golden files. */
#ifndef BK_TESTS_SUPPORT_CHECK_H
#define BK_TESTS_SUPPORT_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>

#include "core/op.h"

/* A recording tape of its own arenas; bk_test_tape_free gives them back. */
bk_tape bk_test_tape(bk_dtype dtype, bk_lanes lanes);
void bk_test_tape_free(bk_tape *t);

/* A leaf with a gradient, filled by bk_fill(index, tag, lo, hi). */
bk_tensor *bk_test_fill(bk_tape *t, int dims, const int64_t *shape, uint64_t tag, double lo,
                        double hi);
/* A leaf with a gradient from a (nested) JSON array, in the tape's dtype. */
bk_tensor *bk_test_json(bk_tape *t, const json_t *array);

/* Element i of a real tensor's data or gradient. */
double bk_test_value(const bk_tensor *x, int64_t i);
double bk_test_grad(const bk_tensor *x, int64_t i);
/* Sets the gradient of a tensor by bk_fill, as the incoming gradient of a backward. */
void bk_test_seed_fill(bk_tape *t, bk_tensor *x, uint64_t tag, double lo, double hi);

/* tests/golden/NAME, parsed; released by the caller with json_decref. */
json_t *bk_test_golden(const char *name);
/* All numbers of a nested array, in order; *count of them; malloc'ed. */
double *bk_test_numbers(const json_t *array, int64_t *count);

/* max|x - ref| / max(floor, max|ref|), both over n numbers. */
double bk_test_error(int64_t n, const double *x, const double *reference, double floor);
/* The same with a tensor's data or gradient. */
double bk_test_data_error(const bk_tensor *x, const json_t *reference, double floor);
double bk_test_grad_error(const bk_tensor *x, const json_t *reference, double floor);

/* Fails with the text when error > limit or is not a number. */
#define bk_check_error(error, limit, ...)                                       \
    do {                                                                        \
        double error_ = (error);                                                \
        if (!(error_ <= (limit))) {                                             \
            print_error(__VA_ARGS__);                                           \
            print_error(": error %.3g, limit %.3g\n", error_, (double)(limit)); \
            fail();                                                             \
        }                                                                       \
    } while (0)

#endif
