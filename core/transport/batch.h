/* core/transport/batch.h - many small entropic transport problems by a fixed number of half steps.
 *
 *   u = v = 0;  half step t = 0, 2, ..:  u_i = log a_i - LSE_j(S_ij + v_j)
 *               half step t = 1, 3, ..:  v_j = log b_j - LSE_i(S_ij + u_i)
 *   P = exp(S + u 1' + 1 v')
 *
 * No stopping test.  Problems stand in the slots of a vector, S[block][i][j][slot] with
 * 16 floats or 8 doubles, so that loops over i and j need no sum across a vector. */
#ifndef BK_CORE_TRANSPORT_BATCH_H
#define BK_CORE_TRANSPORT_BATCH_H

#include "core/transport/batch_kernel.h"

/* ceil(problems / slots) blocks, [block][i][j][slot]; slots past the last problem may hold
 * anything, with masses of 0. */
typedef struct bk_batch {
    bk_dtype dtype;
    int64_t problems, rows, columns, half_steps; /* rows, columns at most BK_BATCH_MOST */
    const void *s;                               /* [block][rows,columns][slot] */
    const void *a, *b;                           /* [block][rows][slot], [block][columns][slot]:
                                                    masses; 0 takes a row or column away */
} bk_batch;

/* Not collective.  plan[block][rows,columns][slot], 0 where a or b is. */
void bk_transport_batch(const bk_batch *batch, void *plan, bk_arena *scratch);

/* Not collective.  ds = dL/dS for g = dL/dP through all half steps (spec of transport, "unrolled"),
 * or through the last one alone, the other potential held constant.  The plan is computed anew. */
void bk_transport_batch_backward(const bk_batch *batch, bool last_only, const void *g, void *ds,
                                 bk_arena *scratch);

/* ---- one block, for callers with threads of their own: not collective, any thread ---- */

/* Bytes of work for a block. */
size_t bk_batch_work_size(bk_dtype dtype, const bk_batch_block *k);
/* k->plan from k->s; k->factor is set to a part of `work`. */
void bk_batch_block_forward(bk_dtype dtype, bk_batch_block *k, void *work);
/* k->ds from k->g and what the forward of the same k left; k->plan holds nothing of use
 * afterwards. */
void bk_batch_block_backward(bk_dtype dtype, bk_batch_block *k, void *work);

/* ---- one problem of any size, rows and columns with mass: not collective, any thread ---- */

/* Bytes of work for a problem. */
size_t bk_batch_single_size(bk_dtype dtype, int64_t rows, int64_t columns, int64_t half_steps);
/* k->plan from k->s; k->shift, k->part, k->v and k->work are set to parts of `work`. */
void bk_batch_single_forward(bk_dtype dtype, bk_batch_single *k, void *work);
/* k->ds from k->g and what the forward of the same k left. */
void bk_batch_single_backward(bk_dtype dtype, const bk_batch_single *k);

#endif
