#include "core/ops/softmax_kernel.h"

#include "core/vector_kernel.h"

static void forward(int64_t n, const void *s_, const int32_t *mask, int64_t visible, void *p_)
{
    const real *s = s_;
    real *p = p_, most = -(real)INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++)
        p[i] = i < visible && (!mask || mask[i]) ? s[i] : -(real)INFINITY;
    for (int64_t i = 0; i < n; i++)
        most = p[i] > most || p[i] != p[i] ? p[i] : most;
    if (most == -(real)INFINITY) {
        memset(p, 0, (size_t)n * sizeof *p);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        p[i] = bk_exp(p[i] - most);
    for (int64_t i = 0; i < n; i++)
        sum += p[i];
    for (int64_t i = 0; i < n; i++)
        p[i] /= sum;
}

static void backward(int64_t n, const void *p_, const void *dp_, void *ds_)
{
    const real *p = p_, *dp = dp_;
    real *ds = ds_, inner = 0;
    for (int64_t i = 0; i < n; i++)
        inner += p[i] * dp[i];
    for (int64_t i = 0; i < n; i++)
        ds[i] += p[i] * (dp[i] - inner);
}

const bk_softmax_kernels BK_KERNEL(bk_softmax_kernels) = {.forward = forward, .backward = backward};
