/* dist/bucket.h - the reduction of gradients: buckets of the slab, reduce-scatter by recursive
 * halving (distance 1 first, so that level j is level log2(m)+j of the lane tree), started during
 * backward, polled from core; and the all-gather of parameters beside the next forward pass. */
#ifndef BK_DIST_BUCKET_H
#define BK_DIST_BUCKET_H

#include "core/param.h"
#include "core/tape.h"
#include "dist/comm.h"
#include "dist/traffic.h"

typedef struct bk_reduction bk_reduction;

/* The part of a bucket that this rank owns after reduce-scatter, in floats relative to the bucket.
 */
typedef struct bk_segment {
    int64_t lo, hi;
} bk_segment;

/* `overlap`: start buckets during backward.  Lives on `arena`. */
bk_reduction *bk_reduction_new(bk_arena *arena, const bk_world *world, bk_slab *slab,
                               const bk_lanes *lanes, bool overlap);
bk_segment bk_reduction_segment(const bk_reduction *r, int bucket);

/* Before backward: resets the readiness of all buckets and hangs itself on tape->grad_ready. */
void bk_reduction_begin(bk_reduction *r, bk_tape *tape);
/* Not collective.  Moves the buckets that are on their way; part of the poll hook. */
void bk_bucket_poll(void);
/* Collective.  After backward: finishes all buckets, and a gather that is still under way.
 * slab->grad then holds, in the own segments, the sums over all ranks (second uses added). */
void bk_reduction_finish(bk_reduction *r);
/* ---- bucket_gather.c ---- */

/* Collective.  Hands the own segments of `array` (laid out like slab->value) to all ranks. */
void bk_reduction_allgather(bk_reduction *r, float *array);
/* Collective.  Begins to hand the own segments of slab->value to all ranks, parameters after the
 * update: in the order in which forward reads them, moved by core's polls, and each use of a
 * parameter on `tape` waits for its bucket (tape->parameter_needed).  Until the gather is finished
 * nobody writes slab->value or reads the others' segments of it but through the tape.  Its
 * traffic is counted when it is finished.  Without overlap, and for ranks no power of two, all is
 * there on return. */
void bk_reduction_gather_begin(bk_reduction *r, bk_tape *tape);
/* Collective.  Waits for what is still under way; nothing is fine. */
void bk_reduction_gather_finish(bk_reduction *r);

/* Not collective.  What this rank sends for one bucket, each way, by the formula: n (P-1)/P bytes
 * in log2 P messages (one call of MPI for a P that is no power of two), P the ranks that the bucket
 * is reduced over.  And in one step: BK_TRAFFIC_REDUCE all buckets, BK_TRAFFIC_GATHER those of a
 * first use. */
bk_traffic bk_bucket_formula(const bk_reduction *r, int bucket);
bk_traffic bk_reduction_formula(const bk_reduction *r, bk_traffic_part part);

/* Per block (bucket length / L floats; any other P: one block = the own segment) sums of squares of
 * the own segments, as records in the order that bk_reduction_norm adds up.  `nonfinite` counts
 * values that are not finite. */
int64_t bk_reduction_norm_records(const bk_reduction *r);
void bk_reduction_squares(const bk_reduction *r, double *records, int64_t *nonfinite);
/* From the records of all ranks (size rows of bk_reduction_norm_records, rank order): the global
 * norm, the same double on every rank and for every P that divides the lanes. */
double bk_reduction_norm(const bk_reduction *r, const double *all_records);

#endif
