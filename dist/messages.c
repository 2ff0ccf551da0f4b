#include "dist/messages.h"

#include "core/log.h"
#include "dist/internal.h"
#include "dist/trace.h"

struct bk_messages {
    const bk_comm *comm;
    bk_arena *arena;
    int count, room;
    MPI_Request *request;
    int64_t bytes; /* of all, for the trace */
    bool listed;
    bk_messages *next;
};

static bk_messages *under_way;

bk_messages *bk_messages_new(bk_arena *arena, const bk_comm *comm, int messages)
{
    bk_messages *x = BK_ZNEW(arena, bk_messages, 1);
    *x = (bk_messages){.comm = comm, .arena = arena, .room = messages};
    x->request = BK_NEW(arena, MPI_Request, messages);
    return x;
}

/* A message above the limit is several. */
static MPI_Request *next_request(bk_messages *x)
{
    if (x->count == x->room) {
        MPI_Request *wider = BK_NEW(x->arena, MPI_Request, 2 * x->room + 1);
        for (int i = 0; i < x->count; i++)
            wider[i] = x->request[i];
        x->request = wider;
        x->room = 2 * x->room + 1;
    }
    if (!x->listed) {
        x->next = under_way;
        under_way = x;
        x->listed = true;
    }
    return &x->request[x->count++];
}

static int piece(int64_t left)
{
    return left < BK_MESSAGE_MAX ? (int)left : BK_MESSAGE_MAX;
}

void bk_messages_send(bk_messages *x, int to, int tag, const void *data, int64_t bytes)
{
    for (int64_t done = 0; done < bytes; done += piece(bytes - done)) {
        int some = piece(bytes - done);
        BK_MPI(MPI_Isend((const char *)data + done, some, MPI_BYTE, to, tag, x->comm->handle,
                         next_request(x)));
        bk_traffic_add(x->comm->part, some);
    }
    x->bytes += bytes;
}

void bk_messages_receive(bk_messages *x, int from, int tag, void *data, int64_t bytes)
{
    for (int64_t done = 0; done < bytes; done += piece(bytes - done))
        BK_MPI(MPI_Irecv((char *)data + done, piece(bytes - done), MPI_BYTE, from, tag,
                         x->comm->handle, next_request(x)));
    x->bytes += bytes;
}

static void forget(bk_messages *x)
{
    bk_messages **link = &under_way;
    while (*link != x)
        link = &(*link)->next;
    *link = x->next;
    x->listed = false;
    x->count = 0;
}

void bk_messages_finish(bk_messages *x)
{
    if (!x || !x->listed)
        return;
    double begun = bk_seconds();
    bk_trace_enter(x->comm, BK_CALL_RECEIVE, x->bytes);
    BK_MPI(MPI_Waitall(x->count, x->request, MPI_STATUSES_IGNORE));
    bk_trace_leave();
    bk_traffic_blocked(x->comm->part, begun);
    forget(x);
}

void bk_messages_poll(void)
{
    for (bk_messages *x = under_way; x; x = x->next) {
        int all; /* bk_messages_finish asks again */
        BK_MPI(MPI_Testall(x->count, x->request, &all, MPI_STATUSES_IGNORE));
    }
}
