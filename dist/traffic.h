/* dist/traffic.h - what this rank sends, by the part of a step that sends it, and how long it
 * waited there.
 *
 * Bytes are those that this rank hands to other ranks: point to point as sent; in MPI_Alltoall(v)
 * what is for others; in MPI_Allgather the own part once for each other rank; in MPI_Allreduce the
 * vector once, whatever the library makes of it.  One call of an MPI collective is one message. */
#ifndef BK_DIST_TRAFFIC_H
#define BK_DIST_TRAFFIC_H

#include <stdint.h>

typedef enum bk_traffic_part {
    BK_TRAFFIC_REDUCE,  /* gradient buckets: reduce-scatter */
    BK_TRAFFIC_GATHER,  /* parameter buckets (gradients with zero 0): all-gather */
    BK_TRAFFIC_AGREE,   /* the message of the step, errors */
    BK_TRAFFIC_LOSS,    /* sums of batch-wise losses */
    BK_TRAFFIC_ROUTE,   /* sums of routers */
    BK_TRAFFIC_EXPERT,  /* rows to experts and back, and their counts */
    BK_TRAFFIC_TEACHER, /* rows of a teacher that has ranks of its own, and what is asked of it */
    BK_TRAFFIC_REST,    /* data sets, checkpoints */
    BK_TRAFFIC_PARTS
} bk_traffic_part;

typedef struct bk_traffic {
    int64_t bytes, messages;
    int64_t far;    /* messages to other nodes in exchanges, one for each rank that gets rows */
    double blocked; /* seconds inside blocking calls and waits */
} bk_traffic;

/* "reduce", "gather", "agree", "loss", "route", "expert", "teacher", "rest" */
const char *bk_traffic_name(bk_traffic_part part);

/* Not collective.  Since the start, for one part and for all together. */
bk_traffic bk_traffic_of(bk_traffic_part part);
bk_traffic bk_traffic_now(void);

/* x + y and x - y, field by field; the sum of all parts. */
bk_traffic bk_traffic_plus(bk_traffic x, bk_traffic y);
bk_traffic bk_traffic_minus(bk_traffic x, bk_traffic y);
bk_traffic bk_traffic_sum(const bk_traffic part[BK_TRAFFIC_PARTS]);

/* Counts one sent message; what was sent. */
void bk_traffic_add(bk_traffic_part part, int64_t bytes);
void bk_traffic_add_all(bk_traffic_part part, bk_traffic sent);
/* Counts the time since `start` (bk_seconds()) as blocked. */
void bk_traffic_blocked(bk_traffic_part part, double start);

#endif
