/* test: labels=unit,grad,mpi ranks=1,2,3,4 timeout=300 */
/* What every loss owes, for each line of kinds.def: a gradient that is the derivative, the same
 * numbers on any number of ranks, dropped rows that leave no trace, nothing from nothing. */
#include "tests/support/check.h"
#include "tests/support/losses.h"
#include "tests/support/ranks.h"

#include <glob.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { B = 12, V = 7 };

static void gradients_are_derivatives(void **state)
{
    (void)state;
    for (int i = 0; bk_losses[i]; i++)
        bk_test_loss_gradient(bk_losses[i]->name, NULL);
}

static void names_are_found(void **state)
{
    (void)state;
    for (int i = 0; bk_losses[i]; i++)
        assert_ptr_equal(bk_loss_find(bk_losses[i]->name), bk_losses[i]);
    assert_null(bk_loss_find("no such loss"));
}

/* A file that defines a kind is in the table. */
static void the_table_is_complete(void **state)
{
    const char *source = getenv("BIRKHOFF_SOURCE");
    char pattern[4096], line[512];
    glob_t files;
    int defined = 0, listed = 0;
    (void)state;
    snprintf(pattern, sizeof pattern, "%s/losses/*.c", source ? source : ".");
    assert_int_equal(glob(pattern, 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        FILE *file = fopen(files.gl_pathv[i], "r");
        assert_non_null(file);
        while (fgets(line, sizeof line, file))
            defined += strncmp(line, "const bk_loss_kind bk_loss_", 27) == 0;
        fclose(file);
    }
    globfree(&files);
    while (bk_losses[listed])
        listed++;
    assert_int_equal(defined, listed);
}

static void no_rows_no_loss(void **state)
{
    bk_test_batch none = bk_test_batch_new(0, V), masked = bk_test_batch_new(B, V);
    (void)state;
    masked.valid = calloc(B, sizeof *masked.valid);
    for (int i = 0; bk_losses[i]; i++)
        for (int k = 0; k < 2; k++) {
            const bk_test_batch *b = k == 0 ? &none : &masked;
            bk_test_result r = bk_test_loss(
                bk_losses[i]->name, b,
                &(bk_test_way){.dtype = BK_F64, .lanes = 4, .comm = bk_test_world()->loss});
            assert_true(r.loss == 0.0);
            for (int64_t j = 0; j < b->rows * V; j++)
                assert_true(r.grad[j] == 0.0);
            bk_test_result_free(&r);
        }
    bk_test_batch_free(&none);
    bk_test_batch_free(&masked);
}

/* The batch without its invalid rows; labels of dropped rows do not matter. */
static bk_test_batch without_invalid(const bk_test_batch *b)
{
    bk_test_batch kept = bk_test_batch_new(b->rows, b->classes);
    size_t row = (size_t)b->classes * sizeof(double);
    kept.rows = 0;
    for (int64_t i = 0; i < b->rows; i++) {
        if (!b->valid[i])
            continue;
        memcpy(kept.student + kept.rows * b->classes, b->student + i * b->classes, row);
        memcpy(kept.teacher + kept.rows * b->classes, b->teacher + i * b->classes, row);
        kept.labels[kept.rows++] = b->labels[i];
    }
    return kept;
}

static void masked_rows_are_removed_rows(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    b.valid = calloc(B, sizeof *b.valid);
    for (int i = 0; i < B; i++)
        b.valid[i] = i % 3 != 1;
    bk_test_batch kept = without_invalid(&b);
    for (int i = 0; bk_losses[i]; i++) {
        const char *name = bk_losses[i]->name;
        bk_test_way w = {.dtype = BK_F64};
        bk_test_result a = bk_test_loss(name, &b, &w), c = bk_test_loss(name, &kept, &w);
        bk_check_error(bk_test_error(1, &a.loss, &c.loss, 1e-30), 1e-14, "masked: %s", name);
        for (int64_t j = 0, k = 0; j < B; j++) {
            for (int64_t v = 0; v < V && !b.valid[j]; v++)
                assert_true(a.grad[j * V + v] == 0.0);
            if (b.valid[j])
                bk_check_error(bk_test_error(V, a.grad + j * V, c.grad + V * k++, 1e-3), 1e-12,
                               "row %d of masked %s", (int)j, name);
        }
        bk_test_result_free(&a);
        bk_test_result_free(&c);
    }
    bk_test_batch_free(&b);
    bk_test_batch_free(&kept);
}

/* Rank r holds rows cut[r] .. cut[r+1]-1: even, ragged, all on the last, all on the first. */
static void cut_rows(int size, int how, int64_t *cut)
{
    static const int64_t ragged[] = {0, 0, 5, 5, B};
    for (int r = 0; r <= size; r++)
        cut[r] = how == 0   ? B * r / size
                 : how == 1 ? (r == size ? B : ragged[r])
                 : how == 2 ? (r == size ? B : 0)
                            : (r == 0 ? 0 : B);
}

static void ranks_agree_with_one(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    const bk_comm *comm = bk_test_world()->loss;
    int64_t cut[5];
    for (int i = 0; bk_losses[i]; i++) {
        const char *name = bk_losses[i]->name;
        bk_test_result one = bk_test_loss(name, &b, &(bk_test_way){.dtype = BK_F64});
        for (int how = 0; how < 4; how++) {
            cut_rows(bk_comm_size(comm), how, cut);
            bk_test_result all =
                bk_test_loss(name, &b, &(bk_test_way){.dtype = BK_F64, .comm = comm, .cut = cut});
            bk_test_same_loss(&b, &all, &one, 1e-12, 1e-8, name);
            bk_test_result_free(&all);
        }
        bk_test_result_free(&one);
    }
    bk_test_batch_free(&b);
}

/* 4 lanes on 1, 2 or 4 ranks: the same bits.  3 ranks: to rounding. */
static void lanes_make_the_same_bits(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    const bk_comm *comm = bk_test_world()->loss;
    b.valid = calloc(B, sizeof *b.valid);
    for (int i = 0; i < B; i++)
        b.valid[i] = i % 5 != 2;
    for (int i = 0; bk_losses[i]; i++)
        for (int k = 0; k < 2; k++) {
            const char *name = bk_losses[i]->name;
            bk_test_way w = {.dtype = k == 0 ? BK_F32 : BK_F64, .lanes = 4};
            bk_test_result one = bk_test_loss(name, &b, &w);
            w.comm = comm;
            bk_test_result all = bk_test_loss(name, &b, &w);
            if (4 % bk_comm_size(comm) == 0) {
                assert_memory_equal(&all.loss, &one.loss, sizeof one.loss);
                assert_memory_equal(all.grad, one.grad, B * V * sizeof *one.grad);
            }
            bk_test_same_loss(&b, &all, &one, 1e-12, k == 0 ? 1e-6 : 1e-8, name);
            bk_test_result_free(&one);
            bk_test_result_free(&all);
        }
    bk_test_batch_free(&b);
}

static void lanes_change_rounding_only(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    for (int i = 0; bk_losses[i]; i++)
        for (int k = 0; k < 2; k++) {
            const char *name = bk_losses[i]->name;
            bk_test_way w = {.dtype = k == 0 ? BK_F32 : BK_F64, .lanes = 1};
            bk_test_result one = bk_test_loss(name, &b, &w);
            for (w.lanes = 2; w.lanes <= 4; w.lanes *= 2) {
                bk_test_result more = bk_test_loss(name, &b, &w);
                bk_test_same_loss(&b, &more, &one, k == 0 ? 1e-6 : 1e-12, k == 0 ? 1e-6 : 1e-8,
                                  name);
                bk_test_result_free(&more);
            }
            bk_test_result_free(&one);
        }
    bk_test_batch_free(&b);
}

static void single_precision_is_near(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    for (int i = 0; bk_losses[i]; i++) {
        const char *name = bk_losses[i]->name;
        bk_test_result exact = bk_test_loss(name, &b, &(bk_test_way){.dtype = BK_F64}),
                       rough = bk_test_loss(name, &b, &(bk_test_way){.dtype = BK_F32});
        bk_test_same_loss(&b, &rough, &exact, 1e-6, 1e-5, name);
        bk_test_result_free(&exact);
        bk_test_result_free(&rough);
    }
    bk_test_batch_free(&b);
}

/* A sum is the mean times the number of rows that count. */
static void sum_is_mean_times_rows(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    int64_t labelled = 0;
    for (int i = 0; i < B; i++)
        labelled += b.labels[i] >= 0;
    assert_true(labelled < B);
    for (int i = 0; bk_losses[i]; i++) {
        const char *name = bk_losses[i]->name;
        double rows = bk_losses[i]->flags & BK_LOSS_LABELS ? (double)labelled : B;
        bk_test_way w = {.dtype = BK_F64, .options = "reduction=sum"};
        bk_test_result sum = bk_test_loss(name, &b, &w);
        w.options = "reduction=mean";
        bk_test_result mean = bk_test_loss(name, &b, &w);
        mean.loss *= rows;
        for (int j = 0; j < B * V; j++)
            mean.grad[j] *= rows;
        bk_test_same_loss(&b, &mean, &sum, 1e-14, 1e-14, name);
        bk_test_result_free(&sum);
        bk_test_result_free(&mean);
    }
    bk_test_batch_free(&b);
}

/* softmax does not see a constant: the gradient of a row sums to 0. */
static void gradient_rows_sum_to_zero(void **state)
{
    (void)state;
    bk_test_batch b = bk_test_batch_new(B, V);
    for (int i = 0; bk_losses[i]; i++) {
        if (bk_losses[i]->flags & BK_LOSS_LAYERS)
            continue; /* not of logits */
        bk_test_result r = bk_test_loss(bk_losses[i]->name, &b, &(bk_test_way){.dtype = BK_F64});
        double largest = 0.0;
        for (int j = 0; j < B; j++) {
            double sum = 0.0;
            for (int v = 0; v < V; v++) {
                sum += r.grad[j * V + v];
                largest = fmax(largest, fabs(r.grad[j * V + v]));
            }
            assert_true(fabs(sum) < 1e-15);
        }
        assert_true(largest > 1e-4);
        bk_test_result_free(&r);
    }
    bk_test_batch_free(&b);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_found),
        cmocka_unit_test(the_table_is_complete),
        cmocka_unit_test(gradients_are_derivatives),
        cmocka_unit_test(no_rows_no_loss),
        cmocka_unit_test(masked_rows_are_removed_rows),
        cmocka_unit_test(ranks_agree_with_one),
        cmocka_unit_test(lanes_make_the_same_bits),
        cmocka_unit_test(lanes_change_rounding_only),
        cmocka_unit_test(single_precision_is_near),
        cmocka_unit_test(sum_is_mean_times_rows),
        cmocka_unit_test(gradient_rows_sum_to_zero),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
