/* test: labels=unit,mpi ranks=1,2,3,4 timeout=120 */
/* The direct domain against the log domain, and its bits over threads and ranks. */
#include "tests/support/check.h"
#include "tests/support/losses.h"
#include "tests/support/ranks.h"

#include "core/blas.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bk_test_result in_domain(const bk_test_batch *b, bk_test_way w, const char *domain,
                                const char *options)
{
    char text[256];
    snprintf(text, sizeof text, "domain=%s %s", domain, options);
    w.options = text;
    return bk_test_loss("sinkd", b, &w);
}

static void same_in_both_domains(const bk_test_batch *b, bk_test_way w, const char *options)
{
    bool wide = w.dtype == BK_F64;
    bk_test_result direct = in_domain(b, w, "direct", options),
                   log = in_domain(b, w, "log", options);
    bk_test_same_loss(b, &direct, &log, wide ? 1e-12 : 1e-6, wide ? 1e-9 : 1e-5, options);
    assert_true(bk_test_figure(&direct, "iterations") == bk_test_figure(&log, "iterations"));
    static const char *const figures[] = {"row_violation", "entropic_value"};
    for (int i = 0; i < 2; i++)
        assert_true(fabs(bk_test_figure(&direct, figures[i]) - bk_test_figure(&log, figures[i])) <
                    1e-9);
    bk_test_result_free(&direct);
    bk_test_result_free(&log);
}

/* Iterations on both sides of what is multiplied out at a time: 64, two terms each. */
static void domains_agree(void **state)
{
    static const char *const options[] = {"",
                                          "iterations=1",
                                          "iterations=63",
                                          "iterations=64",
                                          "iterations=65 epsilon=0.05",
                                          "iterations=130",
                                          "epsilon=1000",
                                          "gradient=envelope",
                                          "group=3 reduction=sum",
                                          "group=1",
                                          "group=sequence",
                                          "tolerance=1e-3 iterations=500",
                                          "epsilon=0.025"};
    (void)state;
    bk_test_batch b = bk_test_batch_new(11, 19);
    b.sequence = calloc(11, sizeof *b.sequence);
    b.valid = calloc(11, sizeof *b.valid);
    for (int32_t i = 0; i < 11; i++) {
        b.sequence[i] = i / 4;
        b.valid[i] = i != 5;
    }
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        for (int wide = 0; wide < 2; wide++)
            same_in_both_domains(
                &b, (bk_test_way){.dtype = wide ? BK_F64 : BK_F32, .comm = bk_test_world()->loss},
                options[i]);
    bk_test_batch_free(&b);
}

/* Rows that have hardly a class in common, at the least epsilon: K is as small as it gets. */
static void least_kernel_is_held(void **state)
{
    enum { ROWS = 6 };
    (void)state;
    bk_test_batch b = bk_test_batch_new(ROWS, 2 * ROWS);
    for (int i = 0; i < ROWS; i++)
        for (int v = 0; v < 2 * ROWS; v++) {
            b.student[i * 2 * ROWS + v] = (v == 0 ? 200.0 : 0.0) + 0.01 * i * v;
            b.teacher[i * 2 * ROWS + v] = (v == 2 * i + 1 ? 200.0 : 0.0) + (i == 0 && v == 0) * 199;
        }
    bk_test_way w = {.dtype = BK_F64, .comm = bk_test_world()->loss};
    same_in_both_domains(&b, w, "epsilon=0.003 iterations=50");
    w.dtype = BK_F32;
    same_in_both_domains(&b, w, "epsilon=0.025 iterations=50");
    bk_test_batch_free(&b);
}

