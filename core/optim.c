#include "core/optim.h"

#include "core/blas.h"

#include <math.h>

/* Fixed pieces for the threads; every element goes through the same arithmetic. */
typedef struct adamw_config {
    double beta1, beta2, epsilon;
} adamw_config;

static const bk_option adamw_options[] = {
    BK_OPTION_F64(adamw_config, beta1, 0.9, 0.0, 0.999999, "decay of the first moment"),
    BK_OPTION_F64(adamw_config, beta2, 0.999, 0.0, 0.9999999, "decay of the second moment"),
    BK_OPTION_F64_ABOVE(adamw_config, epsilon, 1e-8, 0.0, 1.0,
                        "added to the root of the second moment"),
    BK_OPTION_END,
};

static void adamw_update(const void *config, const bk_update *u)
{
    const adamw_config *c = config;
    double correction1 = 1.0 - pow(c->beta1, (double)u->step),
           correction2 = 1.0 - pow(c->beta2, (double)u->step);
    const float b1 = (float)c->beta1, b2 = (float)c->beta2, r1 = (float)(1.0 - c->beta1),
                r2 = (float)(1.0 - c->beta2);
    const float rate = (float)(u->lr / correction1), root = (float)(1.0 / sqrt(correction2));
    const float epsilon = (float)c->epsilon, keep = (float)(1.0 - u->lr * u->decay), clip = u->clip;
    float *x = u->value, *m = u->m, *v = u->v;
    const float *grad = u->grad;
#pragma omp parallel for simd schedule(static) num_threads(bk_blas_threads()) if (u->n > 65536)
    for (int64_t i = 0; i < u->n; i++) {
        float g = grad[i] * clip;
        m[i] = b1 * m[i] + r1 * g;
        v[i] = b2 * v[i] + r2 * g * g;
        x[i] = keep * x[i] - rate * m[i] / (__builtin_sqrtf(v[i]) * root + epsilon);
    }
}

const bk_optimizer_kind bk_optimizer_adamw = {.name = "adamw",
                                              .summary = "Adam with decoupled weight decay",
                                              .options = adamw_options,
                                              .config_size = sizeof(adamw_config),
                                              .moments = 2,
                                              .update = adamw_update};

typedef struct sgd_config {
    double momentum;
} sgd_config;

static const bk_option sgd_options[] = {
    BK_OPTION_F64(sgd_config, momentum, 0.9, 0.0, 0.999999, "share of the former step"),
    BK_OPTION_END,
};

static void sgd_update(const void *config, const bk_update *u)
{
    const float momentum = (float)((const sgd_config *)config)->momentum, clip = u->clip;
    const float rate = (float)u->lr, decay = (float)u->decay;
    float *x = u->value, *m = u->m;
    const float *grad = u->grad;
#pragma omp parallel for simd schedule(static) num_threads(bk_blas_threads()) if (u->n > 65536)
    for (int64_t i = 0; i < u->n; i++) {
        m[i] = momentum * m[i] + grad[i] * clip;
        x[i] -= rate * (m[i] + decay * x[i]);
    }
}

const bk_optimizer_kind bk_optimizer_sgd = {.name = "sgd",
                                            .summary = "stochastic gradient descent with momentum",
                                            .options = sgd_options,
                                            .config_size = sizeof(sgd_config),
                                            .moments = 1,
                                            .update = sgd_update};

const bk_optimizer_kind *const bk_optimizers[] = {&bk_optimizer_adamw, &bk_optimizer_sgd, NULL};
