/* core/param.h - parameters: a registry of names and three flat arrays, the slab.
 *
 * A model declares its parameters once, in forward order.  bk_slab_layout then gives each a place:
 * buckets in reverse order of declaration (the order in which backward finishes them), dense and
 * expert parameters apart.  A parameter is a contiguous slice of a *logical tensor*
 * ("model/block3/attention/wq", or one expert of "model/block1/moe/w1" [E,F,C]); checkpoints know
 * logical tensors only. */
#ifndef BK_CORE_PARAM_H
#define BK_CORE_PARAM_H

#include "core/lanes.h"
#include "core/tensor.h"

enum { BK_MAX_USES = 2 };

typedef enum bk_init { BK_INIT_ZERO, BK_INIT_ONE, BK_INIT_NORMAL, BK_INIT_UNIFORM } bk_init;

typedef struct bk_parameter {
    const char *name; /* logical tensor */
    int64_t global_shape[BK_MAX_DIMS];
    int global_dims;
    int64_t global_offset; /* of this slice in the flattened logical tensor */
    int64_t shape[BK_MAX_DIMS];
    int dims;
    int64_t count;
    int uses;   /* slots of gradient; 2 for a tied embedding */
    int expert; /* -1: dense, reduced over all ranks; else the global expert index, reduced over its
                   replicas */
    bool decay; /* weight decay applies (matrices; not norms, biases, embeddings of positions) */
    bk_init init;
    double init_scale; /* standard deviation (normal) or half width (uniform) */
    int layer;         /* for the random counter */
    /* filled by bk_slab_layout: */
    int bucket;
    int64_t offset;                   /* of the values, in floats, in slab->value */
    int64_t grad_offset[BK_MAX_USES]; /* in slab->grad */
    int index;                        /* in the registry */
    int uses_seen;                    /* leaves made in this step */
    struct bk_slab *slab;
} bk_parameter;

/* State that is not trained but checkpointed: router potentials, counters, tables.  Replicated on
 * all ranks. */
typedef struct bk_buffer {
    const char *name; /* logical tensor, "model/block1/moe/router_bias" */
    bk_dtype dtype;   /* BK_F64, BK_I64 or BK_F32 */
    int64_t shape[BK_MAX_DIMS];
    int dims;
    int64_t count;
    void *data; /* zero at declaration */
    /* For bk_slab_initialise, BK_F32 alone; set by whoever declares it.  0: left as it is. */
    double init_scale; /* uniform with this half width */
    int layer;         /* for the random counter */
} bk_buffer;

/* A contiguous piece of the slab that is reduced as one chain of messages. */
typedef struct bk_bucket {
    int64_t offset, length; /* in slab->value, floats; length padded to a multiple of 16 L */
    int64_t grad_offset;    /* in slab->grad: equal to offset for use 0 */
    int expert;             /* -1: dense */
    int use; /* 0; 1 for the second use of a tied parameter (values: those of its bucket of use 0)
              */
    int sibling;    /* bucket of use 0 that a bucket of use 1 is added to; -1 */
    int parameters; /* parameters in it */
    int waiting;    /* of them not ready in this step */
} bk_bucket;

typedef struct bk_slab {
    bk_arena *arena;
    bk_parameter **parameter;
    int parameters;
    bk_buffer **buffer;
    int buffers;
    bk_bucket *bucket;
    int buckets;
    float *value; /* [values]  parameters, fp32, the master */
    float *grad;  /* [grads]   values + second uses */
    int64_t values, grads;
    int64_t
        total_count; /* logical elements of all tensors, all experts counted once (for reports) */
} bk_slab;

/* Everything lives on `arena` (the run arena). */
bk_slab *bk_slab_new(bk_arena *arena);

/* Declares a parameter; the struct is copied, name and shapes included; count is computed. */
bk_parameter *bk_slab_declare(bk_slab *slab, const bk_parameter *parameter);
bk_buffer *bk_slab_declare_buffer(bk_slab *slab, const char *name, bk_dtype dtype, int dims,
                                  const int64_t *shape);
bk_buffer *bk_slab_find_buffer(const bk_slab *slab, const char *name); /* NULL: none */

/* Cuts the buckets and allocates value (zeroed).  Depends on the declarations,
 * bucket_floats and `align` (16 L, or 16 P when P is not a power of two that divides L) alone, not
 * on the rank. */
void bk_slab_layout(bk_slab *slab, int64_t bucket_floats, int64_t align);
/* After the layout: allocates grad (zeroed).  A model that is never trained (a teacher) goes
 * without. */
void bk_slab_want_gradients(bk_slab *slab);

/* Fills the values from Philox: key (seed, layer * 2^32 + BK_USE_INIT), counter from the hash of
 * the name and the element's place in the logical tensor, so that the values depend neither on
 * ranks nor on experts' places.  Buffers that ask for it, too. */
void bk_slab_initialise(bk_slab *slab, uint64_t seed);

static inline float *bk_parameter_value(const bk_slab *slab, const bk_parameter *p)
{
    return slab->value + p->offset;
}

#endif
