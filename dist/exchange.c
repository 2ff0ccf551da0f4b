#include "dist/exchange.h"

#include "core/log.h"
#include "dist/internal.h"
#include "dist/trace.h"

#include <string.h>

struct bk_exchange {
    const bk_comm *comm;
    MPI_Datatype row;
    MPI_Request request;
    bk_exchange *next;
};

static bk_exchange *under_way;

static void copy_own(const bk_exchange_rows *r)
{
    BK_ASSERT(r->send_count[0] == r->receive_count[0], "rows to oneself differ");
    memcpy((char *)r->receive + (size_t)r->receive_place[0] * r->bytes,
           (const char *)r->send + (size_t)r->send_place[0] * r->bytes,
           (size_t)r->send_count[0] * r->bytes);
}

/* In elements of the type of a row, `unit` to a row; returns the number of rows. */
static int64_t fill(int size, int unit, const int64_t *count, const int64_t *place, int *list)
{
    int64_t rows = 0;
    for (int r = 0; r < size; r++) {
        BK_ASSERT((place[r] + count[r]) * unit < INT32_MAX, "%lld rows in one exchange",
                  (long long)(place[r] + count[r]));
        list[r] = (int)(count[r] * unit);
        list[size + r] = (int)(place[r] * unit);
        rows += count[r];
    }
    return rows;
}

static void start(bk_exchange *x, bk_arena *arena, const bk_exchange_rows *r)
{
    int size = x->comm->size, *out = BK_NEW(arena, int, 4 * size), *in = out + 2 * size;
    int unit = bk_row_type(r->bytes, &x->row);
    int64_t rows = fill(size, unit, r->send_count, r->send_place, out);
    fill(size, unit, r->receive_count, r->receive_place, in);
    bk_trace_enter(x->comm, BK_CALL_ALLTOALLV, (int64_t)r->bytes * rows);
    BK_MPI(MPI_Ialltoallv(r->send, out, out + size, x->row, r->receive, in, in + size, x->row,
                          x->comm->handle, &x->request));
    bk_trace_leave();
    bk_traffic_add(x->comm->part, (int64_t)r->bytes * (rows - r->send_count[x->comm->rank]));
}

bk_exchange *bk_exchange_begin(const bk_comm *comm, bk_arena *arena, const bk_exchange_rows *rows)
{
    bk_exchange *x = BK_NEW(arena, bk_exchange, 1);
    *x = (bk_exchange){.comm = comm, .next = under_way};
    if (bk_comm_size(comm) == 1) {
        copy_own(rows);
        return x;
    }
    double begun = bk_seconds();
    start(x, arena, rows);
    bk_traffic_blocked(comm->part, begun);
    under_way = x;
    return x;
}

void bk_exchange_finish(bk_exchange *x)
{
    bk_exchange **link = &under_way;
    if (bk_comm_size(x->comm) == 1)
        return;
    double begun = bk_seconds();
    bk_trace_enter(x->comm, BK_CALL_ALLTOALLV, 0);
    BK_MPI(MPI_Wait(&x->request, MPI_STATUS_IGNORE));
    bk_trace_leave();
    if (x->row != MPI_BYTE)
        BK_MPI(MPI_Type_free(&x->row));
    while (*link != x)
        link = &(*link)->next;
    *link = x->next;
    bk_traffic_blocked(x->comm->part, begun);
}

void bk_exchange_poll(void)
{
    for (bk_exchange *x = under_way; x; x = x->next) {
        int here; /* bk_exchange_finish asks again */
        BK_MPI(MPI_Test(&x->request, &here, MPI_STATUS_IGNORE));
    }
}
