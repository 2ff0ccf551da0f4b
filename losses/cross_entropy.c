/* losses/cross_entropy.c - -sum y log softmax(x), y = (1-e) onehot(label) + e/V.  No temperature.
 * Backward forms softmax - y from the saved log-sum-exp, straight into the gradient of the logits,
 * which takes the place of the logits where no other loss needs them. */
#include "core/blas.h"
#include "losses/row.h"

typedef struct cross_entropy_config {
    double label_smoothing;
    int reduction;
} cross_entropy_config;

static const bk_option options[] = {
    BK_OPTION_F64(cross_entropy_config, label_smoothing, 0.0, 0.0, 0.999999,
                  "e: share of the flat distribution"),
    BK_OPTION_CHOICE(cross_entropy_config, reduction, 0, "mean|sum",
                     "over the valid rows of the global batch"),
    BK_OPTION_END,
};

typedef struct attributes {
    bk_loss_args args;
    double smoothing, weight;
} attributes;

static bool counts(const attributes *a, int64_t i)
{
    return a->args.labels[i] >= 0 && (!a->args.valid || a->args.valid[i] != 0);
}

static void shape(bk_tape *t, bk_node *n)
{
    n->out[0]->dtype = BK_F64;
    n->out[0]->dims = 1;
    n->out[0]->shape[0] = t->lanes.count;
}

static void forward(bk_tape *t, bk_node *n)
{
    const attributes *a = n->attributes;
    const bk_tensor *x = n->in[0];
    int64_t rows = bk_rows(x), cols = bk_cols(x);
    size_t row = (size_t)cols * bk_dtype_size(x->dtype);
    double *lse = n->saved = BK_ZNEW(t->arena, double, rows);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    double *value = BK_ZNEW(t->scratch, double, rows);
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (bk_count(x) > 65536)
    for (int64_t i = 0; i < rows; i++)
        if (counts(a, i)) {
            BK_ASSERT(a->args.labels[i] < cols, "label %d of %lld classes", a->args.labels[i],
                      (long long)cols);
            value[i] = a->weight * bk_rows_of(x->dtype)->cross_entropy(
                                       cols, (const char *)x->data + (size_t)i * row,
                                       a->args.labels[i], a->smoothing, &lse[i]);
        }
    bk_row_sum_lanes(t, rows, value, n->out[0]->data);
    bk_arena_release(t->scratch, mark);
}

static void backward_row(const bk_tensor *x, const attributes *a, int64_t i, double lse,
                         double seed, bool add, char *grad)
{
    int64_t cols = bk_cols(x);
    size_t row = (size_t)cols * bk_dtype_size(x->dtype);
    if (counts(a, i))
        bk_rows_of(x->dtype)->cross_entropy_back(cols, (const char *)x->data + (size_t)i * row, lse,
                                                 a->args.labels[i], a->smoothing, a->weight * seed,
                                                 add, grad + (size_t)i * row);
    else if (!add)
        for (size_t j = 0; j < row; j++)
            grad[(size_t)i * row + j] = 0;
}

static void backward(bk_tape *t, bk_node *n)
{
    const attributes *a = n->attributes;
    bk_tensor *x = n->in[0];
    const double *seed = n->out[0]->grad, *lse = n->saved;
    double beta;
    char *grad = bk_grad_in_place(t, x, &beta);
    for (int64_t l = 0; l < t->lanes.count; l++) {
        int64_t last = bk_lane_row(&t->lanes, bk_rows(x), l + 1);
#pragma omp parallel for schedule(static) num_threads(bk_blas_threads()) if (bk_count(x) > 65536)
        for (int64_t i = bk_lane_row(&t->lanes, bk_rows(x), l); i < last; i++)
            backward_row(x, a, i, lse[i], seed[l], beta != 0.0, grad);
    }
}

static const bk_op cross_entropy = {
    .name = "cross_entropy", .shape = shape, .forward = forward, .backward = backward};

static bk_tensor *apply(bk_tape *t, const bk_loss_args *args)
{
    const cross_entropy_config *c = args->config;
    attributes a = {.args = *args,
                    .smoothing = c->label_smoothing,
                    .weight = bk_row_weight(args, c->reduction)};
    return bk_apply(t, &cross_entropy, 1, &args->logits, 1, &a, sizeof a)->out[0];
}

const bk_loss_kind bk_loss_cross_entropy = {
    .name = "cross_entropy",
    .summary = "negative log-likelihood of the labels",
    .source = "textbook",
    .options = options,
    .config_size = sizeof(cross_entropy_config),
    .flags = BK_LOSS_LABELS,
    .apply = apply,
};
