#include "losses/row_kernel.h"

#include "losses/sums_kernel.h"

/* In as many parts as a vector has elements: one chain of comparisons would be the slowest pass of
 * a softmax.  A NaN is left out; it comes back with the sum of the exponentials. */
static real max(int64_t n, const real *x)
{
    enum { PARTS = 2 * WIDE };
    real most[PARTS];
    int64_t i = 0;
    for (int j = 0; j < PARTS; j++)
        most[j] = -(real)INFINITY;
    for (; i + PARTS <= n; i += PARTS)
        for (int j = 0; j < PARTS; j++)
            most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
    for (; i < n; i++)
        most[0] = x[i] > most[0] ? x[i] : most[0];
    for (int j = 1; j < PARTS; j++)
        most[0] = most[j] > most[0] ? most[j] : most[0];
    return most[0];
}

/* sum of exp((x - most) scale), in double.  The terms are stored by the piece: in one loop with
 * their sum they would be computed in vectors of doubles. */
static double sum_exp(int64_t n, const real *x, real most, real scale)
{
    enum { PIECE = 512 };
    real term[PIECE];
    double total = 0.0;
    for (int64_t first = 0; first < n; first += PIECE) {
        int64_t m = n - first < PIECE ? n - first : PIECE;
        for (int64_t i = 0; i < m; i++)
            term[i] = bk_exp((x[first + i] - most) * scale);
        total += sum(m, term);
    }
    return total;
}

/* ---- cross-entropy ---- */

static double cross_entropy(int64_t n, const void *x_, int32_t label, double smoothing, double *lse)
{
    const real *x = x_;
    real most = max(n, x);
    *lse = (double)most + log(sum_exp(n, x, most, 1));
    double loss = (1.0 - smoothing) * (*lse - (double)x[label]);
    return smoothing > 0 ? loss + smoothing * (*lse - sum(n, x) / (double)n) : loss;
}

static void cross_entropy_back(int64_t n, const void *x_, double lse_, int32_t label,
                               double smoothing, double weight_, bool add, void *dx_)
{
    const real *x = x_, lse = (real)lse_, weight = (real)weight_,
               flat = (real)(smoothing / (double)n);
    real *dx = dx_;
    if (add)
        for (int64_t i = 0; i < n; i++)
            dx[i] += weight * (bk_exp(x[i] - lse) - flat);
    else
#pragma omp simd /* dx may be x */
        for (int64_t i = 0; i < n; i++)
            dx[i] = weight * (bk_exp(x[i] - lse) - flat);
    dx[label] -= weight * (real)(1.0 - smoothing);
}

/* ---- divergences ---- */

static void log_softmax(int64_t n, const real *x, double temperature, real *y)
{
    real scale = (real)(1.0 / temperature), most = max(n, x);
    real shift = (real)log(sum_exp(n, x, most, scale));
    for (int64_t i = 0; i < n; i++)
        y[i] = (x[i] - most) * scale - shift;
}

static inline real log_add(real a, real b)
{
    real high = a > b ? a : b, low = a > b ? b : a;
    return high + bk_log(BK_R(1.0) + bk_exp(low - high));
}

/* log m = log(a q + (1-a) p) from logarithms. */
static inline real log_mix(real lq, real lp, real log_a, real log_b)
{
    return log_add(log_a + lq, log_b + lp);
}

/* Terms of D in y, from log p and log q. */
static void terms(int64_t n, const real *lp, const real *lq, const bk_divergence_options *o,
                  real *y)
{
    real share = (real)(o->kind == BK_JS ? o->beta : o->kind == BK_KL ? o->skew : 1.0 - o->skew);
    real log_a = (real)log((double)share), log_b = (real)log1p(-(double)share),
         beta = (real)o->beta;
    real entropy = o->entropy ? 1 : 0;
    bool plain = o->skew == 0.0;
    switch (o->kind) {
    case BK_KL:
        for (int64_t i = 0; i < n; i++)
            y[i] = bk_exp(lq[i]) *
                   (entropy * lq[i] - (plain ? lp[i] : log_mix(lq[i], lp[i], log_a, log_b)));
        break;
    case BK_REVERSE_KL:
        for (int64_t i = 0; i < n; i++)
            y[i] = bk_exp(lp[i]) * (lp[i] - (plain ? lq[i] : log_mix(lq[i], lp[i], log_a, log_b)));
        break;
    case BK_JS:
        for (int64_t i = 0; i < n; i++) {
            real lm = log_mix(lq[i], lp[i], log_a, log_b);
            y[i] = beta * bk_exp(lq[i]) * (lq[i] - lm) +
                   (BK_R(1.0) - beta) * bk_exp(lp[i]) * (lp[i] - lm);
        }
        break;
    default:
        for (int64_t i = 0; i < n; i++) {
            real d = bk_exp(lp[i]) - bk_exp(lq[i]);
            y[i] = BK_R(0.5) * (d < 0 ? -d : d);
        }
    }
}

