#include "tests/support/threads.h"

#include "tests/support/check.h"

#include <pthread.h>
#include <string.h>

typedef struct meeting {
    pthread_barrier_t barrier;
    int size;
    const void *posted[BK_TEST_THREADS];
    bk_lanes lanes[BK_TEST_THREADS];
} meeting;

typedef struct seat {
    meeting *meeting;
    int rank;
    pthread_t thread;
    void (*body)(void *, int, int, const bk_reducer *);
    void *context;
} seat;

static void wait_for_all(seat *s)
{
    pthread_barrier_wait(&s->meeting->barrier);
}

/* Shows `data` to the other ranks, which may read it until they have all waited again. */
static void post(seat *s, const void *data)
{
    s->meeting->posted[s->rank] = data;
    wait_for_all(s);
}

static void sum_vector(void *context, const bk_lanes *lanes, int64_t n, const double *local,
                       double *out)
{
    seat *s = context;
    meeting *m = s->meeting;
    bk_arena *arena = bk_arena_new("lane records");
    double *all = BK_NEW(arena, double, lanes->total *n);
    m->lanes[s->rank] = *lanes;
    post(s, local);
    for (int r = 0; r < m->size; r++)
        memcpy(all + m->lanes[r].first * n, m->posted[r],
               (size_t)(m->lanes[r].count * n) * sizeof *all);
    wait_for_all(s);
    bk_lane_tree_values(lanes->total, n, all, out, arena);
    bk_arena_free(arena);
}

static void sum_fixed(void *context, int64_t n, int64_t *x)
{
    seat *s = context;
    bk_arena *arena = bk_arena_new("sums");
    int64_t *sum = BK_ZNEW(arena, int64_t, n);
    post(s, x);
    for (int r = 0; r < s->meeting->size; r++)
        for (int64_t j = 0; j < n; j++)
            sum[j] += ((const int64_t *)s->meeting->posted[r])[j];
    wait_for_all(s);
    memcpy(x, sum, (size_t)n * sizeof *x);
    bk_arena_free(arena);
}

static void maximum(void *context, int64_t n, double *x)
{
    seat *s = context;
    bk_arena *arena = bk_arena_new("maxima");
    double *most = BK_NEW(arena, double, n);
    memcpy(most, x, (size_t)n * sizeof *x);
    post(s, x);
    for (int r = 0; r < s->meeting->size; r++)
        for (int64_t j = 0; j < n; j++) {
            double other = ((const double *)s->meeting->posted[r])[j];
            most[j] = other > most[j] ? other : most[j];
        }
    wait_for_all(s);
    memcpy(x, most, (size_t)n * sizeof *x);
    bk_arena_free(arena);
}

static void *sit(void *context)
{
    seat *s = context;
    bk_reducer reducer = {s, sum_vector, sum_fixed, maximum};
    s->body(s->context, s->rank, s->meeting->size, &reducer);
    return NULL;
}

void bk_test_threads(int size, void (*body)(void *, int, int, const bk_reducer *), void *context)
{
    meeting m = {.size = size};
    seat seats[BK_TEST_THREADS];
    assert_in_range(size, 1, BK_TEST_THREADS);
    assert_int_equal(pthread_barrier_init(&m.barrier, NULL, (unsigned)size), 0);
    for (int r = 0; r < size; r++) {
        seats[r] = (seat){.meeting = &m, .rank = r, .body = body, .context = context};
        assert_int_equal(pthread_create(&seats[r].thread, NULL, sit, &seats[r]), 0);
    }
    for (int r = 0; r < size; r++)
        assert_int_equal(pthread_join(seats[r].thread, NULL), 0);
    pthread_barrier_destroy(&m.barrier);
}
