/* tests/support/router.h - one call of a router, with everything it reads. */
#ifndef BK_TESTS_SUPPORT_ROUTER_H
#define BK_TESTS_SUPPORT_ROUTER_H

#include "tests/support/check.h"

#include "models/router_common.h"

/* Residual 1e-9 from zero potentials: what the golden values were made with. */
#define BK_TEST_TIGHT "tolerance=1e-9 iterations=1000 warm_start=false "

typedef struct bk_test_router {
    bk_arena *arena, *scratch;
    bk_lanes lanes;
    bk_route_args args;
    bk_route route; /* of the last run */
    const bk_router_kind *kind;
    double config[64];
    double *noise_logits, *grad_noise; /* [T,E] for kinds with a noise gate, else NULL */
} bk_test_router;

/* In training, k = 2, one lane of T tokens, one rank; change ->args and ->lanes before running.
 * `options` is "key=value key=value"; logits[T,E] are borrowed. */
bk_test_router *bk_test_router_open(const char *kind, const char *options, int64_t tokens,
                                    int64_t experts, const double *logits);
void bk_test_router_close(bk_test_router *p);

/* Cuts the rows into this many lanes, all of them own. */
void bk_test_router_lanes(bk_test_router *p, int64_t lanes);
void bk_test_router_mask(bk_test_router *p, const int32_t *mask);

/* Routes anew; the former route stays readable until the problem is closed. */
const bk_route *bk_test_router_run(bk_test_router *p);

bool bk_test_router_has(const bk_router_kind *kind, const char *option);

/* Calls `test` for every choice of every CHOICE and BOOL option of the kind, the others at their
 * defaults, and once for the defaults.  `fixed` ("key=value ", each kept only where the kind has
 * the key) stands in front; `shares`: also every number whose range is 0..1 set to 1, so that
 * branches taken by draw are taken. */
void bk_test_router_variants(const bk_router_kind *kind, const char *fixed, bool shares,
                             void (*test)(const char *kind, const char *options));

/* x[n] uniform in [-spread, spread), a function of tag and place. */
void bk_test_spread(int64_t n, double *x, uint64_t tag, double spread);

/* Same index and weight to the bit, for n tokens from a token of each. */
void bk_test_same_routes(const bk_test_router *a, int64_t first, const bk_test_router *b,
                         int64_t other, int64_t n);

#endif
