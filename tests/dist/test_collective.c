/* test: labels=unit,mpi ranks=1,2,3,4,8 timeout=300 */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "core/rng.h"
#include "core/transport/sinkhorn.h"
#include "dist/collective.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int rank, size;
static const bk_comm *comm;

static void *need(size_t bytes)
{
    void *memory = calloc(bytes + 1, 1);
    assert_non_null(memory);
    return memory;
}

/* ---- sums ---- */

/* Values of very different magnitude, so that another order of additions shows. */
static double term(int64_t lane, int64_t i)
{
    double x = bk_fill((uint64_t)i, (uint64_t)(1 + lane), -1.0, 1.0);
    return ldexp(x, (int)(bk_mix64((uint64_t)(lane * 131 + i)) % 60) - 30);
}

/* node(h,i) = node(h-1,2i) + node(h-1,2i+1). */
static double tree(int64_t height, int64_t lane, int64_t i)
{
    return height == 0 ? term(lane, i)
                       : tree(height - 1, 2 * lane, i) + tree(height - 1, 2 * lane + 1, i);
}

static double *own_terms(const bk_lanes *lanes, int64_t n)
{
    double *local = need((size_t)(lanes->count * n) * sizeof *local);
    for (int64_t l = 0; l < lanes->count; l++)
        for (int64_t i = 0; i < n; i++)
            local[l * n + i] = term(lanes->first + l, i);
    return local;
}

/* The same bits on all ranks: every rank's copy is compared with that of rank 0. */
static void same_everywhere(int64_t n, const double *x)
{
    double *first = need((size_t)n * sizeof *first);
    memcpy(first, x, (size_t)n * sizeof *x);
    bk_broadcast(comm, 0, first, (size_t)n * sizeof *x);
    assert_memory_equal(first, x, (size_t)n * sizeof *x);
    free(first);
}

static void check_lane_sums(int height, int64_t n)
{
    bk_lanes lanes = bk_lanes_of_rank((int64_t)1 << height, (int64_t)1 << height, rank, size);
    double *local = own_terms(&lanes, n), *sum = need((size_t)n * sizeof *sum);
    bk_traffic before = bk_traffic_now();
    bk_sum_lanes(comm, &lanes, n, local, sum);
    bk_traffic after = bk_traffic_now();
    for (int64_t i = 0; i < n; i++) {
        double want = tree(height, 0, i), scale = 0.0;
        for (int64_t l = 0; l < lanes.total; l++)
            scale += fabs(term(l, i));
        if (bk_lanes_exact(&lanes, size))
            assert_memory_equal(&sum[i], &want, sizeof want);
        else
            assert_true(fabs(sum[i] - want) <= 1e-14 * scale);
    }
    same_everywhere(n, sum);
    if (bk_lanes_exact(&lanes, size)) { /* log2 P messages of the whole vector */
        int levels = 0;
        while (1 << levels < size)
            levels++;
        assert_int_equal(after.bytes - before.bytes, levels * n * 8);
    }
    free(local);
    free(sum);
}

static void lane_sums_have_the_bits_of_the_tree(void **state)
{
    static const int64_t lengths[] = {1, 7, 20000};
    (void)state;
    for (int height = 0; height <= 5; height++)
        for (int k = 0; k < (height < 5 ? 2 : 3); k++)
            check_lane_sums(height, lengths[k]);
}

static void exactness_needs_a_power_of_two_that_divides(void **state)
{
    bk_lanes lanes = {.total = 4};
    static const int exact[] = {1, 2, 4}, rough[] = {3, 5, 6, 8, 16};
    (void)state;
    for (size_t i = 0; i < 3; i++)
        assert_true(bk_lanes_exact(&lanes, exact[i]));
    for (size_t i = 0; i < 5; i++)
        assert_false(bk_lanes_exact(&lanes, rough[i]));
}

/* NaN and Inf of any lane reach every rank. */
static void nan_passes_through(void **state)
{
    bk_lanes lanes = bk_lanes_of_rank(8, 8, rank, size);
    (void)state;
    for (int64_t bad = 0; bad < 8; bad++) {
        double *local = own_terms(&lanes, 3), sum[3];
        if (bad >= lanes.first && bad < lanes.first + lanes.count) {
            local[(bad - lanes.first) * 3] = NAN;
            local[(bad - lanes.first) * 3 + 2] = INFINITY;
        }
        bk_sum_lanes(comm, &lanes, 3, local, sum);
        assert_true(isnan(sum[0]) && isfinite(sum[1]) && isinf(sum[2]));
        free(local);
    }
}

