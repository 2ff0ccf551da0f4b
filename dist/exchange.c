#include "dist/exchange.h"

#include "core/log.h"
#include "dist/internal.h"
#include "dist/trace.h"

#include <string.h>

/* One all-to-all: counts and places of [size] in elements of the type of a row. */
typedef struct hop {
    const bk_comm *comm;
    const void *send;
    void *receive;
    int *send_count, *send_place, *receive_count, *receive_place;
} hop;

struct bk_exchange {
    bk_exchange_rows rows;
    const bk_comm *comm;
    MPI_Datatype row;
    int unit; /* elements to a row */
    MPI_Request request;
    hop first, second; /* without a relay only the first */
    bool passed;       /* the second hop is on its way, or there is none */
    bk_exchange *next; /* begun later */
};

/* Oldest first. */
static bk_exchange *under_way;

int bk_mpi_rows(int64_t rows)
{
    if (rows >= INT32_MAX)
        bk_fatal("%lld rows in one exchange are more than MPI can count (2^31): use more "
                 "ranks or a smaller batch",
                 (long long)rows);
    return (int)rows;
}

/* ---- hops ---- */

static hop hop_of(bk_arena *arena, const bk_comm *comm)
{
    int size = comm->size, *list = BK_NEW(arena, int, 4 * size);
    return (hop){.comm = comm,
                 .send_count = list,
                 .send_place = list + size,
                 .receive_count = list + 2 * size,
                 .receive_place = list + 3 * size};
}

/* Rows of rank r, at a place or behind those of the ranks before it. */
static void set_rows(const bk_exchange *x, int *count, int *place, int64_t rows, int64_t at)
{
    *count = bk_mpi_rows(rows * x->unit);
    *place = bk_mpi_rows((at + rows) * x->unit) - *count;
}

/* Counts what it sends, to others and, of those, to other nodes. */
static void start(bk_exchange *x, const hop *h)
{
    const bk_comm *c = h->comm;
    bk_traffic sent = {.messages = 1};
    for (int r = 0; r < c->size; r++) {
        sent.bytes += r == c->rank ? 0 : h->send_count[r] / x->unit * (int64_t)x->rows.bytes;
        sent.far += c->node && c->node[r] != c->node[c->rank] && h->send_count[r] > 0;
    }
    BK_MPI(MPI_Ialltoallv(h->send, h->send_count, h->send_place, x->row, h->receive,
                          h->receive_count, h->receive_place, x->row, c->handle, &x->request));
    bk_traffic_add_all(x->comm->part, sent);
}

static void copy_own(const bk_exchange_rows *r)
{
    BK_ASSERT(r->send_count[0] == r->receive_count[0], "rows to oneself differ");
    memcpy((char *)r->receive + (size_t)r->receive_place[0] * r->bytes,
           (const char *)r->send + (size_t)r->send_place[0] * r->bytes,
           (size_t)r->send_count[0] * r->bytes);
}

/* ---- every rank to every rank ---- */

static void make_direct(bk_exchange *x, bk_arena *arena)
{
    const bk_exchange_rows *r = &x->rows;
    hop *h = &x->first;
    *h = hop_of(arena, x->comm);
    h->send = r->send;
    h->receive = r->receive;
    for (int i = 0; i < x->comm->size; i++) {
        set_rows(x, &h->send_count[i], &h->send_place[i], r->send_count[i], r->send_place[i]);
        set_rows(x, &h->receive_count[i], &h->receive_place[i], r->receive_count[i],
                 r->receive_place[i]);
    }
    x->passed = true;
}

/* ---- two hops: to the neighbour with the receiver's place, then to the receiver's node ---- */

static int64_t passing(const bk_exchange *x, int local, int node)
{
    return bk_relay_rows(x->comm, x->rows.relay, x->rows.exchange, local, node);
}

/* `count` rows behind the last ones. */
static char *append(const bk_exchange *x, char *to, const char *from, int64_t count)
{
    memcpy(to, from, (size_t)count * x->rows.bytes);
    return to + (size_t)count * x->rows.bytes;
}

static const char *row(const bk_exchange *x, const void *data, int64_t i)
{
    return (const char *)data + (size_t)i * x->rows.bytes;
}

/* Rows for each place on a node, node by node; rows from each neighbour. */
static int64_t count_first(bk_exchange *x)
{
    const bk_levels *v = x->comm->levels;
    int64_t out = 0, in = 0;
    for (int local = 0; local < v->each; local++) {
        int64_t mine = 0, theirs = 0;
        for (int node = 0; node < v->nodes; node++) {
            mine += x->rows.send_count[v->rank[node * v->each + local]];
            theirs += passing(x, local, node);
        }
        set_rows(x, &x->first.send_count[local], &x->first.send_place[local], mine, out);
        set_rows(x, &x->first.receive_count[local], &x->first.receive_place[local], theirs, in);
        out += mine;
        in += theirs;
    }
    return out > in ? out : in;
}

/* Rows for each node, neighbour by neighbour; rows from each node. */
static int64_t count_second(bk_exchange *x)
{
    const bk_levels *v = x->comm->levels;
    int64_t out = 0, in = 0;
    for (int node = 0; node < v->nodes; node++) {
        int64_t mine = 0, theirs = 0;
        for (int local = 0; local < v->each; local++) {
            mine += passing(x, local, node);
            theirs += x->rows.receive_count[v->rank[node * v->each + local]];
        }
        set_rows(x, &x->second.send_count[node], &x->second.send_place[node], mine, out);
        set_rows(x, &x->second.receive_count[node], &x->second.receive_place[node], theirs, in);
        out += mine;
        in += theirs;
    }
    return out > in ? out : in;
}

