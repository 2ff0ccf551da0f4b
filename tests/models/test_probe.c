/* test: labels=unit timeout=60 */
/* Probes of attention matrices: a model whose attention is uniform, and one whose matrices are
 * looked at by hand; padding, the class position, lanes. */
#include "core/hooks.h"
#include "models/probe.h"
#include "models/projection.h"
#include "tests/support/model.h"
#include "tests/support/ranks.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { LAYERS = 2, HEADS = 2, SAMPLES = 6, N = 16 };

static const char section[] = "{layers: 2, width: 12, heads: 2, pool: cls}";

static int64_t ragged(int64_t sample)
{
    return 3 + sample * 5 % 14;
}

static bk_test_model *open_model(int64_t lanes)
{
    const bk_model_data data = bk_test_classes(N);
    bk_test_model *m = bk_test_model_open(section, &data, bk_test_world(),
                                          (bk_lanes){.total = lanes, .count = lanes, .batch = 8});
    return m;
}

/* Scores far apart, or all 0 when `factor` is. */
static void scale_queries(bk_test_model *m, float factor)
{
    for (int l = 0; l < LAYERS; l++) {
        char name[64];
        snprintf(name, sizeof name, "model/block%d/attention/wq", l);
        const bk_parameter *p = bk_test_parameter(m, name, -1);
        for (int64_t i = 0; i < p->count; i++)
            m->slab->value[p->offset + i] *= factor;
    }
}

static int places;

/* Each matrix counts as progress for the watchdog. */
static void count_place(const char *segment)
{
    places += segment && strcmp(segment, "probe") == 0;
}

static void probe(bk_test_model *m, bk_probe_figures *f)
{
    bk_test_model_batch(m, N, ragged, 0);
    bk_probe *p = bk_probe_begin(m->model, &m->tape, &m->bundle, SAMPLES);
    places = 0;
    int looks = 1;
    while (bk_probe_next(p))
        looks++;
    assert_int_equal(looks, SAMPLES);
    assert_int_equal(places, SAMPLES * LAYERS * HEADS);
    assert_int_equal(bk_probe_end(p, f), LAYERS);
    for (int l = 0; l < LAYERS; l++) {
        assert_int_equal(f[l].layer, l);
        assert_int_equal(f[l].matrices, SAMPLES * HEADS);
        assert_int_equal(f[l].eigenvalues, 15); /* 14 positions and the class */
    }
}

/* A = 1 1' / n over the n real positions: doubly stochastic, of rank one, of entropy log n. */
static void uniform_attention(void **state)
{
    (void)state;
    bk_test_model *m = open_model(4);
    bk_probe_figures f[LAYERS];
    double rows = 0.0, entropy = 0.0;
    for (int i = 0; i < SAMPLES; i++) {
        double n = (double)ragged(i) + 1.0; /* and the class position */
        rows += n;
        entropy += n * log(n);
    }
    scale_queries(m, 0.0f);
    probe(m, f);
    for (int l = 0; l < LAYERS; l++) {
        bk_check_error(f[l].distance, 1e-6, "distance");
        bk_check_error(fabs(f[l].entropy - entropy / rows), 1e-6, "entropy");
        bk_check_error(f[l].row_error, 1e-6, "rows");
        bk_check_error(f[l].column_error, 1e-6, "columns");
        bk_check_error(fabs(f[l].rank - 1.0), 1e-5, "rank");
        bk_check_error(fabs(f[l].product_rank - 1.0), 1e-5, "rank of the product");
        bk_check_error(fabs(f[l].eigenvalue[0] - 1.0), 1e-6, "first eigenvalue");
        bk_check_error(f[l].eigenvalue[1], 1e-6, "second eigenvalue");
    }
    bk_test_model_close(m);
}

/* The matrices of a layer as the model shows them, without padding: a[n,n] of sample and head. */
static int64_t matrix_of(const bk_tensor *matrix, int64_t sample, int64_t head, double *a)
{
    int64_t length = matrix->shape[2], n = ragged(sample) + 1;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            a[i * n + j] =
                bk_test_value(matrix, ((sample * HEADS + head) * length + i) * length + j);
    return n;
}

static double column_error(int64_t n, const double *a)
{
    double most = 0.0;
    for (int64_t j = 0; j < n; j++) {
        double sum = 0.0;
        for (int64_t i = 0; i < n; i++)
            sum += a[i * n + j];
        most = fmax(most, fabs(sum - 1.0));
    }
    return most;
}

static void figures_are_those_of_the_matrices(void **state)
{
    (void)state;
    static double a[(N + 1) * (N + 1)], x[(N + 1) * (N + 1)];
    bk_test_model *m = open_model(4);
    bk_probe_figures f[LAYERS];
    bk_tensor *matrix[LAYERS] = {0};
    scale_queries(m, 8.0f);
    probe(m, f);
    bk_test_model_batch(m, N, ragged, 0);
    m->model->matrix = matrix;
    m->tape.recording = true; /* so that the matrices stay */
    bk_model_forward(m->model, &m->tape, &m->bundle);
    m->model->matrix = NULL;
    for (int l = 0; l < LAYERS; l++) {
        double distance = 0.0, entropy = 0.0, rows = 0.0, columns = 0.0;
        for (int s = 0; s < SAMPLES; s++)
            for (int h = 0; h < HEADS; h++) {
                int64_t n = matrix_of(matrix[l], s, h, a);
                distance += bk_birkhoff_project(n, a, x, m->tape.scratch);
                columns = fmax(columns, column_error(n, a));
                rows += (double)n;
                for (int64_t i = 0; i < n * n; i++)
                    entropy -= a[i] > 0.0 ? a[i] * log(a[i]) : 0.0;
            }
        bk_check_error(fabs(f[l].distance - distance / (SAMPLES * HEADS)), 1e-9, "distance");
        bk_check_error(fabs(f[l].entropy - entropy / rows), 1e-9, "entropy");
        bk_check_error(fabs(f[l].column_error - columns), 1e-9, "columns");
        bk_check_error(f[l].row_error, 1e-6, "rows of a softmax");
        assert_true(f[l].distance > 0.1 && f[l].column_error > 0.1);
        bk_check_error(fabs(f[l].eigenvalue[0] - 1.0), 1e-6, "first eigenvalue");
        assert_true(f[l].rank > 1.0 && f[l].rank < N + 1);
        for (int i = 1; i < f[l].eigenvalues; i++)
            assert_true(f[l].eigenvalue[i] <= f[l].eigenvalue[i - 1]);
    }
    assert_true(f[1].product_rank < f[1].rank && f[1].product_rank < f[0].product_rank);
    bk_test_model_close(m);
}

/* The number of lanes matters to rounding only. */
static void lanes_agree(void **state)
{
    (void)state;
    bk_probe_figures f[2][LAYERS];
    for (int i = 0; i < 2; i++) {
        bk_test_model *m = open_model(i ? 8 : 1);
        scale_queries(m, 8.0f);
        probe(m, f[i]);
        bk_test_model_close(m);
    }
    for (int l = 0; l < LAYERS; l++) {
        bk_check_error(fabs(f[0][l].distance - f[1][l].distance), 1e-5, "distance");
        bk_check_error(fabs(f[0][l].product_rank - f[1][l].product_rank), 1e-4, "product");
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uniform_attention),
        cmocka_unit_test(figures_are_those_of_the_matrices),
        cmocka_unit_test(lanes_agree),
    };
    bk_test_ranks_start(&argc, &argv);
    bk_set_place(count_place);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
