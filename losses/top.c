#include "losses/top.h"

#include "core/blas.h"
#include "core/vector.h"
#include "losses/row.h"

#include <float.h>
#include <math.h>

/* ---- out of whole rows ---- */

static void select_rows(bk_tape *t, const bk_loss_args *a, double temperature, const bk_top *top)
{
    const bk_tensor *x = a->teacher;
    const bk_row_kernels *kernel = bk_rows_of(x->dtype);
    int64_t n = bk_cols(x), k = top->k;
    size_t size = bk_dtype_size(x->dtype);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    bk_row_room work = bk_row_room_new(t, x->dtype, n);
    char *log_q = (char *)(uintptr_t)top->log_q;
    int32_t *index = (int32_t *)(uintptr_t)top->index;
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (bk_count(x) > 65536)
    for (int64_t i = 0; i < bk_rows(x); i++) {
        const char *row = (const char *)x->data + (size_t)(i * n) * size;
        if (!bk_row_valid(a, i))
            continue;
        kernel->select(n, row, k, index + i * k);
        kernel->coarse_logs(n, row, temperature, k, index + i * k, bk_row_room_own(&work),
                            log_q + (size_t)(i * (k + 1)) * size);
    }
    bk_arena_release(t->scratch, mark);
}

/* ---- out of the largest logits ---- */

static int64_t column_of(const bk_teacher_top *from, double temperature)
{
    int64_t c = 0;
    while (c < from->temperatures && from->temperature[c] != temperature)
        c++;
    BK_ASSERT(c < from->temperatures, "the teacher has no log-sum-exp at temperature %g",
              temperature);
    return c;
}

/* What the classes of S leave of 1; less than rounding of the log-sum-exp can tell from nothing
 * counts as that much, so that its logarithm is one. */
static double log_of_rest(bk_dtype dtype, double sum)
{
    double least = dtype == BK_F64 ? DBL_EPSILON : (double)FLT_EPSILON;
    return log(1.0 - sum < least ? least : 1.0 - sum); /* NaN stays */
}

static void copy_row(const bk_teacher_top *from, int64_t column, double temperature, bk_dtype dtype,
                     int64_t i, const bk_top *top)
{
    int64_t k = top->k;
    double lse = bk_real_get(from->dtype, from->lse, i * from->temperatures + column), sum = 0.0;
    for (int64_t j = 0; j < k; j++) {
        double log_q = bk_real_get(from->dtype, from->value, i * from->k + j) / temperature - lse;
        ((int32_t *)(uintptr_t)top->index)[i * k + j] = from->index[i * from->k + j];
        bk_real_put(dtype, (void *)(uintptr_t)top->log_q, i * (k + 1) + j, log_q);
        sum += bk_exp_one(log_q);
    }
    bk_real_put(dtype, (void *)(uintptr_t)top->log_q, i * (k + 1) + k,
                log_of_rest(from->dtype, sum));
}

static void copy_rows(const bk_loss_args *a, double temperature, const bk_top *top)
{
    int64_t column = column_of(a->teacher_top, temperature);
    for (int64_t i = 0; i < bk_rows(a->logits); i++)
        if (bk_row_valid(a, i))
            copy_row(a->teacher_top, column, temperature, a->logits->dtype, i, top);
}

/* All V classes were handed over: whole rows again. */
static const bk_tensor *spread_rows(bk_tape *t, const bk_loss_args *a)
{
    const bk_teacher_top *from = a->teacher_top;
    int64_t rows = bk_rows(a->logits), n = bk_cols(a->logits);
    bk_tensor *x = bk_tape_constant(t, a->logits->dtype, BK_SHAPE(rows, n));
    for (int64_t i = 0; i < rows * n; i++)
        if (bk_row_valid(a, i / n))
            bk_real_put(x->dtype, x->data, i / n * n + from->index[i],
                        bk_real_get(from->dtype, from->value, i));
    return x;
}

/* ---- both ---- */

static void add_tail(bk_tape *t, const bk_loss_args *a, const bk_top *top)
{
    int64_t rows = bk_rows(a->logits);
    bk_tensor *value = bk_tape_constant(t, BK_F64, BK_SHAPE(t->lanes.count));
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    double *rest = BK_ZNEW(t->scratch, double, rows), weight = bk_row_weight(a, BK_MEAN);
    for (int64_t i = 0; i < rows; i++)
        if (bk_row_valid(a, i))
            rest[i] = weight * bk_exp_one(bk_real_get(a->logits->dtype, top->log_q,
                                                      i * (top->k + 1) + top->k));
    bk_row_sum_lanes(t, rows, rest, value->data);
    bk_arena_release(t->scratch, mark);
    bk_tape_add_term(t, "teacher_tail", 0, value, 0.0);
}

bk_top bk_top_read(bk_tape *t, const bk_loss_args *a, int64_t option, double temperature,
                   const bk_tensor **teacher)
{
    int64_t rows = bk_rows(a->logits), classes = bk_cols(a->logits);
    int64_t most = a->teacher_top ? a->teacher_top->k : classes, k = option > 0 ? option : most;
    BK_ASSERT(k <= most || most == classes, "%lld of the %lld classes of a teacher", (long long)k,
              (long long)most);
    *teacher = NULL;
    if (k >= classes) {
        *teacher = a->teacher_top ? spread_rows(t, a) : a->teacher;
        return (bk_top){.k = 0};
    }
    bk_top top = {.k = k,
                  .index = BK_ZNEW(t->arena, int32_t, rows * k),
                  .log_q = bk_arena_zalloc(t->arena, (size_t)(rows * (k + 1)) *
                                                         bk_dtype_size(a->logits->dtype))};
    if (a->teacher_top)
        copy_rows(a, temperature, &top);
    else
        select_rows(t, a, temperature, &top);
    add_tail(t, a, &top);
    return top;
}
