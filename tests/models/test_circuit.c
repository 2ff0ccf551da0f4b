/* test: labels=unit,golden,grad timeout=120 */
/* The circuit of QDSFormer attention: doubly stochastic, against parameter shift, the same in any
 * slot, and against golden values. */
#include "tests/support/check.h"

#include "core/rng.h"
#include "models/circuit.h"

#include <math.h>
#include <stdlib.h>

enum { ORDER = 16, ANGLES = 4000 };

/* One circuit in slot `slot`, others full of other angles. */
typedef struct run {
    bk_circuit circuit;
    bk_dtype dtype;
    int64_t slot;
    bool backward;
    double phi[ANGLES], g[ORDER * ORDER], p[ORDER * ORDER], dphi[ANGLES];
} run;

static void put(bk_dtype dtype, void *x, int64_t i, double value)
{
    if (dtype == BK_F64)
        ((double *)x)[i] = value;
    else
        ((float *)x)[i] = (float)value;
}

static double get(bk_dtype dtype, const void *x, int64_t i)
{
    return dtype == BK_F64 ? ((const double *)x)[i] : (double)((const float *)x)[i];
}

static void go(run *r)
{
    bk_arena *arena = bk_arena_new("circuit");
    int64_t slots = bk_slots(r->dtype), angles = bk_circuit_angles(&r->circuit),
            square = (int64_t)1 << (2 * r->circuit.data);
    void *phi = bk_arena_alloc(arena, (size_t)angles * BK_SLOT_BYTES),
         *dphi = bk_arena_alloc(arena, (size_t)angles * BK_SLOT_BYTES),
         *p = bk_arena_alloc(arena, (size_t)square * BK_SLOT_BYTES),
         *g = bk_arena_alloc(arena, (size_t)square * BK_SLOT_BYTES);
    for (int64_t i = 0; i < angles * slots; i++)
        put(r->dtype, phi, i,
            i % slots == r->slot ? r->phi[i / slots] : bk_fill((uint64_t)i, 9, -9.0, 9.0));
    for (int64_t i = 0; i < square * slots; i++)
        put(r->dtype, g, i, i % slots == r->slot ? r->g[i / slots] : 1.0);
    bk_circuit_block b = {.circuit = r->circuit,
                          .phi = phi,
                          .p = p,
                          .g = r->backward ? g : NULL,
                          .dphi = dphi,
                          .work =
                              bk_arena_alloc(arena, bk_circuit_work_size(r->dtype, &r->circuit))};
    bk_circuit_run(r->dtype, &b);
    for (int64_t i = 0; i < square; i++)
        r->p[i] = get(r->dtype, p, i * slots + r->slot);
    for (int64_t k = 0; k < angles && r->backward; k++)
        r->dphi[k] = get(r->dtype, dphi, k * slots + r->slot);
    bk_arena_free(arena);
}

static run *make(bk_dtype dtype, int data, int ancilla, int64_t layers)
{
    run *r = calloc(1, sizeof *r);
    r->circuit = (bk_circuit){data, ancilla, layers};
    r->dtype = dtype;
    r->backward = true;
    assert_true(bk_circuit_angles(&r->circuit) <= ANGLES && 1 << data <= ORDER);
    for (int64_t k = 0; k < ANGLES; k++)
        r->phi[k] = bk_fill((uint64_t)k, 1, -3.0, 3.0);
    for (int64_t i = 0; i < ORDER * ORDER; i++)
        r->g[i] = bk_fill((uint64_t)i, 2, -1.0, 1.0);
    return r;
}

static double sum_error(const run *r)
{
    int64_t n = (int64_t)1 << r->circuit.data;
    double worst = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double row = 0.0, column = 0.0;
        for (int64_t j = 0; j < n; j++) {
            row += r->p[i * n + j];
            column += r->p[j * n + i];
            assert_true(r->p[i * n + j] >= 0.0);
        }
        worst = fmax(worst, fmax(fabs(row - 1.0), fabs(column - 1.0)));
    }
    return worst;
}

/* data, ancilla, layers, angles by the formula 3 m + 4 layers (m - 1) */
static const int64_t shape[][4] = {{1, 0, 2, 3},  {0, 1, 1, 3},  {2, 0, 2, 14},
                                   {2, 1, 2, 25}, {2, 4, 4, 98}, {3, 1, 8, 108},
                                   {3, 2, 3, 63}, {4, 1, 2, 47}, {3, 4, 2, 69}};
enum { SHAPES = sizeof shape / sizeof shape[0] };

static void rows_and_columns_sum_to_one(void **state)
{
    (void)state;
    for (int i = 0; i < SHAPES; i++)
        for (int wide = 0; wide < 2; wide++) {
            run *r = make(wide ? BK_F64 : BK_F32, (int)shape[i][0], (int)shape[i][1], shape[i][2]);
            assert_int_equal(bk_circuit_angles(&r->circuit), shape[i][3]);
            go(r);
            bk_check_error(sum_error(r), wide ? 1e-12 : 2e-6, "circuit %d", i);
            free(r);
        }
}