/* Rule F1: terms become integers before they are added; any split over ranks gives the same sum. */
static void fixed_sums_are_exact_in_any_split(void **state)
{
    enum { T = 1000, E = 5 };
    double unit = ldexp(1.0, bk_fixed_bits(T));
    int64_t want[E] = {0}, blocks[E] = {0}, dealt[E] = {0};
    (void)state;
    for (int64_t i = 0; i < T; i++)
        for (int64_t e = 0; e < E; e++) {
            int64_t q = (int64_t)rint(bk_fill((uint64_t)(i * E + e), 9, 0.0, 1.0) * unit);
            want[e] += q;
            blocks[e] += i * size / T == rank ? q : 0;
            dealt[e] += i % size == rank ? q : 0;
        }
    bk_sum_i64(comm, E, blocks);
    bk_sum_i64(comm, E, dealt);
    assert_memory_equal(blocks, want, sizeof want);
    assert_memory_equal(dealt, want, sizeof want);
}

static void maxima(void **state)
{
    int64_t whole[] = {rank, -rank, INT64_MIN + rank};
    double real[] = {rank + 0.5, -rank - 0.5, rank == size - 1 ? INFINITY : -INFINITY};
    (void)state;
    bk_max_i64(comm, 3, whole);
    bk_max_f64(comm, 3, real);
    assert_true(whole[0] == size - 1 && whole[1] == 0 && whole[2] == INT64_MIN + size - 1);
    assert_true(real[0] == size - 0.5 && real[1] == -0.5 && real[2] == INFINITY);
}

/* The hooks that core calls are these sums. */
static void reducer_of_a_communicator(void **state)
{
    const bk_reducer *r = bk_comm_reducer(comm);
    bk_lanes lanes = bk_lanes_of_rank(size, size, rank, size);
    bk_arena *scratch = bk_arena_new("test");
    double one = 1.0, sum = 0.0, most = rank;
    int64_t count = 1;
    (void)state;
    bk_reduce_vector(r, &lanes, 1, &one, &sum, scratch);
    bk_reduce_fixed(r, 1, &count);
    bk_reduce_max(r, 1, &most);
    assert_true(sum == size && count == size && most == size - 1);
    bk_arena_free(scratch);
}

/* ---- exchanges ---- */

static void broadcasts_of_any_size(void **state)
{
    static const size_t sizes[] = {0, 1, 17, 100000};
    (void)state;
    for (int root = 0; root < size; root++)
        for (size_t k = 0; k < 4; k++) {
            unsigned char *data = need(sizes[k]);
            for (size_t i = 0; i < sizes[k] && rank == root; i++)
                data[i] = (unsigned char)(i * 7 + (size_t)root);
            bk_broadcast(comm, root, data, sizes[k]);
            for (size_t i = 0; i < sizes[k]; i++)
                assert_int_equal(data[i], (unsigned char)(i * 7 + (size_t)root));
            free(data);
        }
}

/* Ragged blocks, some of zero bytes, all of zero bytes. */
static void allgather_in_rank_order(void **state)
{
    (void)state;
    for (int scale = 0; scale < 2; scale++) {
        int64_t count[8], mine = scale * 5 * ((rank + 1) % 3), total = 0;
        bk_gather_counts(comm, mine, count);
        for (int r = 0; r < size; r++) {
            assert_int_equal(count[r], scale * 5 * ((r + 1) % 3));
            total += count[r];
        }
        unsigned char own[10], *all = need((size_t)total), *at = all;
        memset(own, rank + 1, sizeof own);
        bk_traffic before = bk_traffic_now();
        bk_allgather_bytes(comm, own, mine, count, all);
        assert_int_equal(bk_traffic_now().bytes - before.bytes, mine * (size - 1));
        for (int r = 0; r < size; r++)
            for (int64_t i = 0; i < count[r]; i++)
                assert_int_equal(*at++, r + 1);
        free(all);
    }
}

static void alltoall_of_counts(void **state)
{
    int32_t send[16], receive[16];
    (void)state;
    for (int r = 0; r < size; r++)
        for (int i = 0; i < 2; i++)
            send[2 * r + i] = 100 * rank + 10 * r + i;
    bk_alltoall_counts(comm, 2, send, receive);
    for (int r = 0; r < size; r++)
        for (int i = 0; i < 2; i++)
            assert_int_equal(receive[2 * r + i], 100 * r + 10 * rank + i);
}

/* Rows from one rank to another: ragged, many of them zero. */
static int64_t rows_between(int from, int to, int how)
{
    return how == 0 ? (from * 3 + to * 5) % 4 : how == 1 ? (from == 0 ? to : 0) : 0;
}

