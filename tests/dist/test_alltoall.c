/* test: labels=unit,grad,mpi ranks=1,2,3,4 timeout=60 */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "dist/alltoall.h"

#include <string.h>

enum { C = 3 };

static int rank, size;
static const bk_comm *comm;

/* Rows from one rank to another; rank 1 sends nothing, rank 2 receives nothing. */
static int64_t rows_between(int from, int to)
{
    return from == 1 || to == 2 ? 0 : (from * 3 + to * 5 + 1) % 4;
}

/* A value that says where it comes from. */
static double mark(int from, int to, int64_t i)
{
    return 100.0 * from + 10.0 * to + (double)i;
}

static void set(const bk_tensor *x, void *data, int64_t i, double value)
{
    if (x->dtype == BK_F64)
        ((double *)data)[i] = value;
    else
        ((float *)data)[i] = (float)value;
}

static int64_t fill_counts(int64_t *send, int64_t *receive)
{
    int64_t rows = 0;
    for (int r = 0; r < size; r++) {
        rows += send[r] = rows_between(rank, r);
        receive[r] = rows_between(r, rank);
    }
    return rows;
}

static bk_tensor *marked_rows(bk_tape *t, int64_t rows, const int64_t *send)
{
    bk_tensor *x = bk_tape_variable(t, BK_SHAPE(rows, C));
    for (int64_t r = 0, at = 0; r < size; r++)
        for (int64_t i = 0; i < send[r] * C; i++)
            set(x, x->data, at++, mark(rank, (int)r, i));
    return x;
}

/* Dispatch puts every row where its count says; the gradient comes back the same way. */
static void dispatch(bk_dtype dtype)
{
    int64_t send[8], receive[8], rows = fill_counts(send, receive);
    bk_tape t = bk_test_tape(dtype, bk_lanes_single(1));
    bk_tensor *x = marked_rows(&t, rows, send);
    bk_tensor *y = bk_alltoall_rows(&t, comm, x, send, receive);
    void *grad = bk_grad(&t, y);
    for (int64_t r = 0, at = 0; r < size; r++)
        for (int64_t i = 0; i < receive[r] * C; i++, at++) {
            assert_true(bk_test_value(y, at) == mark((int)r, rank, i));
            set(y, grad, at, -mark((int)r, rank, i));
        }
    bk_tape_backward_seeded(&t);
    for (int64_t i = 0; i < rows * C; i++)
        assert_true(bk_test_grad(x, i) == -bk_test_value(x, i));
    bk_test_tape_free(&t);
}

static void rows_find_their_ranks(void **state)
{
    (void)state;
    dispatch(BK_F32);
    dispatch(BK_F64);
}

/* Dispatch and combine are inverse; a gradient that is already there is added to. */
static void there_and_back(void **state)
{
    int64_t send[8], receive[8], rows = fill_counts(send, receive);
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(1));
    bk_tensor *x = marked_rows(&t, rows, send);
    (void)state;
    bk_tensor *y = bk_alltoall_rows(&t, comm, x, send, receive);
    bk_tensor *z = bk_alltoall_rows(&t, comm, y, receive, send);
    bk_tensor *again = bk_alltoall_rows(&t, comm, x, send, receive);
    assert_int_equal(bk_rows(z), rows);
    assert_memory_equal(z->data, x->data, (size_t)bk_count(x) * sizeof(float));
    bk_test_seed_fill(&t, z, 1, -1.0, 1.0);
    memcpy(bk_grad(&t, again), again->data, (size_t)bk_count(again) * sizeof(float));
    bk_tape_backward_seeded(&t);
    for (int64_t i = 0; i < rows * C; i++) {
        float want = ((float *)x->data)[i] + ((float *)z->grad)[i];
        assert_true(((float *)x->grad)[i] == want);
    }
    bk_test_tape_free(&t);
}

/* No gradient reached this rank's output: backward takes part all the same. */
static void backward_is_collective(void **state)
{
    int64_t send[8], receive[8], rows = fill_counts(send, receive);
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(1));
    bk_tensor *x = marked_rows(&t, rows, send);
    (void)state;
    bk_tensor *y = bk_alltoall_rows(&t, comm, x, send, receive);
    if (rank == 0)
        bk_test_seed_fill(&t, y, 1, 1.0, 2.0);
    bk_tape_backward_seeded(&t);
    for (int64_t r = 0, at = 0; r < size; r++)
        for (int64_t i = 0; i < send[r] * C; i++, at++)
            assert_true(r == 0 ? bk_test_grad(x, at) >= 1.0 : bk_test_grad(x, at) == 0.0);
    bk_test_tape_free(&t);
}

/* Rank r has (r + 1) % 3 rows. */
static void gathered_rows(bk_dtype dtype)
{
    int64_t count[8], total = 0;
    for (int r = 0; r < size; r++)
        total += count[r] = (r + 1) % 3;
    bk_tape t = bk_test_tape(dtype, bk_lanes_single(1));
    bk_tensor *x = bk_tape_variable(&t, BK_SHAPE(count[rank], C));
    for (int64_t i = 0; i < bk_count(x); i++)
        set(x, x->data, i, mark(rank, 0, i));
    bk_tensor *y = bk_allgather_rows(&t, comm, x, count);
    assert_int_equal(bk_rows(y), total);
    void *grad = bk_grad(&t, y);
    for (int64_t r = 0, at = 0; r < size; r++)
        for (int64_t i = 0; i < count[r] * C; i++, at++) {
            assert_true(bk_test_value(y, at) == mark((int)r, 0, i));
            set(y, grad, at, mark((int)r, 0, i) + 1000.0 * rank);
        }
    bk_tape_backward_seeded(&t);
    for (int64_t i = 0; i < bk_count(x); i++) /* of all ranks, summed */
        assert_true(bk_test_grad(x, i) == size * mark(rank, 0, i) + 1000.0 * size * (size - 1) / 2);
    bk_test_tape_free(&t);
}

static void gather_and_sum(void **state)
{
    (void)state;
    gathered_rows(BK_F32);
    gathered_rows(BK_F64);
}

/* A constant input gets no gradient, and does not break the exchange. */
static void constants_may_travel(void **state)
{
    int64_t send[8], receive[8], rows = fill_counts(send, receive);
    bk_tape t = bk_test_tape(BK_F32, bk_lanes_single(1));
    bk_tensor *x = marked_rows(&t, rows, send);
    (void)state;
    x->needs_grad = false;
    bk_tensor *y = bk_alltoall_rows(&t, comm, x, send, receive);
    assert_false(y->needs_grad);
    bk_tape_backward_seeded(&t);
    assert_null(x->grad);
    bk_test_tape_free(&t);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_find_their_ranks),  cmocka_unit_test(there_and_back),
        cmocka_unit_test(backward_is_collective), cmocka_unit_test(gather_and_sum),
        cmocka_unit_test(constants_may_travel),
    };
    bk_test_ranks_start(&argc, &argv);
    comm = bk_test_world()->world;
    rank = bk_mpi_rank();
    size = bk_mpi_size();
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
