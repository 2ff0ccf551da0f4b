/* dist/shard.h - ZeRO-1: optimizer state lives with the segment of the gradients that a rank owns.
 *
 * A run is the part of one parameter that lies in one segment: the unit of the update and of
 * checkpoints. */
#ifndef BK_DIST_SHARD_H
#define BK_DIST_SHARD_H

#include "core/optim.h"
#include "dist/bucket.h"

typedef struct bk_run {
    const bk_parameter *parameter;
    int64_t first, count; /* elements of the parameter */
    float *m, *v;         /* NULL where the optimizer has none */
} bk_run;

typedef struct bk_shard {
    bk_run *own; /* owned by this rank alone: what it saves */
    int64_t owned;
    bk_run *update; /* what it updates: the same with zero 1, everything with zero 0 */
    int64_t updates;
    int64_t moment_floats; /* floats of one moment on this rank */
} bk_shard;

/* Not collective.  `moments`: 0, 1 or 2 arrays of state; zero: 0 or 1. */
bk_shard *bk_shard_new(bk_arena *arena, const bk_reduction *r, const bk_slab *slab, int moments,
                       int zero);

/* One update of every run: `u` carries lr, decay (used where the parameter decays), clip and step.
 */
void bk_shard_update(const bk_shard *shard, const bk_slab *slab, const bk_optimizer_kind *kind,
                     const void *config, const bk_update *u);

#endif
