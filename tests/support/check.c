#include "tests/support/check.h"

#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bk_tape bk_test_tape(bk_dtype dtype, bk_lanes lanes)
{
    return (bk_tape){.arena = bk_arena_new("step"),
                     .scratch = bk_arena_new("scratch"),
                     .inner = bk_arena_new("block"),
                     .dtype = dtype,
                     .lanes = lanes,
                     .recording = true,
                     .seed = 1};
}

void bk_test_tape_free(bk_tape *t)
{
    bk_arena_free(t->arena);
    bk_arena_free(t->scratch);
    bk_arena_free(t->inner);
}

static void set(bk_dtype dtype, void *data, int64_t i, double value)
{
    if (dtype == BK_F64)
        ((double *)data)[i] = value;
    else
        ((float *)data)[i] = (float)value;
}

static double get(bk_dtype dtype, const void *data, int64_t i)
{
    return dtype == BK_F64 ? ((const double *)data)[i] : (double)((const float *)data)[i];
}

double bk_test_value(const bk_tensor *x, int64_t i)
{
    return get(x->dtype, x->data, i);
}

double bk_test_grad(const bk_tensor *x, int64_t i)
{
    return x->grad ? get(x->dtype, x->grad, i) : 0.0;
}

bk_tensor *bk_test_fill(bk_tape *t, int dims, const int64_t *shape, uint64_t tag, double lo,
                        double hi)
{
    bk_tensor *x = bk_tape_variable(t, dims, shape);
    for (int64_t i = 0; i < bk_count(x); i++)
        set(x->dtype, x->data, i, bk_fill((uint64_t)i, tag, lo, hi));
    return x;
}

void bk_test_seed_fill(bk_tape *t, bk_tensor *x, uint64_t tag, double lo, double hi)
{
    void *grad = bk_grad(t, x);
    for (int64_t i = 0; i < bk_count(x); i++)
        set(x->dtype, grad, i, bk_fill((uint64_t)i, tag, lo, hi));
}

/* ---- JSON ---- */

json_t *bk_test_golden(const char *name)
{
    const char *source = getenv("BIRKHOFF_SOURCE");
    char path[4096];
    json_error_t error;
    snprintf(path, sizeof path, "%s/tests/golden/%s", source ? source : ".", name);
    json_t *root = json_load_file(path, 0, &error);
    if (!root)
        fail_msg("%s: %s (line %d)", path, error.text, error.line);
    return root;
}

static int64_t count_numbers(const json_t *x)
{
    if (!json_is_array(x))
        return 1;
    int64_t count = 0;
    for (size_t i = 0; i < json_array_size(x); i++)
        count += count_numbers(json_array_get(x, i));
    return count;
}

static double *copy_numbers(const json_t *x, double *to)
{
    if (!json_is_array(x)) {
        *to = json_number_value(x);
        return to + 1;
    }
    for (size_t i = 0; i < json_array_size(x); i++)
        to = copy_numbers(json_array_get(x, i), to);
    return to;
}

double *bk_test_numbers(const json_t *array, int64_t *count)
{
    assert_non_null(array);
    *count = count_numbers(array);
    double *numbers = malloc((size_t)(*count + 1) * sizeof *numbers);
    assert_non_null(numbers);
    copy_numbers(array, numbers);
    return numbers;
}

bk_tensor *bk_test_json(bk_tape *t, const json_t *array)
{
    int64_t shape[BK_MAX_DIMS], count;
    int dims = 0;
    for (const json_t *x = array; json_is_array(x); x = json_array_get(x, 0))
        shape[dims++] = (int64_t)json_array_size(x);
    double *numbers = bk_test_numbers(array, &count);
    bk_tensor *x = bk_tape_variable(t, dims, shape);
    for (int64_t i = 0; i < count; i++)
        set(x->dtype, x->data, i, numbers[i]);
    free(numbers);
    return x;
}

/* ---- comparison ---- */

double bk_test_error(int64_t n, const double *x, const double *reference, double floor)
{
    double most = floor, worst = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double difference = fabs(x[i] - reference[i]);
        most = fmax(most, fabs(reference[i]));
        worst = difference > worst || isnan(difference) ? difference : worst;
        if (isnan(worst))
            return NAN;
    }
    return worst / most;
}

static double compare(const bk_tensor *x, const void *data, const json_t *reference, double floor)
{
    int64_t count;
    double *numbers = bk_test_numbers(reference, &count),
           *own = malloc((size_t)(count + 1) * sizeof *own);
    assert_non_null(own);
    assert_int_equal(count, bk_count(x));
    for (int64_t i = 0; i < count; i++)
        own[i] = data ? get(x->dtype, data, i) : 0.0;
    double error = bk_test_error(count, own, numbers, floor);
    free(numbers);
    free(own);
    return error;
}

double bk_test_data_error(const bk_tensor *x, const json_t *reference, double floor)
{
    return compare(x, x->data, reference, floor);
}

double bk_test_grad_error(const bk_tensor *x, const json_t *reference, double floor)
{
    return compare(x, x->grad, reference, floor);
}
