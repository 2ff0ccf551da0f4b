/* models/attention.h - what an attention kind is.  One kind = one file models/attention/<kind>.c
 * and one line in models/attention/kinds.def. */
#ifndef BK_MODELS_ATTENTION_H
#define BK_MODELS_ATTENTION_H

#include "core/ops.h"
#include "core/option.h"

enum { BK_ATTENTION_PARAMETERS = 8 };

typedef struct bk_attention_args {
    bk_tensor *q, *k, *v;  /* [B,H,N,D]; cross attention: k, v [B,H,M,D] */
    int64_t heads;         /* H: q, k, v and the result are [B,N,H*D], if the kind has
                              BK_ATTENTION_JOINED; 0: they are as above */
    bk_tensor *mask;       /* i32 [B,N] (cross: keys [B,M]); NULL = all real */
    bk_tensor *query_mask; /* i32 [B,N], cross attention only; NULL = all real */
    bk_tensor *parameter[BK_ATTENTION_PARAMETERS]; /* in the order that declare made them */
    int64_t positions;                             /* most real positions of a sample; 0: N */
    bool causal;
    double dropout; /* on probabilities, while training */
    int layer;
    const void *config;
    bk_tensor *
        *matrix; /* not NULL: also fill *matrix = [B,H,N,M], if the kind has BK_ATTENTION_MATRIX */
    bk_tensor **lse; /* not NULL: also fill *lse = [B,H,N], for softmax patterns */
    struct bk_attributes *attributes;
    bool figures; /* terms of weight 0 may be added to the tape */
} bk_attention_args;

enum {
    BK_ATTENTION_CAUSAL = 1,
    BK_ATTENTION_MASK = 2,
    BK_ATTENTION_CROSS = 4,
    BK_ATTENTION_DROPOUT = 8,
    BK_ATTENTION_MATRIX = 16,
    BK_ATTENTION_LSE = 32,
    BK_ATTENTION_JOINED = 64, /* takes the heads side by side: nothing is copied */
    BK_ATTENTION_SEED = 128,  /* draws numbers, in evaluation, too */
};

/* How a kind asks for parameters of its own: name and shape; the model declares them at
 * model/block<i>/attention/. */
typedef struct bk_attention_parameter {
    const char *name;
    int dims;
    int64_t shape[BK_MAX_DIMS];
    double init_scale;
    bool fixed; /* drawn once and never trained: a buffer, uniform within +-init_scale */
} bk_attention_parameter;

typedef struct bk_attention_kind {
    const char *name, *summary, *source;
    const bk_option *options;
    size_t config_size;
    int flags;
    bk_status (*check)(const void *config); /* combinations the table cannot check; may be NULL */
    /* BK_USAGE when samples of `positions` positions cannot be had, `padded`: some have fewer real
     * ones; NULL: all can. */
    bk_status (*fits)(const void *config, int64_t positions, bool padded);
    const char *not_causal; /* without BK_ATTENTION_CAUSAL: why, and what to do */
    int (*declare)(const void *config, int64_t heads, int64_t head_width, int64_t max_length,
                   bk_attention_parameter *out); /* number of parameters; NULL = none */
    /* Not collective.  out[B,H,N,D] (heads > 0: [B,N,H*D]) on the step arena; padded queries
     * give 0. */
    bk_tensor *(*apply)(bk_tape *t, const bk_attention_args *a);
} bk_attention_kind;

extern const bk_attention_kind *const bk_attentions[]; /* ended by NULL */
const bk_attention_kind *bk_attention_find(const char *name);

/* BK_USAGE: the kind cannot be causal, as `where` asks for. */
bk_status bk_attention_refuse_causal(const bk_attention_kind *kind, const char *where);

#endif
