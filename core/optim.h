/* core/optim.h - the update of the parameters.  Elementwise, one code path for all elements,
 * -ffp-contract=off. */
#ifndef BK_CORE_OPTIM_H
#define BK_CORE_OPTIM_H

#include "core/option.h"
#include "core/param.h"

/* One contiguous run of elements with its gradient and moments; `decay` 0 for norms and biases. */
typedef struct bk_update {
    int64_t n;
    float *value;
    const float *grad;
    float *m, *v;     /* v is NULL for optimizers of one moment, both for none */
    float clip;       /* factor on the gradient */
    double lr, decay; /* decoupled: value -= lr * decay * value */
    int64_t step;     /* 1 for the first update */
} bk_update;

typedef struct bk_optimizer_kind {
    const char *name, *summary;
    const bk_option *options;
    size_t config_size;
    int moments; /* arrays of state per parameter: 0, 1 (m) or 2 (m, v) */
    void (*update)(const void *config, const bk_update *u);
} bk_optimizer_kind;

extern const bk_optimizer_kind *const bk_optimizers[]; /* adamw, sgd; ended by NULL */

/* AdamW (Loshchilov and Hutter 2019): m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
 * x -= lr (m / (1-b1^t) / (sqrt(v / (1-b2^t)) + eps) + decay x). */
extern const bk_optimizer_kind bk_optimizer_adamw;
/* SGD with momentum: m = momentum m + g; x -= lr (m + decay x). */
extern const bk_optimizer_kind bk_optimizer_sgd;

#endif