/* h = dD/dp. */
static void slopes(int64_t n, const real *lp, const real *lq, const bk_divergence_options *o,
                   real *h)
{
    real share = (real)(o->kind == BK_JS ? o->beta : o->kind == BK_KL ? o->skew : 1.0 - o->skew);
    real log_a = (real)log((double)share), log_b = (real)log1p(-(double)share);
    real skew = (real)o->skew, rest = (real)(1.0 - o->skew), other = (real)(1.0 - o->beta);
    bool plain = o->skew == 0.0;
    switch (o->kind) {
    case BK_KL:
        for (int64_t i = 0; i < n; i++)
            h[i] = -rest * bk_exp(lq[i] - (plain ? lp[i] : log_mix(lq[i], lp[i], log_a, log_b)));
        break;
    case BK_REVERSE_KL:
        for (int64_t i = 0; i < n; i++) {
            /* without skew, p/q may overflow */
            real d = lp[i] - (plain ? lq[i] : log_mix(lq[i], lp[i], log_a, log_b));
            h[i] = plain ? d : d - skew * bk_exp(d);
        }
        break;
    case BK_JS:
        for (int64_t i = 0; i < n; i++)
            h[i] = other * (lp[i] - log_mix(lq[i], lp[i], log_a, log_b));
        break;
    default:
        for (int64_t i = 0; i < n; i++) {
            real d = bk_exp(lp[i]) - bk_exp(lq[i]);
            h[i] = d > 0 ? BK_R(0.5) : d < 0 ? BK_R(-0.5) : 0;
        }
    }
}

static double divergence(int64_t n, const void *s, const void *t, const bk_divergence_options *o,
                         void *work)
{
    real *lp = work, *lq = lp + n, *y = lq + n;
    log_softmax(n, s, o->temperature, lp);
    log_softmax(n, t, o->temperature, lq);
    terms(n, lp, lq, o, y);
    return sum(n, y);
}

/* KL without skew in its closed form (p - q)/T: h = -q/p would overflow where p is tiny. */
static void kl_back(int64_t n, const real *lp, const real *lq, real factor, real *ds)
{
    for (int64_t i = 0; i < n; i++)
        ds[i] += factor * (bk_exp(lp[i]) - bk_exp(lq[i]));
}

/* ds += weight p (h - <p,h>) / T. */
static void softmax_back(int64_t n, const real *p, const real *h, double weight, double temperature,
                         real *ds)
{
    real inner = (real)dot(n, p, h), factor = (real)(weight / temperature);
    for (int64_t i = 0; i < n; i++)
        ds[i] += factor * p[i] * (h[i] - inner);
}

static void divergence_back(int64_t n, const void *s, const void *t, const bk_divergence_options *o,
                            double weight, void *work, void *ds)
{
    real *lp = work, *lq = lp + n, *h = lq + n;
    log_softmax(n, s, o->temperature, lp);
    log_softmax(n, t, o->temperature, lq);
    if (o->kind == BK_KL && o->skew == 0.0) {
        kl_back(n, lp, lq, (real)(weight / o->temperature), ds);
        return;
    }
    slopes(n, lp, lq, o, h);
    for (int64_t i = 0; i < n; i++)
        lp[i] = bk_exp(lp[i]);
    softmax_back(n, lp, h, weight, o->temperature, ds);
}

/* ---- divergences of k classes and a rest ---- */

/* a is a worse choice than b. */
static inline bool worse(const real *x, int32_t a, int32_t b)
{
    return x[a] < x[b] || (x[a] == x[b] && a > b);
}