/* auto is the direct domain down to the bound of the arithmetic, and the log domain below. */
static void auto_keeps_the_bound(void **state)
{
    static const struct {
        bk_dtype dtype;
        const char *epsilon, *domain;
    } cases[] = {{BK_F32, "epsilon=0.025", "direct"},
                 {BK_F32, "epsilon=0.0249", "log"},
                 {BK_F64, "epsilon=0.003", "direct"},
                 {BK_F64, "epsilon=0.00299", "log"}};
    (void)state;
    bk_test_batch b = bk_test_batch_new(9, 31);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bk_test_way w = {.dtype = cases[i].dtype};
        bk_test_result chosen = in_domain(&b, w, "auto", cases[i].epsilon),
                       given = in_domain(&b, w, cases[i].domain, cases[i].epsilon);
        assert_true(chosen.loss == given.loss);
        assert_true(memcmp(chosen.grad, given.grad, 9 * 31 * sizeof(double)) == 0);
        bk_test_result_free(&chosen);
        bk_test_result_free(&given);
    }
    bk_test_batch_free(&b);
}

static void below_the_bound_is_refused(void **state)
{
    const bk_loss_kind *kind = bk_loss_find("sinkd");
    (void)state;
    for (int wide = 0; wide < 2; wide++)
        for (int below = 0; below < 2; below++) {
            bk_arena *arena = bk_arena_new("test");
            void *config = bk_arena_zalloc(arena, kind->config_size);
            bk_value *map = bk_value_new(arena, BK_MAP, "test", 0);
            const char *epsilon = wide ? (below ? "0.0029" : "0.003") : (below ? "0.024" : "0.025");
            assert_int_equal(bk_value_set(arena, map, "domain", "direct"), BK_OK);
            assert_int_equal(bk_value_set(arena, map, "epsilon", epsilon), BK_OK);
            assert_int_equal(bk_options_read(kind->options, config, map, "loss", arena), BK_OK);
            assert_int_equal(kind->check(config, wide ? BK_F64 : BK_F32), below ? BK_USAGE : BK_OK);
            assert_true(!below || strstr(bk_status_text(), "domain=direct"));
            bk_arena_free(arena);
        }
}

static void same_bits(const bk_test_batch *b, const bk_test_result *x, const bk_test_result *y)
{
    assert_true(x->loss == y->loss);
    assert_true(memcmp(x->grad, y->grad, (size_t)(b->rows * b->classes) * sizeof *x->grad) == 0);
}

/* Large enough that every loop is shared out. */
static void threads_change_no_bit(void **state)
{
    static const char *const options[] = {"", "group=100", "domain=log iterations=3", "chunk=16"};
    (void)state;
    bk_test_batch b = bk_test_batch_new(300, 40);
    for (int k = 0; k < 4; k++) {
        bk_test_way w = {.options = options[k], .lanes = 2};
        bk_test_result one = bk_test_loss("sinkd", &b, &w);
        for (int threads = 2; threads <= 3; threads++) {
            assert_int_equal(bk_blas_setup(threads, BK_GEMM_AUTO), BK_OK);
            bk_test_result many = bk_test_loss("sinkd", &b, &w);
            same_bits(&b, &many, &one);
            bk_test_result_free(&many);
        }
        assert_int_equal(bk_blas_setup(1, BK_GEMM_AUTO), BK_OK);
        bk_test_result_free(&one);
    }
    bk_test_batch_free(&b);
}

/* At equal lanes, every power of two of ranks. */
static void ranks_change_no_bit(void **state)
{
    static const char *const options[] = {"", "group=7", "domain=log", "iterations=70",
                                          "gradient=envelope"};
    int size = bk_mpi_size();
    (void)state;
    if (size == 3)
        skip();
    bk_test_batch b = bk_test_batch_new(37, 50);
    for (int k = 0; k < 5; k++)
        for (int wide = 0; wide < 2; wide++) {
            bk_test_way w = {.options = options[k], .lanes = 4, .dtype = wide ? BK_F64 : BK_F32};
            bk_test_result one = bk_test_loss("sinkd", &b, &w);
            w.comm = bk_test_world()->loss;
            bk_test_result all = bk_test_loss("sinkd", &b, &w);
            same_bits(&b, &all, &one);
            bk_test_result_free(&one);
            bk_test_result_free(&all);
        }
    bk_test_batch_free(&b);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(domains_agree),         cmocka_unit_test(least_kernel_is_held),
        cmocka_unit_test(auto_keeps_the_bound),  cmocka_unit_test(below_the_bound_is_refused),
        cmocka_unit_test(threads_change_no_bit), cmocka_unit_test(ranks_change_no_bit),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
