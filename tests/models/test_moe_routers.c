/* test: labels=unit,grad,mpi ranks=1,2,3,4 timeout=120 */
/* The layer with every router of the table: the same numbers for every number of ranks, degree and
 * number of chunks; differences where a kind has a way of its own through the layer. */
#include "tests/support/moe.h"
#include "tests/support/ranks.h"

#include <math.h>
#include <stdio.h>

/* A scene with a balance loss that the kind can have. */
static bk_test_scene scene_of(const bk_router_kind *kind, const char *options)
{
    static char name[128];
    snprintf(name, sizeof name, "%s %s", kind->name, options);
    return (bk_test_scene){.name = name,
                           .router = kind->name,
                           .options = options,
                           .aux = !(kind->flags & BK_ROUTER_EXPERTS),
                           .form = kind->measure ? BK_AUX_CV : BK_AUX_GLOBAL,
                           .z = true};
}

static void every_router_on_every_grid(void **state)
{
    (void)state;
    for (int i = 0; bk_routers[i]; i++) {
        const bk_router_kind *kind = bk_routers[i];
        bk_test_scene s = scene_of(kind, kind->flags & BK_ROUTER_TRANSPORT ? "solver=newton" : "");
        s.mask = bk_test_some_padding;
        bk_test_scene_check(s);
        s.mask = bk_test_lane_1_is_empty;
        s.capacity = (bk_capacity){.factor = 0.8, .least = 1};
        bk_test_scene_check(s);
        if (bk_test_router_has(kind, "scope"))
            bk_test_scene_check(scene_of(kind, "scope=local"));
    }
}

static void every_router_without_a_token(void **state)
{
    (void)state;
    for (int i = 0; bk_routers[i]; i++) {
        bk_test_scene s = scene_of(bk_routers[i], "");
        s.mask = bk_test_all_padding;
        bk_test_scene_check(s);
        s.mask = NULL;
        s.lanes = 1; /* ranks without rows */
        bk_test_scene_check(s);
    }
}

/* ---- differences ---- */

static bk_test_scene perturbed;

enum { LEAVES = 4 };

static bk_tensor *leaf_of(const bk_test_layer *y, int number)
{
    bk_tensor *const list[LEAVES] = {y->args.x, y->args.gate, y->args.noise_gate, y->args.w1[1]};
    return list[number];
}

/* <dy, y> + aux + z with element i of a leaf moved. */
static double moved(int number, int64_t i, double delta)
{
    bk_test_layer *y = bk_test_layer_open(&perturbed, NULL);
    double sum = 0.0;
    ((double *)leaf_of(y, number)->data)[i] += delta;
    bk_test_layer_run(y);
    for (int64_t j = 0; j < bk_count(y->result.y); j++)
        sum += bk_test_value(y->result.y, j) * bk_test_grad(y->result.y, j);
    for (int64_t l = 0; l < y->tape.lanes.count; l++)
        sum += bk_f64(y->result.z)[l] + (y->result.aux ? bk_f64(y->result.aux)[l] : 0.0);
    bk_test_layer_close(y);
    return sum;
}

static void check_differences(const char *kind, const char *options)
{
    const double step = 1e-5;
    perturbed = scene_of(bk_router_find(kind), options);
    perturbed.dtype = BK_F64;
    perturbed.mask = bk_test_some_padding;
    perturbed = bk_test_scene_filled(perturbed);
    bk_test_layer *y = bk_test_layer_open(&perturbed, NULL);
    bk_test_layer_run(y);
    for (int n = 0; n < LEAVES; n++) {
        const bk_tensor *x = leaf_of(y, n);
        for (int64_t i = 0; x && i < bk_count(x); i += 1 + bk_count(x) / 12) {
            double numeric = (moved(n, i, step) - moved(n, i, -step)) / (2.0 * step);
            bk_check_error(fabs(numeric - bk_test_grad(x, i)) / fmax(1.0, fabs(numeric)), 1e-6,
                           "%s, leaf %d", perturbed.name, n);
        }
    }
    bk_test_layer_close(y);
}

static void gradients_are_differences(void **state)
{
    (void)state;
    check_differences("noisy_topk", "");
    check_differences("expert_choice", "");
    check_differences("bias", "");
    check_differences("quantile", "scope=local");
}

/* ---- identities ---- */

/* Equal weights that sum to 1, of experts that change nothing. */
static void uniform_routes_are_the_identity(void **state)
{
    const bk_test_scene s = bk_test_scene_filled((bk_test_scene){
        .name = "identity", .router = "uniform", .identity = true, .unbiased = true, .k = 4});
    (void)state;
    bk_test_layer *y = bk_test_layer_open(&s, bk_test_worlds[1]);
    bk_test_layer_run(y);
    for (int64_t i = 0; i < bk_count(y->args.x); i++) {
        assert_true(bk_test_value(y->result.y, i) == bk_test_value(y->args.x, i));
        assert_true(bk_test_grad(y->args.x, i) == bk_test_grad(y->result.y, i));
    }
    bk_test_layer_close(y);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_router_on_every_grid),
        cmocka_unit_test(every_router_without_a_token),
        cmocka_unit_test(uniform_routes_are_the_identity),
    };
    const struct CMUnitTest alone[] = {
        cmocka_unit_test(gradients_are_differences),
    };
    bk_test_ranks_start(&argc, &argv);
    bk_test_worlds_open();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (bk_mpi_size() == 1)
        failed += cmocka_run_group_tests(alone, NULL, NULL);
    return bk_test_ranks_stop(failed);
}
