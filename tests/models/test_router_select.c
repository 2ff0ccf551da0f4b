/* test: labels=unit timeout=60 */
/* Selection: the largest of a row, ties to the lower expert; the best groups of experts. */
#include "tests/support/router.h"

#include "core/blas.h"

#include <math.h>
#include <string.h>

enum { T = 24 };

/* Against sorting all of a row: falling, ties to the lower expert. */
static void selection_takes_the_largest(void **state)
{
    enum { MANY = 37 };
    double h[T * MANY];
    (void)state;
    for (int i = 0; i < T * MANY; i++)
        h[i] = (double)((i * 7919) % 11); /* many ties */
    for (int64_t k = 1; k <= MANY; k += 4) {
        bk_test_router *p = bk_test_router_open("topk", "renormalize=false", T, MANY, h);
        p->args.k = k;
        const bk_route *r = bk_test_router_run(p);
        for (int t = 0; t < T; t++) {
            const double *row = h + t * MANY;
            for (int64_t s = 0; s < k; s++) {
                int32_t e = r->index[t * k + s];
                int before = 0;
                for (int j = 0; j < MANY; j++)
                    before += row[j] > row[e] || (row[j] == row[e] && j < e);
                assert_int_equal(before, s);
            }
        }
        bk_test_router_close(p);
    }
}

/* ---- groups ---- */

/* The best experts of the groups whose best scores sum highest, by trying all pairs of groups. */
static void check_groups(const char *kind, const double *h, int64_t k, int64_t summed)
{
    enum { GROUPS = 4, SIZE = 3, ALL = GROUPS * SIZE };
    bk_test_router *p =
        bk_test_router_open(kind, "groups_of_experts=4 groups_kept=2 score=sigmoid", T, ALL, h);
    p->args.k = k;
    const bk_route *r = bk_test_router_run(p);
    for (int t = 0; t < T; t++) {
        double sum[GROUPS] = {0}, best = -INFINITY;
        int64_t pair[2] = {0, 0};
        for (int g = 0; g < GROUPS; g++) {
            double s[SIZE];
            for (int e = 0; e < SIZE; e++)
                s[e] = strcmp(kind, "topk") == 0 ? h[t * ALL + g * SIZE + e]
                                                 : bk_router_sigmoid(h[t * ALL + g * SIZE + e]);
            double most = fmax(s[0], fmax(s[1], s[2])), least = fmin(s[0], fmin(s[1], s[2]));
            sum[g] = summed == 1 ? most : s[0] + s[1] + s[2] - least;
        }
        for (int a = 0; a < GROUPS; a++)
            for (int b = a + 1; b < GROUPS; b++)
                if (sum[a] + sum[b] > best) {
                    best = sum[a] + sum[b];
                    pair[0] = a;
                    pair[1] = b;
                }
        for (int64_t s = 0; s < k; s++) {
            int64_t group = r->index[t * k + s] / SIZE, before = 0;
            assert_true(group == pair[0] || group == pair[1]);
            for (int e = 0; e < ALL; e++)
                before += (e / SIZE == pair[0] || e / SIZE == pair[1]) &&
                          h[t * ALL + e] > h[t * ALL + r->index[t * k + s]];
            assert_int_equal(before, s);
        }
    }
    bk_test_router_close(p);
}

static void choices_stay_in_the_best_groups(void **state)
{
    double h[T * 12];
    (void)state;
    bk_test_spread(T * 12, h, 9, 2.0);
    check_groups("topk", h, 3, 1);
    check_groups("topk", h, 4, 2);
    check_groups("bias", h, 4, 2);
    check_groups("quantile", h, 2, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(selection_takes_the_largest),
        cmocka_unit_test(choices_stay_in_the_best_groups),
    };
    if (bk_blas_setup(1, BK_GEMM_AUTO) != BK_OK)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
