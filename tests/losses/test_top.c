/* test: labels=unit,grad,mpi ranks=1,2,3 timeout=120 */
/* Teachers of k classes and a rest, for every kind that has the option: the same from whole rows
 * and from the largest logits, monotone in k, the derivative, and the tail that is left out. */
#include "tests/support/check.h"
#include "tests/support/losses.h"
#include "tests/support/ranks.h"

#include "losses/row.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 9, V = 23 };

static bool has_top(const bk_loss_kind *kind)
{
    return bk_test_loss_has(kind->name, "top_k");
}

/* ---- handed over ---- */

static void handed_over_is_as_selected(void **state)
{
    static const struct {
        const char *selected, *taken;
        int64_t top;
    } cases[] = {{"top_k=5", "", 5},
                 {"top_k=5", "top_k=5", 5},
                 {"top_k=5", "top_k=5", 12}, /* the first of more */
                 {"top_k=1 temperature=3", "top_k=1 temperature=3", 2},
                 {"", "", V},
                 {"", "top_k=40", V},
                 {"top_k=22", "", 22}};
    const bk_comm *comm = bk_test_world()->loss;
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    b.valid = calloc(B, sizeof *b.valid);
    for (int i = 0; i < B; i++)
        b.valid[i] = i % 4 != 2;
    for (int i = 0; bk_losses[i]; i++)
        for (size_t k = 0; k < sizeof cases / sizeof *cases && has_top(bk_losses[i]); k++)
            for (int wide = 0; wide < 2; wide++) {
                bk_test_way w = {
                    .options = cases[k].selected, .dtype = wide ? BK_F64 : BK_F32, .comm = comm};
                bk_test_result whole = bk_test_loss(bk_losses[i]->name, &b, &w);
                w.options = cases[k].taken;
                w.top = cases[k].top;
                bk_test_result part = bk_test_loss(bk_losses[i]->name, &b, &w);
                bk_test_same_loss(&b, &part, &whole, wide ? 1e-12 : 2e-6, wide ? 1e-10 : 1e-5,
                                  bk_losses[i]->name);
                bk_test_result_free(&whole);
                bk_test_result_free(&part);
            }
    bk_test_batch_free(&b);
}

/* ---- what k does ---- */

static double at_k(const char *kind, const bk_test_batch *b, int64_t k)
{
    char options[32];
    snprintf(options, sizeof options, "top_k=%d", (int)k);
    return bk_test_loss_value(kind, b, &(bk_test_way){.options = options, .dtype = BK_F64});
}

/* A finer partition sees more of the divergence. */
static void losses_grow_with_k(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    for (int i = 0; bk_losses[i]; i++) {
        const char *name = bk_losses[i]->name;
        if (!has_top(bk_losses[i]) || bk_losses[i]->flags & BK_LOSS_COLLECTIVE)
            continue;
        double before = at_k(name, &b, 1), dense = at_k(name, &b, 0);
        assert_true(before > 0.0);
        for (int64_t k = 2; k < V; k++) {
            double now = at_k(name, &b, k);
            assert_true(now >= before - 1e-14);
            before = now;
        }
        assert_true(before <= dense + 1e-14);
    }
    bk_test_batch_free(&b);
}

static void all_classes_are_dense(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    for (int i = 0; bk_losses[i]; i++) {
        if (!has_top(bk_losses[i]))
            continue;
        bk_test_way w = {.dtype = BK_F64};
        bk_test_result dense = bk_test_loss(bk_losses[i]->name, &b, &w);
        for (int64_t k = V; k < V + 2; k++) {
            w.options = k == V ? "top_k=23" : "top_k=24";
            bk_test_result all = bk_test_loss(bk_losses[i]->name, &b, &w);
            assert_true(all.loss == dense.loss);
            assert_memory_equal(all.grad, dense.grad, B * V * sizeof *dense.grad);
            bk_test_result_free(&all);
        }
        bk_test_result_free(&dense);
    }
    bk_test_batch_free(&b);
}

static void gradients_are_derivatives(void **state)
{
    (void)state;
    if (bk_mpi_size() > 1)
        skip();
    for (int i = 0; bk_losses[i]; i++)
        for (int k = 1; k < 5 && has_top(bk_losses[i]); k++) {
            char options[32];
            snprintf(options, sizeof options, "top_k=%d", k);
            bk_test_loss_gradient(bk_losses[i]->name, options);
        }
    bk_test_loss_gradient("kl", "top_k=2 skew=0.2");
    bk_test_loss_gradient("reverse_kl", "top_k=3 skew=0.2");
    bk_test_loss_gradient("js", "top_k=3 beta=0.2 reduction=sum");
    bk_test_loss_gradient("sinkd", "top_k=2 group=2 temperature=1");
}

