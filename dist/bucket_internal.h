/* dist/bucket_internal.h - what the files of the gradient reduction share; nobody else includes it.
 */
#ifndef BK_DIST_BUCKET_INTERNAL_H
#define BK_DIST_BUCKET_INTERNAL_H

#include "dist/bucket.h"
#include "dist/internal.h"

/* Buckets that are on their way at once.  A level of one needs a poll to be finished: alone it
 * would wait log2 P polls for each bucket. */
enum { BK_FLIGHTS = 4 };

/* A bucket on its way: at level log2(distance) of the exchange. */
typedef struct bk_flight {
    int bucket; /* -1: free */
    int turn;   /* it was the turn-th to start */
    int distance;
    int64_t lo, hi;  /* floats of the bucket that are still ours, or (gather) already here */
    float *incoming; /* [room]; of a reduction */
    int64_t room;    /* floats: half of the longest bucket that it can take */
    MPI_Request request[2];
} bk_flight;

/* The all-gather of parameters beside the next forward pass (bucket_gather.c). */
typedef struct bk_gather {
    int *order; /* [buckets] in which forward reads them */
    int buckets, next;
    bool *missing; /* [buckets of the slab] parts of it are not here yet */
    bool active;
    bk_tape *tape;
    bk_traffic sent; /* counted when all of it is */
    bk_flight flight[BK_FLIGHTS];
} bk_gather;

struct bk_reduction {
    const bk_world *world;
    bk_slab *slab;
    bk_lanes lanes;
    bool overlap, exact;
    int64_t experts;    /* of the model, over all ranks */
    int64_t local_most; /* experts on the fullest rank */
    int *second_use;    /* [buckets] bucket of use 1 of the bucket of use 0, or -1 */
    int *tag;           /* [buckets] of its messages; the same on all ranks that reduce it */
    int next;           /* bucket to start: they start in index order on all ranks */
    bool active;        /* between begin and finish */
    bk_flight flight[BK_FLIGHTS];
    bk_gather gather;
};

/* The ranks that a bucket is reduced over. */
static inline const bk_comm *bk_bucket_comm(const bk_reduction *r, const bk_bucket *b)
{
    return b->expert < 0 ? r->world->world : r->world->edp_buckets;
}

/* The flight that started first, or NULL. */
bk_flight *bk_flight_oldest(bk_flight flight[BK_FLIGHTS]);
/* Whether both messages of its level are there. */
bool bk_flight_landed(bk_flight *f);
/* Waits for them, and counts the time. */
void bk_flight_wait(const bk_reduction *r, bk_flight *f, bk_traffic_part part);

/* Moves what can be moved without waiting. */
void bk_gather_progress(bk_reduction *r);
void bk_gather_prepare(bk_reduction *r, bk_arena *arena);
/* From now on core's polls move what is under way in this reduction; NULL: nothing is. */
void bk_reduction_poll(bk_reduction *r);

/* For the trace: its number among the buckets of its communicator, and its length. */
static inline int bk_bucket_number(const bk_reduction *r, int bucket)
{
    return r->tag[bucket] / 2;
}
static inline int64_t bk_bucket_bytes(const bk_bucket *b)
{
    return b->length * (int64_t)sizeof(float);
}

static inline float *bk_bucket_grad(const bk_reduction *r, const bk_bucket *b)
{
    return r->slab->grad + b->grad_offset;
}

#endif