/* A rank's rows for the first hop: by place on a node, then by node. */
static void lay_out(const bk_exchange *x, char *to)
{
    const bk_levels *v = x->comm->levels;
    const bk_exchange_rows *r = &x->rows;
    for (int local = 0; local < v->each; local++)
        for (int node = 0; node < v->nodes; node++) {
            int rank = v->rank[node * v->each + local];
            to = append(x, to, row(x, r->send, r->send_place[rank]), r->send_count[rank]);
        }
}

/* What came from the neighbours, each node by node, as the second hop sends it: by node, then by
 * neighbour. */
static void regroup(const bk_exchange *x)
{
    const bk_levels *v = x->comm->levels;
    char *to = (char *)(uintptr_t)x->second.send;
    for (int node = 0; node < v->nodes; node++)
        for (int local = 0; local < v->each; local++) {
            int64_t at = x->first.receive_place[local] / x->unit;
            for (int before = 0; before < node; before++)
                at += passing(x, local, before);
            to = append(x, to, row(x, x->first.receive, at), passing(x, local, node));
        }
}

/* Each node's rows lie sender by sender. */
static void put_in_place(const bk_exchange *x)
{
    const bk_levels *v = x->comm->levels;
    const bk_exchange_rows *r = &x->rows;
    const char *from = x->second.receive;
    for (int i = 0; i < v->nodes * v->each; i++) {
        int64_t count = r->receive_count[v->rank[i]];
        append(x, (char *)(uintptr_t)row(x, r->receive, r->receive_place[v->rank[i]]), from, count);
        from += (size_t)count * r->bytes;
    }
}

/* Two rooms: rows leave from one and arrive in the other, in both hops. */
static void make_relayed(bk_exchange *x, bk_arena *arena)
{
    const bk_levels *v = x->comm->levels;
    x->first = hop_of(arena, v->inner);
    x->second = hop_of(arena, v->cross);
    int64_t first = count_first(x), second = count_second(x);
    size_t bytes = (size_t)(first > second ? first : second) * x->rows.bytes;
    char *out = bk_arena_alloc(arena, bytes), *in = bk_arena_alloc(arena, bytes);
    x->first.send = x->second.send = out;
    x->first.receive = x->second.receive = in;
    lay_out(x, out);
}

/* Starts the second hops of those whose first is over, oldest first: all ranks start them in the
 * same order.  With `last` waits for those up to it. */
static void pass_on(const bk_exchange *last)
{
    for (bk_exchange *x = under_way; x; x = x->next) {
        int over = x->passed;
        if (!over && last)
            BK_MPI(MPI_Wait(&x->request, MPI_STATUS_IGNORE));
        else if (!over)
            BK_MPI(MPI_Test(&x->request, &over, MPI_STATUS_IGNORE));
        if (!x->passed && (over || last)) {
            regroup(x);
            start(x, &x->second);
            x->passed = true;
        }
        if (!x->passed || x == last)
            return;
    }
}

/* ---- begin and end ---- */

static int64_t bytes_of(const bk_comm *comm, const bk_exchange_rows *r)
{
    int64_t rows = 0;
    for (int i = 0; i < comm->size; i++)
        rows += r->send_count[i];
    return rows * (int64_t)r->bytes;
}

static void enlist(bk_exchange *x)
{
    bk_exchange **end = &under_way;
    while (*end)
        end = &(*end)->next;
    *end = x;
}

bk_exchange *bk_exchange_begin(const bk_comm *comm, bk_arena *arena, const bk_exchange_rows *rows)
{
    bk_exchange *x = BK_ZNEW(arena, bk_exchange, 1);
    x->rows = *rows;
    x->comm = comm;
    if (bk_comm_size(comm) == 1) {
        copy_own(rows);
        return x;
    }
    double begun = bk_seconds();
    x->unit = bk_row_type(rows->bytes, &x->row);
    (rows->relay ? make_relayed : make_direct)(x, arena);
    bk_trace_enter(comm, BK_CALL_ALLTOALLV, bytes_of(comm, rows));
    start(x, &x->first);
    bk_trace_leave();
    bk_traffic_blocked(comm->part, begun);
    enlist(x);
    return x;
}

void bk_exchange_finish(bk_exchange *x)
{
    bk_exchange **link = &under_way;
    if (bk_comm_size(x->comm) == 1)
        return;
    double begun = bk_seconds();
    bk_trace_enter(x->comm, BK_CALL_ALLTOALLV, 0);
    pass_on(x);
    BK_MPI(MPI_Wait(&x->request, MPI_STATUS_IGNORE));
    bk_trace_leave();
    if (x->rows.relay)
        put_in_place(x);
    if (x->row != MPI_BYTE)
        BK_MPI(MPI_Type_free(&x->row));
    while (*link != x)
        link = &(*link)->next;
    *link = x->next;
    bk_traffic_blocked(x->comm->part, begun);
}

void bk_exchange_poll(void)
{
    pass_on(NULL);
    for (bk_exchange *x = under_way; x; x = x->next) {
        int here; /* bk_exchange_finish asks again */
        BK_MPI(MPI_Test(&x->request, &here, MPI_STATUS_IGNORE));
    }
}
