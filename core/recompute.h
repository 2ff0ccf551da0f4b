/* core/recompute.h - activations made twice instead of kept (Chen et al. 2016, "Training deep nets
 * with sublinear memory cost"). */
#ifndef BK_CORE_RECOMPUTE_H
#define BK_CORE_RECOMPUTE_H

#include "core/tape.h"

/* A stretch of a model: y of x's shape, from x by ops alone.  No terms of the loss and no state:
 * it runs twice, and random draws depend on their counters alone.  `context` lives until backward
 * has passed. */
typedef bk_tensor *bk_stretch(void *context, bk_tape *t, bk_tensor *x);

/* y = stretch(x) as one node that keeps x; what lies between is on t->inner, given back at once and
 * made again, to the same bits, in backward.  Where the tape does not record, nothing is made
 * again.  Without t->inner the stretch runs on the tape itself.  Collective if its ops are. */
bk_tensor *bk_recompute(bk_tape *t, bk_stretch *stretch, void *context, bk_tensor *x);

#endif