static void alltoallv_of_rows(void **state)
{
    enum { WIDTH = 3 };
    (void)state;
    for (int how = 0; how < 3; how++) {
        int64_t send_count[8], receive_count[8], sent = 0, received = 0, place = 0;
        for (int r = 0; r < size; r++) {
            sent += send_count[r] = rows_between(rank, r, how);
            received += receive_count[r] = rows_between(r, rank, how);
        }
        int32_t *send = need((size_t)sent * WIDTH * sizeof *send),
                *receive = need((size_t)received * WIDTH * sizeof *receive);
        for (int r = 0; r < size; r++)
            for (int64_t i = 0; i < send_count[r] * WIDTH; i++)
                send[place++] = 1000 * rank + 100 * r + (int32_t)i;
        bk_traffic before = bk_traffic_now();
        bk_alltoallv_rows(comm, WIDTH * sizeof *send, send, send_count, receive, receive_count);
        if (size > 1)
            assert_int_equal(bk_traffic_now().bytes - before.bytes,
                             (sent - send_count[rank]) * WIDTH * (int64_t)sizeof *send);
        place = 0;
        for (int r = 0; r < size; r++)
            for (int64_t i = 0; i < receive_count[r] * WIDTH; i++)
                assert_int_equal(receive[place++], 1000 * r + 100 * rank + (int32_t)i);
        free(send);
        free(receive);
    }
}

static void messages_of_any_size(void **state)
{
    static const int64_t sizes[] = {0, 1, 100000};
    (void)state;
    for (int k = 0; k < 3; k++) {
        unsigned char *data = need((size_t)sizes[k]);
        memset(data, rank == 0 ? 42 : 0, (size_t)sizes[k]);
        bk_traffic before = bk_traffic_now();
        for (int to = 1; to < size && rank == 0; to++)
            bk_send_bytes(comm, to, k, data, sizes[k]);
        assert_int_equal(bk_traffic_now().bytes - before.bytes,
                         rank == 0 ? (size - 1) * sizes[k] : 0);
        if (rank > 0)
            bk_receive_bytes(comm, 0, k, data, sizes[k]);
        for (int64_t i = 0; i < sizes[k]; i++)
            assert_int_equal(data[i], 42);
        free(data);
    }
}

static void one_rank_needs_no_communicator(void **state)
{
    int64_t count = 7, all = 0, rows = 2;
    int32_t send[] = {3, 4}, receive[2];
    char bytes[] = "abcd", out[5] = "";
    (void)state;
    bk_gather_counts(NULL, count, &all);
    bk_sum_i64(NULL, 1, &count);
    bk_alltoall_counts(NULL, 2, send, receive);
    assert_true(all == 7 && count == 7 && receive[0] == 3 && receive[1] == 4);
    int64_t four = 4;
    bk_allgather_bytes(NULL, bytes, 4, &four, out);
    assert_string_equal(out, "abcd");
    bk_alltoallv_rows(NULL, 2, "wxyz", &rows, out, &rows);
    assert_string_equal(out, "wxyz");
}

/* Nobody passes before all have come: each leaves a byte in a file that all share. */
static void barrier_waits_for_all(void **state)
{
    (void)state;
    for (int turn = 0; turn < 20; turn++) {
        char path[] = "/tmp/birkhoff-barrier-XXXXXX";
        struct stat seen;
        int file = rank == 0 ? mkostemp(path, O_APPEND) : -1;
        bk_broadcast(comm, 0, path, sizeof path);
        file = rank == 0 ? file : open(path, O_WRONLY | O_APPEND);
        assert_true(file >= 0);
        assert_int_equal(write(file, "x", 1), 1);
        bk_barrier(comm);
        assert_int_equal(fstat(file, &seen), 0);
        assert_int_equal(seen.st_size, size);
        close(file);
        bk_barrier(comm);
        if (rank == 0)
            unlink(path);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lane_sums_have_the_bits_of_the_tree),
        cmocka_unit_test(exactness_needs_a_power_of_two_that_divides),
        cmocka_unit_test(nan_passes_through),
        cmocka_unit_test(fixed_sums_are_exact_in_any_split),
        cmocka_unit_test(maxima),
        cmocka_unit_test(reducer_of_a_communicator),
        cmocka_unit_test(broadcasts_of_any_size),
        cmocka_unit_test(allgather_in_rank_order),
        cmocka_unit_test(alltoall_of_counts),
        cmocka_unit_test(alltoallv_of_rows),
        cmocka_unit_test(messages_of_any_size),
        cmocka_unit_test(one_rank_needs_no_communicator),
        cmocka_unit_test(barrier_waits_for_all),
    };
    bk_test_ranks_start(&argc, &argv);
    comm = bk_test_world()->world;
    rank = bk_mpi_rank();
    size = bk_mpi_size();
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