/* Students that leave nothing to the rest, teachers that do, and the other way round. */
static void far_logits_are_finite(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(4, V);
    for (int i = 0; i < 4 * V; i++) {
        b.student[i] *= i / V % 2 ? 1e4 : 1.0;
        b.teacher[i] *= i / V < 2 ? 1e4 : 1.0;
    }
    for (int i = 0; bk_losses[i]; i++)
        for (int k = 0; k < 4 && has_top(bk_losses[i]); k++) {
            bk_test_way w = {
                .options = "top_k=3", .dtype = k % 2 ? BK_F64 : BK_F32, .top = k / 2 * 3};
            bk_test_result r = bk_test_loss(bk_losses[i]->name, &b, &w);
            assert_true(isfinite(r.loss));
            for (int j = 0; j < 4 * V; j++)
                assert_true(isfinite(r.grad[j]));
            bk_test_result_free(&r);
        }
    bk_test_batch_free(&b);
}

/* ---- the tail ---- */

static int falling(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* Mean over the valid rows of what the k largest of softmax(t/2) leave. */
static double tail_of(const bk_test_batch *b, int64_t k)
{
    double tail = 0.0, count = 0.0;
    for (int64_t i = 0; i < b->rows; i++) {
        double q[V], sum = 0.0, kept = 0.0;
        for (int v = 0; v < V; v++)
            sum += q[v] = exp(b->teacher[i * V + v] / 2.0);
        qsort(q, V, sizeof *q, falling);
        for (int64_t v = 0; v < k; v++)
            kept += q[v] / sum;
        tail += b->valid[i] ? 1.0 - kept : 0.0;
        count += b->valid[i];
    }
    return tail / count;
}

static void tail_is_the_mean_rest(void **state)
{
    const bk_comm *comm = bk_test_world()->loss;
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    b.valid = calloc(B, sizeof *b.valid);
    for (int i = 0; i < B; i++)
        b.valid[i] = i != 4;
    for (int i = 0; bk_losses[i]; i++)
        for (int64_t top = 0; top <= 7 && has_top(bk_losses[i]); top += 7) {
            bk_test_way w = {.options = "top_k=7", .dtype = BK_F64, .comm = comm, .top = top};
            bk_test_result r = bk_test_loss(bk_losses[i]->name, &b, &w);
            double own = bk_test_figure(&r, "teacher_tail"), want = tail_of(&b, 7);
            bk_check_error(bk_test_error(1, &own, &want, 1e-30), 1e-12, "tail of %s",
                           bk_losses[i]->name);
            bk_test_result_free(&r);
        }
    bk_test_batch_free(&b);
}

/* Dense C minus this C lies in [0, 2 q(rest)]. */
static void cost_is_a_lower_bound(void **state)
{
    (void)state;
    if (bk_mpi_size() > 1)
        skip();
    bk_test_batch b = bk_test_batch_new(B, V);
    bk_test_way w = {.dtype = BK_F64, .plan = true};
    bk_test_result dense = bk_test_loss("sinkd", &b, &w);
    w.options = "top_k=6";
    bk_test_result top = bk_test_loss("sinkd", &b, &w);
    b.valid = calloc(B, sizeof *b.valid);
    for (int j = 0; j < B; j++) {
        b.valid[j] = 1;
        double rest = tail_of(&b, 6);
        b.valid[j] = 0;
        for (int i = 0; i < B; i++) {
            double gap = dense.cost[i * B + j] - top.cost[i * B + j];
            assert_true(gap >= -1e-14 && gap <= 2.0 * rest + 1e-14);
        }
    }
    bk_test_result_free(&dense);
    bk_test_result_free(&top);
    bk_test_batch_free(&b);
}

/* What needs log-sum-exps that were not handed over, or all logits, says so. */
static void whole_rows_are_asked_for(void **state)
{
    static const struct {
        const char *kind, *options, *option;
    } cases[] = {{"kl", "temperature_end=1", "temperature_end"},
                 {"kl", "temperature_end=2", NULL},
                 {"tv", "", NULL},
                 {"sinkd", "debias=true", "debias"},
                 {"sinkd", "top_k=3", NULL}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bk_arena *arena = bk_arena_new("test");
        const bk_loss_kind *kind = bk_loss_find(cases[i].kind);
        const char *option =
            kind->whole(bk_test_loss_options(kind, cases[i].options, BK_F64, arena));
        assert_true(cases[i].option ? option && strcmp(option, cases[i].option) == 0 : !option);
        bk_arena_free(arena);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(handed_over_is_as_selected), cmocka_unit_test(losses_grow_with_k),
        cmocka_unit_test(all_classes_are_dense),      cmocka_unit_test(gradients_are_derivatives),
        cmocka_unit_test(far_logits_are_finite),      cmocka_unit_test(tail_is_the_mean_rest),
        cmocka_unit_test(cost_is_a_lower_bound),      cmocka_unit_test(whole_rows_are_asked_for),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