/* 8 tokens at the size of the paper: 920 angles, eight qubits. */
static void the_paper_s_size(void **state)
{
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        run *r = make(wide ? BK_F64 : BK_F32, 3, 5, 32);
        r->backward = false;
        assert_int_equal(bk_circuit_angles(&r->circuit), 920);
        go(r);
        bk_check_error(sum_error(r), wide ? 1e-12 : 1e-5, "the paper's size");
        free(r);
    }
}

static double objective(run *r)
{
    double sum = 0.0;
    go(r);
    for (int64_t i = 0; i < (int64_t)1 << (2 * r->circuit.data); i++)
        sum += r->g[i] * r->p[i];
    return sum;
}

/* dP/dphi_k = (P(phi_k + pi/2) - P(phi_k - pi/2)) / 2 */
static void adjoint_is_parameter_shift(void **state)
{
    (void)state;
    for (int i = 0; i < SHAPES; i++) {
        run *r = make(BK_F64, (int)shape[i][0], (int)shape[i][1], shape[i][2]);
        double dphi[ANGLES];
        go(r);
        for (int64_t k = 0; k < shape[i][3]; k++)
            dphi[k] = r->dphi[k];
        r->backward = false;
        for (int64_t k = 0; k < shape[i][3]; k++) {
            double at = r->phi[k];
            r->phi[k] = at + 0.5 * 3.14159265358979323846;
            double up = objective(r);
            r->phi[k] = at - 0.5 * 3.14159265358979323846;
            double down = objective(r);
            r->phi[k] = at;
            bk_check_error(fabs(0.5 * (up - down) - dphi[k]), 1e-12, "circuit %d, angle %d", i,
                           (int)k);
        }
        free(r);
    }
}

static void no_angle_is_the_identity(void **state)
{
    run *r = make(BK_F32, 3, 2, 4);
    (void)state;
    for (int64_t k = 0; k < ANGLES; k++)
        r->phi[k] = 0.0;
    go(r);
    for (int64_t i = 0; i < 64; i++)
        assert_true(r->p[i] == (i / 8 == i % 8));
    free(r);
}

static void slots_do_not_know_of_each_other(void **state)
{
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        bk_dtype dtype = wide ? BK_F64 : BK_F32;
        run *first = make(dtype, 2, 2, 4);
        go(first);
        for (int64_t slot = 1; slot < bk_slots(dtype); slot++) {
            run *other = make(dtype, 2, 2, 4);
            other->slot = slot;
            go(other);
            for (int64_t i = 0; i < 16; i++)
                assert_true(first->p[i] == other->p[i]);
            for (int64_t k = 0; k < bk_circuit_angles(&first->circuit); k++)
                assert_true(first->dphi[k] == other->dphi[k]);
            free(other);
        }
        free(first);
    }
}

/* Large angles are turned back without loss. */
static void angles_are_periodic(void **state)
{
    run *r = make(BK_F64, 2, 1, 4), *turned = make(BK_F64, 2, 1, 4);
    (void)state;
    for (int64_t k = 0; k < ANGLES; k++)
        turned->phi[k] += (double)(k % 7 - 3) * 4.0 * 3.14159265358979323846;
    go(r);
    go(turned);
    for (int64_t i = 0; i < 16; i++)
        bk_check_error(fabs(r->p[i] - turned->p[i]), 1e-13, "entry %d", (int)i);
    free(r);
    free(turned);
}

/* qds_*: data 2, ancilla 1, one layer of `parted`, M = S. */
static void golden_values(void **state)
{
    json_t *golden = bk_test_golden("ref_ot_golden.json");
    int64_t count;
    double *m = bk_test_numbers(json_object_get(golden, "S"), &count),
           *g = bk_test_numbers(json_object_get(golden, "G"), &count),
           *p = bk_test_numbers(json_object_get(golden, "qds_P"), &count),
           *theta = bk_test_numbers(json_object_get(golden, "qds_theta"), &count),
           *dtheta = bk_test_numbers(json_object_get(golden, "qds_dtheta"), &count), own[25];
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        run *r = make(wide ? BK_F64 : BK_F32, 2, 1, 2);
        for (int64_t k = 0; k < 25; k++)
            r->phi[k] = theta[k] * m[k % 16];
        for (int64_t i = 0; i < 16; i++)
            r->g[i] = g[i];
        go(r);
        for (int64_t k = 0; k < 25; k++)
            own[k] = m[k % 16] * r->dphi[k];
        bk_check_error(bk_test_error(16, r->p, p, 1e-30), wide ? 1e-10 : 2e-5, "qds_P");
        bk_check_error(bk_test_error(25, own, dtheta, 1e-30), wide ? 1e-10 : 2e-5, "qds_dtheta");
        free(r);
    }
    free(m);
    free(g);
    free(p);
    free(theta);
    free(dtheta);
    json_decref(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_and_columns_sum_to_one),
        cmocka_unit_test(the_paper_s_size),
        cmocka_unit_test(adjoint_is_parameter_shift),
        cmocka_unit_test(no_angle_is_the_identity),
        cmocka_unit_test(slots_do_not_know_of_each_other),
        cmocka_unit_test(angles_are_periodic),
        cmocka_unit_test(golden_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
