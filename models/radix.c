#include "models/radix.h"

#include "core/parallel.h"

#include <string.h>

enum { DIGITS = 256, ROUNDS = 8 };

/* Larger values have larger keys; both zeros have one. */
static uint64_t key_of(double x)
{
    uint64_t bits, sign = (uint64_t)1 << 63;
    x += 0.0;
    memcpy(&bits, &x, sizeof bits);
    return bits & sign ? ~bits : bits | sign;
}

static double value_of(uint64_t key)
{
    uint64_t sign = (uint64_t)1 << 63, bits = key & sign ? key & ~sign : ~key;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* One round: counts of the next digit among the values that begin as the statistic does. */
typedef struct round {
    const bk_radix *radix;
    int shift;
    const uint64_t *prefix; /* [columns] digits found so far */
    int64_t *count;         /* [columns,DIGITS] */
} round;

static void count_digits(void *context, int64_t first, int64_t last)
{
    const round *c = context;
    for (int64_t t = 0; t < c->radix->rows; t++)
        for (int64_t j = first; j < last; j++) {
            uint64_t key = key_of(c->radix->value[t * c->radix->columns + j]) >> c->shift;
            c->count[j * DIGITS + (int64_t)(key % DIGITS)] += key / DIGITS == c->prefix[j];
        }
}

/* The digit that holds the left-th largest, counted from the top; left becomes its place there. */
static uint64_t find_digit(const int64_t *count, int64_t *left)
{
    int64_t digit = DIGITS - 1;
    for (; digit > 0 && count[digit] < *left; digit--)
        *left -= count[digit];
    return (uint64_t)digit;
}

void bk_radix_largest(const bk_radix *r, double *threshold, int64_t *ties)
{
    int64_t n = r->columns;
    bk_arena_mark mark = bk_arena_get_mark(r->scratch);
    uint64_t *prefix = BK_ZNEW(r->scratch, uint64_t, n);
    int64_t *count = BK_NEW(r->scratch, int64_t, n * DIGITS),
            *left = BK_NEW(r->scratch, int64_t, n);
    for (int64_t j = 0; j < n; j++)
        left[j] = r->wanted;
    for (int shift = 8 * (ROUNDS - 1); shift >= 0; shift -= 8) {
        memset(count, 0, (size_t)(n * DIGITS) * sizeof *count);
        bk_parallel(n, 1, r->rows, count_digits, &(round){r, shift, prefix, count});
        bk_reduce_fixed(r->reducer, n * DIGITS, count);
        for (int64_t j = 0; j < n; j++)
            prefix[j] = prefix[j] * DIGITS + find_digit(count + j * DIGITS, &left[j]);
    }
    for (int64_t j = 0; j < n; j++)
        threshold[j] = value_of(prefix[j]);
    if (ties)
        memcpy(ties, left, (size_t)n * sizeof *ties);
    bk_arena_release(r->scratch, mark);
}
