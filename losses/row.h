/* losses/row.h - what the row-wise losses share: weights, lanes, the one tape node. */
#ifndef BK_LOSSES_ROW_H
#define BK_LOSSES_ROW_H

#include "losses/loss.h"
#include "losses/row_kernel.h"
#include "losses/top.h"

/* Options of the distillation kinds; every kind's table names those it has. */
typedef struct bk_row_config {
    double temperature, temperature_end, skew, beta;
    bool t_squared, entropy;
    int reduction; /* BK_MEAN, BK_SUM */
    int64_t top_k;
} bk_row_config;

enum { BK_MEAN, BK_SUM };

#define BK_ROW_TEMPERATURE                                                                      \
    BK_OPTION_F64_ABOVE(bk_row_config, temperature, 2.0, 0.0, 1e6, "T: softmax of logits / T"), \
        BK_OPTION_F64(bk_row_config, temperature_end, 0.0, 0.0, 1e6,                            \
                      "training: T runs linearly to this value; 0 = stays")
#define BK_ROW_COMMON                                                                  \
    BK_TOP_K(bk_row_config), BK_OPTION_CHOICE(bk_row_config, reduction, 0, "mean|sum", \
                                              "over the valid rows of the global batch")
#define BK_ROW_T_SQUARED(preset) BK_OPTION_BOOL(bk_row_config, t_squared, preset, "multiply by T^2")

/* bk_loss_kind.whole: log-sum-exps are known at fixed temperatures. */
const char *bk_row_whole(const void *config);

/* value[m]: the divergence of every valid row. */
bk_tensor *bk_row_loss(bk_tape *t, const bk_loss_args *args, bk_divergence kind);

/* Weight of one row: 1/rows for a mean, 1 for a sum. */
double bk_row_weight(const bk_loss_args *args, int reduction);

/* True when row i takes part. */
static inline bool bk_row_valid(const bk_loss_args *a, int64_t i)
{
    bool taught = a->teacher || a->teacher_top;
    return (!a->valid || a->valid[i] != 0) && (!a->labels || taught || a->labels[i] >= 0);
}

/* Room of each thread, on scratch, apart by whole lines of the cache. */
typedef struct bk_row_room {
    char *data;
    size_t bytes; /* of one thread */
} bk_row_room;

/* For `count` numbers a thread. */
bk_row_room bk_row_room_new(bk_tape *t, bk_dtype dtype, int64_t count);
/* That of the calling thread, one of bk_blas_threads(). */
void *bk_row_room_own(const bk_row_room *room);

/* out[m] = per own lane the sum of value[R] in row order. */
void bk_row_sum_lanes(const bk_tape *t, int64_t rows, const double *value, double *out);

#endif
