/* dist/cost.h - what messages cost by the alpha-beta-gamma model (Hockney 1994; Chan et al. 2007,
 * "Collective communication: theory, practice, and experience"), and the measurement of its three
 * numbers.  Bounds stand beside measured times in reports. */
#ifndef BK_DIST_COST_H
#define BK_DIST_COST_H

#include "dist/bucket.h"
#include "dist/comm.h"
#include "dist/reduce_scatter.h"

typedef struct bk_cost {
    double alpha; /* seconds of latency of a message */
    double beta;  /* seconds a byte sent */
    double gamma; /* seconds a byte added */
} bk_cost;

/* Collective.  Ping-pong of 8 B (alpha) and 4 MiB (beta) between the first and the last rank while
 * the others wait, medians of `repeats` (at most 1000); gamma from fp32 additions of 4 MiB on this
 * rank.  The same on every rank.  One rank: alpha = beta = 0. */
bk_cost bk_cost_measure(const bk_comm *comm, int repeats);

/* Seconds to add n bytes over P ranks and hand everyone the sum:
 *   tree (halving and gather)  2 log2 P alpha + 2 (P-1)/P n beta + (P-1)/P n gamma
 *   ring                       2 (P-1) alpha  + the same
 *   library: the better of both and of recursive doubling, log2 P (alpha + n beta + n gamma). */
double bk_cost_allreduce(const bk_cost *c, bk_reduce_algorithm algorithm, int ranks, double bytes);

/* Seconds of the messages of all buckets, one after the other, in the reduction (BK_TRAFFIC_REDUCE)
 * or the all-gather (BK_TRAFFIC_GATHER): messages alpha + bytes beta of bk_reduction_formula. */
double bk_cost_messages(const bk_cost *c, const bk_reduction *r, bk_traffic_part part);

/* Seconds by which reduction and gather lengthen a step whose passes take `forward` and `backward`
 * seconds (0: no overlap): the messages of the reduction that do not fit beside backward, those of
 * the last bucket at least; the additions, which the computing cores do; and the messages of the
 * gather that do not fit beside the next forward, those of its first bucket at least. */
double bk_cost_exposed(const bk_cost *c, const bk_reduction *r, double forward, double backward);

#endif
