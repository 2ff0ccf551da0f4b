/* jobs/preset.h - lists of losses by name: an entry {kind: preset, name: official, task: cola}
 * under `loss` stands for the entries below, with T and alpha of the task.
 *
 *   official   the GLUE recipe of "Sinkhorn Distance Minimization for Knowledge Distillation"
 *              (LREC-COLING 2024; values of the authors' code), with one lane a process to the bit:
 *                cross_entropy  weight 1 - alpha
 *                kl             weight alpha, T, no T^2, without the teacher's entropy;
 *                               T falls to 1 where the task says so
 *                sinkd          weight 0.8 x 0.001, T = 2, epsilon 0.1, 20 iterations, unrolled,
 *                               summed over the rows of a lane
 *              task t0: cross_entropy 1, kl 0.1 at T = 1.
 *   default    the same with a sinkd whose weight does not grow with the ranks: mean over the
 *              global batch, weight 0.0008 B for the task's batch B.  Without a task:
 *              cross_entropy 0.2, kl 0.8 at T = 2 times T^2, sinkd 0.8. */
#ifndef BK_JOBS_PRESET_H
#define BK_JOBS_PRESET_H

#include "core/option.h"

typedef struct bk_preset {
    const char *name, *summary, *source;
    const bk_option *options; /* keys beside kind and name */
} bk_preset;

extern const bk_preset bk_presets[]; /* ended by one without a name */

/* list: the value of `loss`.  *out: the same with every preset replaced by its entries, which stand
 * where the preset stood; the list itself where there is none.  BK_USAGE for an unknown name, task
 * or key. */
BK_CHECKED bk_status bk_presets_expand(bk_arena *arena, bk_value *list, bk_value **out);

#endif
