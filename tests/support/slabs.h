/* tests/support/slabs.h - a slab over the ranks whose gradients are known in closed form, lane by
 * lane, so that every reduction can be held against a plain sum made on one rank. */
#ifndef BK_TESTS_SUPPORT_SLABS_H
#define BK_TESTS_SUPPORT_SLABS_H

#include "dist/bucket.h"

typedef struct bk_test_layout {
    int64_t lanes;         /* a power of two */
    int64_t bucket_floats; /* target length of a bucket */
    int expert;            /* expert-parallel degree; 0 counts as 1 */
    int64_t experts;       /* 0: no experts */
    bool overlap;
} bk_test_layout;

typedef struct bk_test_slab {
    bk_test_layout layout;
    bk_arena *arena;
    bk_world *world;
    bk_lanes lanes;
    bk_slab *slab; /* of this rank */
    bk_reduction *reduction;
    bk_tape *tape;
    bk_slab *whole; /* of a job on one rank: every expert; its gradient holds the sums over all
                       lanes, second uses added */
} bk_test_slab;

/* Collective.  Parameters of odd sizes: dense ones, a tied one, `experts` experts in two layers,
 * dealt out as models do. */
bk_test_slab bk_test_slab_open(const bk_test_layout *layout);
void bk_test_slab_close(bk_test_slab *s); /* Collective. */

/* Collective.  One backward of step `step`: begins the reduction, fills the gradients of the own
 * lanes, fires grad_ready for each use and finishes.  Fills whole->grad too. */
void bk_test_slab_backward(bk_test_slab *s, int64_t step);

/* The parameter of `whole` that p of the own slab is. */
const bk_parameter *bk_test_slab_twin(const bk_test_slab *s, const bk_parameter *p);

/* The reduction has the bits of the lane tree on this number of ranks. */
bool bk_test_slab_exact(const bk_test_slab *s);

/* The norm of whole->grad by its definition: per block of bucket length / L floats, eight
 * accumulators; blocks by the lane tree; dense first, then expert after expert. */
double bk_test_slab_norm(const bk_test_slab *s);

#endif