/* The worst of heap[count] rises to its root. */
static void sift(const real *x, int64_t count, int32_t *heap, int64_t at)
{
    int32_t moved = heap[at];
    for (int64_t child; (child = 2 * at + 1) < count; at = child) {
        child += child + 1 < count && worse(x, heap[child + 1], heap[child]);
        if (!worse(x, heap[child], moved))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

/* Pieces without a larger one are passed over in vectors. */
static void select_top(int64_t n, const void *x_, int64_t k, int32_t *heap)
{
    enum { PIECE = 256 };
    const real *x = x_;
    for (int64_t j = 0; j < k; j++)
        heap[j] = (int32_t)j;
    for (int64_t j = k / 2; j-- > 0;)
        sift(x, k, heap, j);
    for (int64_t first = k; first < n; first += PIECE) {
        int64_t last = first + PIECE < n ? first + PIECE : n;
        if (!(max(last - first, x + first) > x[heap[0]]))
            continue;
        for (int64_t v = first; v < last; v++)
            if (x[v] > x[heap[0]]) {
                heap[0] = (int32_t)v;
                sift(x, k, heap, 0);
            }
    }
    for (int64_t j = k - 1; j > 0; j--) { /* the worst last */
        int32_t last = heap[j];
        heap[j] = heap[0];
        heap[0] = last;
        sift(x, j, heap, 0);
    }
}

/* The same as log_softmax in lp, but for the classes index[k], which move to y. */
static void coarse_logs(int64_t n, const void *x, double temperature, int64_t k,
                        const int32_t *index, void *lp_, void *y_)
{
    real *lp = lp_, *y = y_;
    log_softmax(n, x, temperature, lp);
    for (int64_t j = 0; j < k; j++) {
        y[j] = lp[index[j]];
        lp[index[j]] = -(real)INFINITY;
    }
    real most = max(n, lp);
    y[k] = most + (real)log(sum_exp(n, lp, most, 1));
}

static double coarse(int64_t n, const void *s, const bk_coarse_row *q,
                     const bk_divergence_options *o, void *work)
{
    real *lp = work, *c = lp + n, *y = c + q->k + 1;
    coarse_logs(n, s, o->temperature, q->k, q->index, lp, c);
    terms(q->k + 1, c, q->log_q, o, y);
    return sum(q->k + 1, y);
}

/* Outside S every p_v goes with that of the rest.  inside[k]: dD/ds of the classes of S. */
static void plain_kl_back(int64_t n, const real *lp, int64_t k, const real *c, const real *lq,
                          real factor, real *inside, real *ds)
{
    real shift = lq[k] - c[k];
    for (int64_t j = 0; j < k; j++)
        inside[j] = factor * (bk_exp(c[j]) - bk_exp(lq[j]));
    for (int64_t v = 0; v < n; v++)
        ds[v] += factor * (bk_exp(lp[v]) - bk_exp(lp[v] + shift));
}

static void coarse_softmax_back(int64_t n, const real *lp, int64_t k, real *c, const real *h,
                                real factor, real *inside, real *ds)
{
    for (int64_t j = 0; j <= k; j++)
        c[j] = bk_exp(c[j]);
    real inner = (real)dot(k + 1, c, h), rest = factor * (h[k] - inner);
    for (int64_t j = 0; j < k; j++)
        inside[j] = factor * c[j] * (h[j] - inner);
    for (int64_t v = 0; v < n; v++)
        ds[v] += rest * bk_exp(lp[v]);
}

/* lp holds -inf, so p = 0, for the classes of S. */
static void coarse_back(int64_t n, const void *s, const bk_coarse_row *q,
                        const bk_divergence_options *o, double weight, void *work, void *ds_)
{
    real *lp = work, *c = lp + n, *h = c + q->k + 1, *inside = h + q->k + 1, *ds = ds_;
    real factor = (real)(weight / o->temperature);
    coarse_logs(n, s, o->temperature, q->k, q->index, lp, c);
    if (o->kind == BK_KL && o->skew == 0.0) {
        plain_kl_back(n, lp, q->k, c, q->log_q, factor, inside, ds);
    } else {
        slopes(q->k + 1, c, q->log_q, o, h);
        coarse_softmax_back(n, lp, q->k, c, h, factor, inside, ds);
    }
    for (int64_t j = 0; j < q->k; j++)
        ds[q->index[j]] += inside[j];
}

/* ---- softmax by parts ---- */

static bk_row_norm normalise(int64_t n, const void *x_, double temperature)
{
    const real *x = x_, most = max(n, x);
    return (bk_row_norm){(double)most, 1.0 / sum_exp(n, x, most, (real)(1.0 / temperature))};
}

static inline real probability(real x, real scale, real most, real inverse)
{
    real p = bk_exp((x - most) * scale) * inverse;
    return p < bk_smallest_normal ? 0 : p;
}

static double softmax(int64_t n, const void *x_, double temperature, bk_row_norm norm, void *p_)
{
    const real *x = x_, scale = (real)(1.0 / temperature), most = (real)norm.most,
               inverse = (real)norm.inverse;
    real *p = p_;
    for (int64_t i = 0; i < n; i++)
        p[i] = probability(x[i], scale, most, inverse);
    return sum(n, p);
}

static void softmax_add(int64_t n, const void *x_, double temperature, bk_row_norm norm,
                        double factor_, void *y_)
{
    const real *x = x_, scale = (real)(1.0 / temperature), most = (real)norm.most,
               inverse = (real)norm.inverse, factor = (real)factor_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] += factor * probability(x[i], scale, most, inverse);
}

static double product_add(int64_t n, const void *p_, const void *h_, double factor_, void *y_)
{
    const real *p = p_, *h = h_, factor = (real)factor_;
    real *y = y_;
    for (int64_t i = 0; i < n; i++)
        y[i] += factor * p[i] * h[i];
    return dot(n, p, h);
}

const bk_row_kernels BK_KERNEL(bk_row_kernels) = {
    .cross_entropy = cross_entropy,
    .cross_entropy_back = cross_entropy_back,
    .divergence = divergence,
    .divergence_back = divergence_back,
    .select = select_top,
    .coarse_logs = coarse_logs,
    .coarse = coarse,
    .coarse_back = coarse_back,
    .normalise = normalise,
    .softmax = softmax,
    .softmax_add = softmax_add,
    .product_add = product_add,
};
