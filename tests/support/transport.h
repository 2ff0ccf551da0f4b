/* tests/support/transport.h - one transport problem that every rank knows whole: solved by this
 * rank alone, or with its rows spread over the ranks, so that the two can be compared. */
#ifndef BK_TESTS_SUPPORT_TRANSPORT_H
#define BK_TESTS_SUPPORT_TRANSPORT_H

#include "core/transport/divergence.h"
#include "tests/support/check.h"

typedef struct bk_test_transport {
    /* ---- set before a solve ---- */
    bk_dtype dtype;
    int64_t n, m, width;
    double *cost;              /* [n,m]; NULL: points */
    double *x, *y;             /* [n,width], [m,width] */
    double *a, *b;             /* [n], [m]; NULL: uniform */
    int64_t blocks;            /* of rows, a power of two; 0: as the engine would */
    int rank, size;            /* 0, 1: all rows here */
    const bk_reducer *reducer; /* of `size` ranks */
    bool differentiate;
    /* ---- from the last solve ---- */
    int64_t first, rows; /* own rows */
    bk_transport problem;
    bk_transport_config config;
    bk_transport_result result;
    bk_divergence_result divergence;
    bk_lanes lanes;
    bk_arena *arena, *scratch;
} bk_test_transport;

/* A problem on arenas of its own: cost by bk_fill(index, tag, 0, 1), a and b uniform. */
bk_test_transport bk_test_transport_open(bk_dtype dtype, int64_t n, int64_t m, uint64_t tag);
void bk_test_transport_close(bk_test_transport *t);

/* x[n] = bk_fill(index, tag, lo, hi), on the problem's arena. */
double *bk_test_transport_fill(bk_test_transport *t, int64_t n, uint64_t tag, double lo, double hi);
/* Positive masses a and b of sum `mass`. */
void bk_test_transport_masses(bk_test_transport *t, uint64_t tag, double mass);
/* Points by bk_fill(index, tag, -1, 1) instead of costs; y moved by `shift` along each axis. */
void bk_test_transport_points(bk_test_transport *t, int64_t width, uint64_t tag, double shift);

/* Collective over the problem's ranks.  Options as "key=value key=value". */
bk_status bk_test_transport_try(bk_test_transport *t, const char *options);
/* The same; fails unless the call succeeds. */
void bk_test_transport_solve(bk_test_transport *t, const char *options);
/* The same; fails unless the solve converges too. */
void bk_test_transport_converge(bk_test_transport *t, const char *options);
/* Collective.  The divergence instead; must succeed. */
void bk_test_transport_diverge(bk_test_transport *t, const char *options);

/* The own rows of the plan in double, [rows,m]. */
double *bk_test_transport_plan(bk_test_transport *t);

typedef struct bk_test_gradient {
    double *cost, *a, *b; /* [rows,m], [rows], [m] */
} bk_test_gradient;

/* Collective.  Of sum G P + value * (the value): G[n,m] or NULL. */
bk_status bk_test_transport_try_gradient(bk_test_transport *t, const double *plan, double value,
                                         bk_test_gradient *out);
bk_test_gradient bk_test_transport_gradient(bk_test_transport *t, const double *plan, double value);

/* sum x y. */
double bk_test_dot(int64_t n, const double *x, const double *y);

#endif
