/* dist/trace.h - the collective calls of this rank: the last ones, a running hash that must be the
 * same on all ranks, and what the main thread waits in.
 *
 * Written by the main thread; what it waits in may be read by any. */
#ifndef BK_DIST_TRACE_H
#define BK_DIST_TRACE_H

#include "dist/comm.h"

typedef enum bk_call {
    BK_CALL_BARRIER,
    BK_CALL_BROADCAST,
    BK_CALL_SUM,
    BK_CALL_MAX,
    BK_CALL_LANE_SUM,
    BK_CALL_GATHER,
    BK_CALL_ALLGATHER,
    BK_CALL_ALLTOALL,
    BK_CALL_ALLTOALLV, /* its bytes differ from rank to rank: they are not in the hash */
    BK_CALL_REDUCE_SCATTER,
    BK_CALL_BUCKET, /* reduction of a bucket of gradients; the sequence is the bucket's number */
    BK_CALL_SEND,
    BK_CALL_RECEIVE,
    BK_CALLS
} bk_call;

/* Calls in the order of which all ranks agree. */
typedef enum bk_call_line {
    BK_LINE_ALL,    /* on communicators of all ranks of a world */
    BK_LINE_BUCKET, /* starts of buckets of all ranks: they fall between the others as messages
                       arrive */
    BK_LINE_GROUP,  /* of some ranks: groups, point to point; in no hash */
    BK_LINES
} bk_call_line;

typedef struct bk_trace_entry {
    bk_call call;
    bk_call_line line;
    const char *comm;        /* name of the communicator */
    int64_t bytes, sequence; /* of this rank; number in its line, from 0 */
} bk_trace_entry;

/* What is the same on all ranks between two calls. */
typedef struct bk_trace_sum {
    int64_t calls;
    int64_t hash; /* of call, communicator, bytes and sequence of every entry; at least 0 */
} bk_trace_sum;

enum { BK_TRACE_ENTRIES = 64 };

/* Not collective.  Around a blocking call of MPI: recorded, and marked as what this rank waits in.
 */
void bk_trace_enter(const bk_comm *comm, bk_call call, int64_t bytes);
void bk_trace_leave(void);
/* Not collective.  A bucket sets out; and the wait for it, until bk_trace_leave. */
void bk_trace_bucket(const bk_comm *comm, int number, int64_t bytes);
void bk_trace_wait_bucket(const bk_comm *comm, int number, int64_t bytes);

/* Not collective.  The sum begins anew, where ranks part that make other calls from then on. */
void bk_trace_restart(void);
/* Not collective. */
bk_trace_sum bk_trace_now(void);
/* The last calls, oldest first; their number. */
int bk_trace_last(bk_trace_entry out[BK_TRACE_ENTRIES]);
const char *bk_call_name(bk_call call);

/* Not collective; any thread.  The call that the main thread is in or was in last; false: it is in
 * none. */
bool bk_trace_waits(bk_trace_entry *out);
/* Grows with everything that is recorded or marked.  Not collective; any thread. */
uint64_t bk_trace_changes(void);

/* Collective over a communicator of all ranks.  BK_FAULT when their calls differ, with the first
 * call in which the lowest such rank differs from rank 0, which prints that rank's last calls. */
BK_CHECKED bk_status bk_trace_compare(const bk_comm *comm);

#endif
