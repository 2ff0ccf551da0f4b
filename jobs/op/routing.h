/* jobs/op/routing.h - what router.<kind> and moe share: settings, inputs, blocks, figures. */
#ifndef BK_JOBS_OP_ROUTING_H
#define BK_JOBS_OP_ROUTING_H

#include "jobs/op/op.h"
#include "models/moe_capacity.h"
#include "models/moe_figures.h"

typedef struct routing_settings {
    bk_operator_settings base;
    int64_t k, seed, step, layer, blocks;
    double capacity_factor;
    int64_t min_capacity;
    int drop_policy;
    int aux; /* bk_moe_aux */
    double aux_weight, z_weight;
    bool z, training;
} routing_settings;

/* Rows of an option table of `settings_`, whose first member is a routing_settings `routing`. */
#define ROUTING_OPTIONS(settings_)                                                           \
    {.name = "dtype",                                                                        \
     .type = BK_OPT_CHOICE,                                                                  \
     .offset = offsetof(settings_, routing.base.dtype),                                      \
     .text = "f32|f64",                                                                      \
     .help = "arithmetic, and what is written"},                                             \
        {.name = "k",                                                                        \
         .type = BK_OPT_I64,                                                                 \
         .offset = offsetof(settings_, routing.k),                                           \
         .preset = 2,                                                                        \
         .least = 1,                                                                         \
         .most = 65536,                                                                      \
         .help = "experts of a token"},                                                      \
        {.name = "capacity_factor",                                                          \
         .type = BK_OPT_F64,                                                                 \
         .offset = offsetof(settings_, routing.capacity_factor),                             \
         .most = 1e6,                                                                        \
         .help = "an expert takes so many times its equal share of a block; 0 = all, 1 if "  \
                 "experts choose"},                                                          \
        {.name = "min_capacity",                                                             \
         .type = BK_OPT_I64,                                                                 \
         .offset = offsetof(settings_, routing.min_capacity),                                \
         .preset = 1,                                                                        \
         .least = 1,                                                                         \
         .most = 1 << 30,                                                                    \
         .help = "tokens of a block that an expert takes at least"},                         \
        {.name = "drop_policy",                                                              \
         .type = BK_OPT_CHOICE,                                                              \
         .offset = offsetof(settings_, routing.drop_policy),                                 \
         .text = "probs|position",                                                           \
         .help = "which stay: the largest scores, or first choices before second ones"},     \
        {.name = "aux",                                                                      \
         .type = BK_OPT_CHOICE,                                                              \
         .offset = offsetof(settings_, routing.aux),                                         \
         .text = "none|switch|seq|global|cv",                                                \
         .help = "balance loss"},                                                            \
        {.name = "aux_weight",                                                               \
         .type = BK_OPT_F64,                                                                 \
         .offset = offsetof(settings_, routing.aux_weight),                                  \
         .preset = 1,                                                                        \
         .most = 1e6,                                                                        \
         .help = "factor of its gradient"},                                                  \
        {.name = "z",                                                                        \
         .type = BK_OPT_BOOL,                                                                \
         .offset = offsetof(settings_, routing.z),                                           \
         .most = 1,                                                                          \
         .help = "z loss"},                                                                  \
        {.name = "z_weight",                                                                 \
         .type = BK_OPT_F64,                                                                 \
         .offset = offsetof(settings_, routing.z_weight),                                    \
         .preset = 1,                                                                        \
         .most = 1e6,                                                                        \
         .help = "factor of its gradient"},                                                  \
        {.name = "training",                                                                 \
         .type = BK_OPT_BOOL,                                                                \
         .offset = offsetof(settings_, routing.training),                                    \
         .preset = 1,                                                                        \
         .most = 1,                                                                          \
         .help = "false: as in evaluation, without noise, draws and a new state"},           \
        {.name = "seed",                                                                     \
         .type = BK_OPT_I64,                                                                 \
         .offset = offsetof(settings_, routing.seed),                                        \
         .preset = 1,                                                                        \
         .most = 9e15,                                                                       \
         .help = "of the draws"},                                                            \
        {.name = "step",                                                                     \
         .type = BK_OPT_I64,                                                                 \
         .offset = offsetof(settings_, routing.step),                                        \
         .most = 9e15,                                                                       \
         .help = "of the draws"},                                                            \
        {.name = "layer",                                                                    \
         .type = BK_OPT_I64,                                                                 \
         .offset = offsetof(settings_, routing.layer),                                       \
         .most = 1e6,                                                                        \
         .help = "of the draws"},                                                            \
    {                                                                                        \
        .name = "blocks", .type = BK_OPT_I64, .offset = offsetof(settings_, routing.blocks), \
        .preset = 1, .least = 1, .most = 1e6,                                                \
        .help = "row blocks for scope=local, aux=switch, aux=seq and the capacity"           \
    }

/* mask, bias, noise to the inputs; index, weight, kept, bias, aux, z to the outputs. */
void routing_add_inputs(const bk_router_kind *kind, bk_operator *op);
void routing_add_outputs(const bk_router_kind *kind, bool differentiable_weight, bk_operator *op);

/* BK_USAGE for an option that the kind has not but others have, naming them; `planned` is one that
 * the operator has with kinds that solve a transport problem, or NULL. */
bk_status routing_check_options(const bk_value *given, const bk_operator *op, const char *planned);
/* Checks k and the kind's configuration, inputs that its options leave unread; drops the outputs
 * that the settings do not ask for. */
bk_status routing_check(bk_operator_call *c, const bk_router_kind *kind);
/* BK_INPUT for a state or draws that are not finite (logits that are not are replaced), and for
 * numbers that a transport problem has no room for. */
bk_status routing_examine(const bk_operator_call *c);

/* The state of a kind that has one: the input or zeros.  NULL for the others. */
const double *routing_bias(bk_operator_call *c, const bk_router_kind *kind);
/* The draws given, or NULL. */
const double *routing_noise(const bk_operator_call *c);
/* Block i = rows floor(i T/G) .. of all ranks; own parts. */
bk_route_blocks *routing_blocks(bk_operator_call *c);

/* ---- choices.c: kinds where experts choose ---- */

typedef struct routing_choices {
    int64_t experts, blocks, capacity;
    bk_tensor *token;  /* [E,capacity] int32, block by block, by falling weight */
    bk_tensor *weight; /* [E,capacity] double */
} routing_choices;
/* Collective.  On the run arena; blocks = 1 for scope=global. */
routing_choices routing_gather_choices(bk_operator_call *c, int64_t blocks, const bk_route *r);
/* gw[T,E] of the own rows from seed[E,capacity]. */
double *routing_spread_seed(const bk_operator_call *c, const routing_choices *x,
                            const double *seed);

/* ---- routing.c ---- */

/* What experts chose by the settings' scope. */
routing_choices routing_choices_of(bk_operator_call *c, const bk_route *r);

/* The limit that the settings ask for. */
bk_capacity routing_capacity(const bk_operator_call *c);

/* Collective.  Index, weight (0 where a choice is dropped), kept, plan, and the bias behind the
 * step whose choices `state` counted. */
void routing_output(bk_operator_call *c, const bk_router_kind *kind, const bk_moe_state *state,
                    const bk_route *r, const double *bias);
void routing_output_loss(bk_operator_call *c, const char *name, const double *record);
void routing_figures(bk_operator_call *c, bk_moe_state *state, const bk_route *r);

/* record[m] of an auxiliary loss's gradient: weight times the incoming one. */
void routing_seed(const bk_operator_call *c, const char *name, double weight, double *record);

#endif
