/* test: labels=unit,mpi ranks=1,2,3,4 timeout=60 */
/* What travels where groups straddle: rows, sums of columns, transposed matrices; and that logits
 * which are not kept are sent again. */
#include "tests/support/check.h"
#include "tests/support/losses.h"
#include "tests/support/ranks.h"

#include "losses/sinkd.h"

#include <string.h>

static bk_tape tape; /* one lane a rank */

/* Rank r holds 2 r + 1 rows. */
static void open_call(bk_sinkd *s, bk_sinkd_config *c, const char *group)
{
    int64_t rows = 2 * bk_mpi_rank() + 1;
    bk_tape_begin(&tape);
    c->group = group;
    *s = (bk_sinkd){.config = c,
                    .args = {.comm = bk_test_world()->loss,
                             .logits = bk_tape_variable(&tape, BK_SHAPE(rows, 2))}};
    bk_sinkd_match_rows(&tape, s);
    bk_sinkd_make_blocks(&tape, s);
}

static const char *const groups[] = {"global", "2", "3", "5", "1"};
enum { GROUPS = 5 };

static void rows_reach_those_who_hold_them(void **state)
{
    (void)state;
    for (int k = 0; k < GROUPS; k++) {
        bk_sinkd_config c = {.epsilon = 1.0};
        bk_sinkd s;
        int64_t own[8][2], held[16][2];
        open_call(&s, &c, groups[k]);
        for (int64_t i = 0; i < s.rows; i++)
            own[i][0] = own[i][1] = 10 * (s.first + i);
        if (!s.shared)
            continue;
        bk_sinkd_exchange(&tape, &s, sizeof own[0], own, held);
        for (int64_t j = 0; j < s.columns; j++)
            assert_true(held[j][0] == 10 * (s.column + j) && held[j][1] == held[j][0]);
    }
}

/* Each rank adds 100 rank + column of its own rows' groups. */
static void sums_reach_all_rows_of_a_group(void **state)
{
    (void)state;
    for (int k = 0; k < GROUPS; k++) {
        bk_sinkd_config c = {.epsilon = 1.0};
        bk_sinkd s;
        double local[16], sum[16], most[16];
        open_call(&s, &c, groups[k]);
        for (int64_t j = 0; j < s.columns; j++)
            most[j] = local[j] = 1.0 + 100.0 * bk_mpi_rank() + (double)(s.column + j);
        bk_sinkhorn_sum(&s.problem, s.columns, local, sum);
        bk_reduce_max(s.problem.reducer, s.columns, most);
        for (int64_t j = 0; j < s.columns; j++) {
            double want = 0.0, largest = 0.0;
            for (int r = 0; r < bk_mpi_size(); r++) {
                int64_t first, last;
                bk_sinkd_span(&s, r, &first, &last);
                bool adds = s.column + j >= first && s.column + j < last;
                want += adds ? 1.0 + 100.0 * r + (double)(s.column + j) : 0.0;
                largest = adds ? 1.0 + 100.0 * r + (double)(s.column + j) : largest;
            }
            assert_true(sum[j] == want && most[j] == largest);
        }
        if (s.shared)
            assert_false(s.message->sunk);
    }
}

static void transpose_turns_every_group(void **state)
{
    (void)state;
    for (int k = 0; k < GROUPS; k++) {
        bk_sinkd_config c = {.epsilon = 1.0};
        bk_sinkd s;
        double *x[16], *y[16];
        open_call(&s, &c, groups[k]);
        for (int64_t n = 0; n < s.blocks; n++) {
            const bk_sinkhorn_block *b = &s.block[n];
            x[n] = BK_NEW(tape.arena, double, b->rows * b->columns);
            y[n] = BK_NEW(tape.arena, double, b->rows * b->columns);
            for (int64_t i = 0; i < b->rows * b->columns; i++)
                x[n][i] = 1000.0 * (double)(s.first + b->first + i / b->columns) +
                          (double)(s.column + b->column + i % b->columns);
        }
        bk_sinkd_transpose(&tape, &s, x, y);
        for (int64_t n = 0; n < s.blocks; n++) {
            const bk_sinkhorn_block *b = &s.block[n];
            for (int64_t i = 0; i < b->rows * b->columns; i++)
                assert_true(y[n][i] ==
                            (double)(s.first + b->first + i / b->columns) +
                                1000.0 * (double)(s.column + b->column + i % b->columns));
        }
    }
}

/* Whatever each rank could keep: ranks hold 1 to 10 rows of 50 numbers. */
static void what_is_not_kept_is_sent_again(void **state)
{
    static const char *const options[] = {"", "group=4", "debias=true chunk=16",
                                          "group=3 debias=true"};
    const int64_t cut[] = {0, 1, 5, 7, 10};
    size_t kept = bk_sinkd_kept;
    int64_t own[5];
    (void)state;
    for (int r = 0; r <= bk_mpi_size(); r++)
        own[r] = r == bk_mpi_size() ? 10 : cut[r];
    bk_test_batch b = bk_test_batch_new(10, 50);
    for (int k = 0; k < 4; k++)
        for (size_t rows = 0; rows < 10; rows++) {
            bk_test_way w = {.options = options[k],
                             .dtype = rows % 2 ? BK_F64 : BK_F32,
                             .cut = own,
                             .comm = bk_test_world()->loss};
            bk_test_result with = bk_test_loss("sinkd", &b, &w);
            bk_sinkd_kept = rows * 50 * bk_dtype_size(w.dtype);
            bk_test_result without = bk_test_loss("sinkd", &b, &w);
            bk_sinkd_kept = kept;
            assert_true(with.loss == without.loss);
            assert_memory_equal(with.grad, without.grad, 10 * 50 * sizeof *with.grad);
            bk_test_result_free(&with);
            bk_test_result_free(&without);
        }
    bk_test_batch_free(&b);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_reach_those_who_hold_them),
        cmocka_unit_test(sums_reach_all_rows_of_a_group),
        cmocka_unit_test(transpose_turns_every_group),
        cmocka_unit_test(what_is_not_kept_is_sent_again),
    };
    bk_test_ranks_start(&argc, &argv);
    int rank = bk_mpi_rank(), size = bk_mpi_size();
    tape = bk_test_tape(BK_F64, bk_lanes_of_rank(size, size, rank, size));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bk_test_tape_free(&tape);
    return bk_test_ranks_stop(failed);
}
