/* core/tensor.h - dense, contiguous, row-major arrays.  A tensor owns nothing: its bytes live in an
 * arena or slab. */
#ifndef BK_CORE_TENSOR_H
#define BK_CORE_TENSOR_H

#include "core/arena.h"

typedef enum bk_dtype { BK_F32, BK_F64, BK_I32, BK_I64, BK_U8, BK_U16, BK_BF16 } bk_dtype;

enum { BK_MAX_DIMS = 4 };

struct bk_parameter;
struct bk_node;

typedef struct bk_tensor {
    void *data;
    void *grad; /* same shape and dtype; NULL until backward first needs it */
    int64_t shape[BK_MAX_DIMS];
    int dims;
    bk_dtype dtype;
    bool needs_grad; /* some trainable input lies upstream */
    bool grad_fresh; /* grad is allocated but nothing was written to it yet */
    bool
        owned; /* data is a piece of the step arena that goes back behind the producer's backward */
    bool kept; /* data and grad stay until the end of the step */
    int consumers;                  /* nodes that read it and have not run backward yet */
    struct bk_node *producer;       /* NULL for leaves */
    struct bk_parameter *parameter; /* leaf of a parameter, else NULL */
} bk_tensor;

size_t bk_dtype_size(bk_dtype dtype);
const char *bk_dtype_name(bk_dtype dtype); /* "f32", "f64", "i32", ..., "bf16" */

/* Number of elements; of elements behind the first axis; of rows when the last axis is the row. */
int64_t bk_count(const bk_tensor *x);
int64_t bk_rows(const bk_tensor *x); /* product of all axes but the last; 1 for a scalar */
int64_t bk_cols(const bk_tensor *x); /* the last axis; 1 for a scalar */
bool bk_same_shape(const bk_tensor *a, const bk_tensor *b);

/* A tensor on `arena` with uninitialised data.  A scalar has dims = 0. */
bk_tensor *bk_tensor_new(bk_arena *arena, bk_dtype dtype, int dims, const int64_t *shape);
/* A tensor around borrowed data. */
bk_tensor *bk_tensor_wrap(bk_arena *arena, bk_dtype dtype, int dims, const int64_t *shape,
                          void *data);

/* Shape literal: BK_SHAPE(B, N, C) expands to dims, shape. */
#define BK_SHAPE_COUNT(...) ((int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)))
#define BK_SHAPE(...)                              \
    BK_SHAPE_COUNT(__VA_ARGS__), (const int64_t[]) \
    {                                              \
        __VA_ARGS__                                \
    }

static inline const float *bk_f32(const bk_tensor *x)
{
    return (const float *)x->data;
}
static inline const double *bk_f64(const bk_tensor *x)
{
    return (const double *)x->data;
}
static inline const int32_t *bk_i32(const bk_tensor *x)
{
    return (const int32_t *)x->data;
}

/* Element i of an array of BK_F32 or BK_F64, in double. */
static inline double bk_real_get(bk_dtype dtype, const void *x, int64_t i)
{
    return dtype == BK_F64 ? ((const double *)x)[i] : (double)((const float *)x)[i];
}
static inline void bk_real_put(bk_dtype dtype, void *x, int64_t i, double value)
{
    if (dtype == BK_F64)
        ((double *)x)[i] = value;
    else
        ((float *)x)[i] = (float)value;
}

/* "[8, 16, 64]" in a buffer of the caller, for messages. */
enum { BK_SHAPE_TEXT = 96 };
const char *bk_shape_text(const bk_tensor *x, char buffer[BK_SHAPE_TEXT]);

#endif
