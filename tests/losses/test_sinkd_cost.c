/* test: labels=unit timeout=60 */
#include "tests/support/check.h"
#include "tests/support/losses.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* softmax(x/2) in plain loops. */
static void probabilities(int64_t n, const double *x, double *p)
{
    double sum = 0.0;
    for (int64_t v = 0; v < n; v++)
        sum += p[v] = exp(x[v] / 2.0);
    for (int64_t v = 0; v < n; v++)
        p[v] /= sum;
}

/* C_ij = sum_v |p_iv - q_jv| for any V, padded or not, in [0, 2]. */
static void cost_is_the_distance_of_rows(void **state)
{
    static const int64_t classes[] = {2, 15, 16, 17, 33};
    enum { B = 5 };
    (void)state;
    for (size_t c = 0; c < sizeof classes / sizeof *classes; c++) {
        int64_t n = classes[c];
        double p[33], q[33], want[B * B];
        bk_test_batch b = bk_test_batch_new(B, n);
        bk_test_result r = bk_test_loss("sinkd", &b, &(bk_test_way){.dtype = BK_F64, .plan = true});
        for (int i = 0; i < B * B; i++) {
            probabilities(n, b.student + i / B * n, p);
            probabilities(n, b.teacher + i % B * n, q);
            want[i] = 0.0;
            for (int64_t v = 0; v < n; v++)
                want[i] += fabs(p[v] - q[v]);
            assert_true(r.cost[i] >= 0.0 && r.cost[i] <= 2.0 + 1e-15);
        }
        bk_check_error(bk_test_error(B * B, r.cost, want, 1.0), 1e-14, "cost of %d classes",
                       (int)n);
        bk_test_result_free(&r);
        bk_test_batch_free(&b);
    }
}

static void chunks_change_rounding_only(void **state)
{
    static const char *const options[] = {
        "chunk=1", "chunk=7", "chunk=16", "chunk=100", "chunk=257", "chunk=0",
    };
    (void)state;
    bk_test_batch b = bk_test_batch_new(16, 257);
    bk_test_way w = {.dtype = BK_F64};
    bk_test_result whole = bk_test_loss("sinkd", &b, &w);
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        w.options = options[i];
        bk_test_result r = bk_test_loss("sinkd", &b, &w);
        bk_test_same_loss(&b, &r, &whole, 1e-12, 1e-12, options[i]);
        bk_test_result_free(&r);
    }
    bk_test_result_free(&whole);
    bk_test_batch_free(&b);
}

/* envelope has G = P: ds_i = p_i (h_i - <p_i,h_i>) / T with h_iv = sum_j P_ij sign(p_iv - q_jv). */
static void gradient_is_the_sum_of_signs(void **state)
{
    enum { B = 6, V = 9 };
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    memcpy(b.student + V, b.teacher, V * sizeof *b.student); /* ties */
    bk_test_result r = bk_test_loss("sinkd", &b,
                                    &(bk_test_way){.options = "gradient=envelope reduction=sum",
                                                   .dtype = BK_F64,
                                                   .plan = true});
    double q[B * V], want[B * V];
    for (int j = 0; j < B; j++)
        probabilities(V, b.teacher + j * V, q + j * V);
    for (int i = 0; i < B; i++) {
        double p[V], h[V] = {0}, inner = 0.0;
        probabilities(V, b.student + i * V, p);
        for (int v = 0; v < V; v++) {
            for (int j = 0; j < B; j++)
                h[v] += r.plan[i * B + j] * ((p[v] > q[j * V + v]) - (p[v] < q[j * V + v]));
            inner += p[v] * h[v];
        }
        for (int v = 0; v < V; v++)
            want[i * V + v] = p[v] * (h[v] - inner) / 2.0;
    }
    bk_check_error(bk_test_error(B * V, r.grad, want, 1e-30), 1e-12, "gradient of the envelope");
    bk_test_result_free(&r);
    bk_test_batch_free(&b);
}

/* The temperature divides both logits. */
static void temperature_scales_logits(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(5, 7), half = bk_test_batch_new(5, 7);
    for (int i = 0; i < 35; i++) {
        half.student[i] /= 4.0;
        half.teacher[i] /= 4.0;
    }
    double x = bk_test_loss_value("sinkd", &b,
                                  &(bk_test_way){.options = "temperature=4", .dtype = BK_F64}),
           y = bk_test_loss_value("sinkd", &half,
                                  &(bk_test_way){.options = "temperature=1", .dtype = BK_F64});
    assert_true(x == y);
    bk_test_batch_free(&b);
    bk_test_batch_free(&half);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cost_is_the_distance_of_rows),
        cmocka_unit_test(chunks_change_rounding_only),
        cmocka_unit_test(gradient_is_the_sum_of_signs),
        cmocka_unit_test(temperature_scales_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
