#include "dist/step.h"

#include "core/log.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "dist/internal.h"
#include "dist/trace.h"

#include <string.h>

/* Layout of one rank's part, in 8-byte words: status, flags, sum of the calls, lane records, block
 * records. */
enum { CALLS = 1 + BK_STEP_FLAGS, HEAD = CALLS + sizeof(bk_trace_sum) / sizeof(int64_t) };

static int64_t rows_of_rank(const bk_lanes *lanes, int size, int rank)
{
    return bk_lanes_exact(lanes, size)
               ? bk_lanes_of_rank(lanes->total, lanes->batch, rank, size).count
               : 1;
}

/* Lanes of the fullest rank: every part has room for as many. */
static int64_t most_rows(const bk_lanes *lanes, int size)
{
    return bk_lanes_exact(lanes, size) ? lanes->total / size : 1;
}

static void pack(const bk_comm *comm, const bk_lanes *lanes, const bk_step_message *m, double *part)
{
    int64_t head[HEAD] = {(int64_t)m->status};
    bk_trace_sum calls = bk_trace_now();
    memcpy(head + 1, m->flag, sizeof m->flag);
    memcpy(head + CALLS, &calls, sizeof calls);
    memcpy(part, head, sizeof head);
    double *record = part + HEAD;
    if (bk_lanes_exact(lanes, comm->size))
        memcpy(record, m->record, (size_t)(lanes->count * m->terms) * sizeof *record);
    else
        bk_lane_tree_values(lanes->count, m->terms, m->record, record, comm->scratch);
    if (m->blocks > 0)
        memcpy(record + most_rows(lanes, comm->size) * m->terms, m->block,
               (size_t)m->blocks * sizeof *record);
}

static void sum_flags(const bk_comm *comm, const double *all, int64_t width, bk_step_message *m)
{
    memset(m->flag, 0, sizeof m->flag);
    for (int r = 0; r < comm->size; r++) {
        int64_t head[HEAD];
        memcpy(head, all + r * width, sizeof head);
        if (head[0] > (int64_t)m->status)
            m->status = (bk_status)head[0];
        for (int i = 0; i < BK_STEP_FLAGS; i++)
            m->flag[i] += head[1 + i];
    }
}

/* Whether all ranks have made the calls of rank 0. */
static bool same_calls(const bk_comm *comm, const double *all, int64_t width)
{
    bk_trace_sum first, other;
    memcpy(&first, all + CALLS, sizeof first);
    for (int r = 1; r < comm->size; r++) {
        memcpy(&other, all + r * width + CALLS, sizeof other);
        if (other.calls != first.calls || other.hash != first.hash)
            return false;
    }
    return true;
}

static void sum_records(const bk_comm *comm, const bk_lanes *lanes, const double *all,
                        int64_t width, bk_step_message *m)
{
    int64_t rows = 0;
    double *ordered =
        BK_NEW(comm->scratch, double, most_rows(lanes, comm->size) * comm->size * m->terms);
    for (int r = 0; r < comm->size; r++) {
        int64_t count = rows_of_rank(lanes, comm->size, r);
        memcpy(ordered + rows * m->terms, all + r * width + HEAD,
               (size_t)(count * m->terms) * sizeof *ordered);
        rows += count;
    }
    if (bk_lanes_exact(lanes, comm->size)) {
        bk_lane_tree_values(rows, m->terms, ordered, m->sum, comm->scratch);
        return;
    }
    memcpy(m->sum, ordered, (size_t)m->terms * sizeof *ordered);
    for (int64_t r = 1; r < rows; r++)
        for (int64_t i = 0; i < m->terms; i++)
            m->sum[i] += ordered[r * m->terms + i];
}

void bk_step_agree(const bk_comm *comm, const bk_lanes *lanes, bk_step_message *m)
{
    bk_arena_mark mark = bk_arena_get_mark(comm->scratch);
    bk_status own = m->status;
    int64_t lane_words = most_rows(lanes, comm->size) * m->terms;
    int64_t width = HEAD + lane_words + m->blocks;
    double *part = BK_ZNEW(comm->scratch, double, width);
    double *all = BK_NEW(comm->scratch, double, width * comm->size);
    pack(comm, lanes, m, part);
    double start = bk_seconds();
    bk_trace_enter(comm, BK_CALL_ALLGATHER, width * (int64_t)sizeof *part);
    BK_MPI(MPI_Allgather(part, (int)width, MPI_DOUBLE, all, (int)width, MPI_DOUBLE, comm->handle));
    if (comm->size > 1)
        bk_traffic_add(comm->part, width * (comm->size - 1) * (int64_t)sizeof *part);
    bk_trace_leave();
    bk_traffic_blocked(comm->part, start);
    bool same = same_calls(comm, all, width);
    sum_flags(comm, all, width, m);
    sum_records(comm, lanes, all, width, m);
    for (int r = 0; r < comm->size; r++)
        memcpy(m->all_blocks + r * m->blocks, all + r * width + HEAD + lane_words,
               (size_t)m->blocks * sizeof *all);
    bk_arena_release(comm->scratch, mark);
    if (m->status != BK_OK)
        m->status = bk_agree(comm, own);
    else if (!same)
        m->status = bk_trace_compare(comm);
}
