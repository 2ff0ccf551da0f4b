/* models/internal.h - what the files of models share: the resolved configuration and the parts of a
 * model. */
#ifndef BK_MODELS_INTERNAL_H
#define BK_MODELS_INTERNAL_H

#include "core/ops.h"
#include "models/attention.h"
#include "models/model.h"
#include "models/moe.h"

typedef struct bk_model_config {
    const char *kind_name;
    int64_t layers, width, heads, ffn, qkv_width, max_length;
    int activation; /* bk_activation */
    int positions;  /* BK_POSITIONS_* */
    int recompute;  /* BK_RECOMPUTE_* */
    double dropout, norm_epsilon;
    int pool;  /* encoder: BK_POOL_* */
    bool tied; /* decoder */
} bk_model_config;

enum { BK_POOL_CLS, BK_POOL_MEAN, BK_POOL_FIRST };
enum { BK_RECOMPUTE_NONE, BK_RECOMPUTE_BLOCK };
enum { BK_POSITIONS_LEARNED, BK_POSITIONS_SINUSOID, BK_POSITIONS_NONE };

typedef struct bk_attention_config {
    const char *kind_name;
    int bias; /* auto, false, true */
    double dropout;
    const bk_attention_kind *kind;
    void *config;
} bk_attention_config;

typedef struct bk_moe_config {
    int64_t every, experts, k, hidden, min_capacity, shared, chunks;
    bool shared_gate;
    int activation, drop_policy, aux, wire, hierarchy;
    double capacity_factor, max_receive_factor, aux_weight, z_weight;
    bool upcycles; /* begins as the dense model upcycle_from */
    const char *upcycle_from;
    int64_t granularity;
    const char *router_name;
    const bk_router_kind *router;
    void *router_config;
} bk_moe_config;

/* Parameters of one linear map with optional bias, and of one norm. */
typedef struct bk_linear_part {
    bk_parameter *w, *b;
} bk_linear_part;

typedef struct bk_norm_part {
    bk_parameter *gain, *bias;
} bk_norm_part;

typedef struct bk_attention_part {
    bk_linear_part q, k, v, o;
    bk_parameter *own[BK_ATTENTION_PARAMETERS];
    bk_buffer *fixed[BK_ATTENTION_PARAMETERS]; /* instead of own */
    int owns;
} bk_attention_part;

typedef struct bk_moe_part {
    bk_parameter *gate, *noise_gate;     /* noise_gate: of routers with one */
    bk_parameter **w1, **b1, **w2, **b2; /* local experts */
    bk_linear_part shared_up, shared_down;
    bk_parameter *shared_gate;
    int64_t first, count;
    bk_buffer *router_bias, *router_ot_steps;
    double *next_bias;       /* [E] the state behind the step under way, */
    bool moved, transported; /* when it moved; and whether that went by transport */
    bk_moe_state state;
} bk_moe_part;

typedef struct bk_block {
    bk_norm_part norm1, norm2;
    bk_attention_part attention;
    bk_linear_part up, down; /* the dense feed-forward */
    bk_moe_part *moe;        /* instead of it; NULL */
    const char *segment;
} bk_block;

struct bk_model {
    bk_arena *arena;
    bk_slab *slab;
    const bk_world *world;
    const bk_model_kind *kind;
    bk_model_data data;
    bk_model_config config;
    bk_attention_config *attention; /* [layers] */
    bool attention_list;            /* the configuration gave one entry a layer */
    bk_moe_config *moe;             /* NULL: dense */
    bk_block *block;                /* [layers] */
    bk_parameter *tokens, *segments, *positions, *cls; /* segments: NULL unless of pairs */
    bk_linear_part features, head;
    bk_norm_part norm;
    bk_tensor **matrix; /* [layers]: where attention leaves its matrices (probe.c); NULL: nowhere */
    bk_inside *inside;  /* what the bundle of a forward pass asks for; else NULL */
};

/* ---- inside.c ---- */
/* Keeps x[B,N,C] behind `block` blocks if it is asked for. */
void bk_inside_hidden(bk_model *model, int block, bk_tensor *x);
/* Keeps mask and number of real positions, as the blocks see them. */
void bk_inside_positions(bk_model *model, bk_tensor *mask, int64_t positions);
/* Where attention of a layer, from 0 on, is to leave its matrix; NULL: nowhere. */
bk_tensor **bk_inside_matrix(bk_model *model, int layer);

/* ---- config.c ---- */
BK_CHECKED bk_status bk_model_read_config(bk_model *model, bk_value *section);

/* ---- upcycle.c ---- */
/* BK_USAGE for shapes with which a mixture of experts cannot begin as a dense model; sets a hidden
 * width of 0.  Then, with the router read: for weights with which it would not equal it. */
BK_CHECKED bk_status bk_upcycle_check(const bk_model *model, bk_moe_config *moe);
BK_CHECKED bk_status bk_upcycle_check_router(const bk_moe_config *moe);

/* ---- parts.c: declaration and use of the common parts ---- */
bk_parameter *bk_declare(bk_model *model, const bk_parameter *parameter);
bk_linear_part bk_declare_linear(bk_model *model, const char *w, const char *b, int64_t out,
                                 int64_t in, int layer, double scale);
bk_norm_part bk_declare_norm(bk_model *model, const char *gain, const char *bias, int layer);
bk_tensor *bk_part_linear(bk_tape *t, const bk_linear_part *part, bk_tensor *x);
bk_tensor *bk_part_norm(bk_model *model, bk_tape *t, const bk_norm_part *part, bk_tensor *x);
bk_sum_and_norm bk_part_add_norm(bk_model *model, bk_tape *t, const bk_norm_part *part,
                                 bk_tensor *x, bk_tensor *residual);
/* Half width of Xavier's uniform initialisation (encoder) or the 0.02 of GPT-2 (decoder), times
 * `factor`. */
double bk_init_scale(const bk_model *model, int64_t in, int64_t out, double factor);
bk_init bk_init_kind(const bk_model *model);
bool bk_model_causal(const bk_model *model);

/* ---- block.c: one pre-norm Transformer block ---- */
void bk_block_declare(bk_model *model, int layer);
/* x[B,N,C] -> [B,N,C]; mask[B,N] or NULL; `positions` real positions over all ranks.  Collective
 * with MoE. */
bk_tensor *bk_block_forward(bk_model *model, bk_tape *t, int layer, bk_tensor *x, bk_tensor *mask,
                            int64_t positions);

/* ---- feedforward.c ---- */
/* The limit of a configuration. */
bk_capacity bk_moe_capacity(const bk_moe_config *moe);
void bk_feedforward_declare(bk_model *model, int layer);
/* x[B,N,C] -> [B,N,C]; mask[B,N] or NULL; `positions` as in bk_block_forward.  Collective with MoE.
 */
bk_tensor *bk_feedforward(bk_model *model, bk_tape *t, int layer, bk_tensor *x, bk_tensor *mask,
                          int64_t positions);

/* ---- embed.c ---- */
/* Most real positions that a block sees of a sample, the CLS position among them. */
int64_t bk_model_positions(const bk_model *model);
void bk_embed_declare(bk_model *model);
/* tokens (and segments) or features -> x[B,N(+1),C] with positions and dropout:
 *   x = tokens[token] (+ segments[segment]) (+ positions[place]), the CLS vector in front of all.
 */
bk_tensor *bk_embed_forward(bk_model *model, bk_tape *t, const bk_bundle *bundle);

#endif
