/* core/slots.h - small problems side by side in the slots of a vector: [...][slot], 16 floats or 8
 * doubles, so that loops over rows and columns need no sum across a vector.  A slot's bits depend
 * on its own problem alone. */
#ifndef BK_CORE_SLOTS_H
#define BK_CORE_SLOTS_H

#include "core/real.h"

enum { BK_SLOT_BYTES = 64, BK_SLOTS = 16 }; /* of a vector; the most in one */

/* Problems in a vector of `dtype` (BK_F32 or BK_F64). */
static inline int64_t bk_slots(bk_dtype dtype)
{
    return dtype == BK_F64 ? BK_SLOT_BYTES / 8 : BK_SLOT_BYTES / 4;
}

#ifdef BK_REAL
enum { SLOTS = BK_SLOT_BYTES / sizeof(real) };

/* One number of each problem. */
typedef struct slots {
    real x[SLOTS];
} slots;

/* As one vector loop: unrolled into single statements first, gcc 12 mixes conditions of slots up.
 */
#define EACH _Pragma("omp simd") for (int s = 0; s < SLOTS; s++)
#endif

/* Between matrices by themselves and slots.  Slot s of a block [n,n][slot] is x[s], [order[s],
 * order[s]], times factor[s]; pack fills the rest of the block with zeros. */
typedef struct bk_slots_pack {
    int64_t n, used; /* order of the block; slots in use */
    const int64_t *order;
    void *const *x;
    const double *factor; /* NULL: 1 */
    void *block;
} bk_slots_pack;

typedef struct bk_slots_kernels {
    void (*pack)(const bk_slots_pack *p);
    void (*unpack)(const bk_slots_pack *p);
} bk_slots_kernels;

BK_KERNEL_TABLES(bk_slots_kernels);

#endif
