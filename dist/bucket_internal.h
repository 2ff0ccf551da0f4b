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
    int distance;
    int64_t lo, hi;  /* floats of the bucket that are still ours */
    float *incoming; /* [room] */
    int64_t room;    /* floats: half of the longest bucket that it can take */
    MPI_Request request[2];
} bk_flight;

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
    bk_flight flight[BK_FLIGHTS];
};

/* The ranks that a bucket is reduced over. */
static inline const bk_comm *bk_bucket_comm(const bk_reduction *r, const bk_bucket *b)
{
    return b->expert < 0 ? r->world->world : r->world->edp_buckets;
}

static inline float *bk_bucket_grad(const bk_reduction *r, const bk_bucket *b)
{
    return r->slab->grad + b->grad_offset;
}

#endif
