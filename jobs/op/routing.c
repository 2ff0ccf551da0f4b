#include "jobs/op/routing.h"

#include "dist/collective.h"
#include "jobs/routing.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* The settings are the first member of every struct of settings here. */
static const routing_settings *settings_of(const bk_operator_call *c)
{
    return c->own;
}

/* ---- arrays ---- */

static bool in_table(const bk_option *o, const char *name)
{
    for (; o && o->name; o++)
        if (strcmp(o->name, name) == 0)
            return true;
    return false;
}

static bool draws(const bk_router_kind *kind)
{
    return in_table(kind->options, "noise") || kind->flags & BK_ROUTER_NOISE_GATE;
}

void routing_add_inputs(const bk_router_kind *kind, bk_operator *op)
{
    bk_operator_add(
        op->input, (bk_operator_array){
                       .name = "mask", .axes = "T", .type = BK_OPERATOR_INTEGER, .optional = true});
    if (kind->flags & BK_ROUTER_STATE)
        bk_operator_add(op->input, (bk_operator_array){.name = "bias",
                                                       .axes = "E",
                                                       .type = BK_OPERATOR_DOUBLE,
                                                       .optional = true});
    if (draws(kind))
        bk_operator_add(op->input, (bk_operator_array){.name = "noise",
                                                       .axes = "TE",
                                                       .type = BK_OPERATOR_DOUBLE,
                                                       .optional = true});
}

void routing_add_outputs(const bk_router_kind *kind, bool differentiable_weight, bk_operator *op)
{
    const char *axes = kind->flags & BK_ROUTER_EXPERTS ? "Ec" : "Tk";
    bk_operator_add(op->output,
                    (bk_operator_array){.name = kind->flags & BK_ROUTER_EXPERTS ? "token" : "index",
                                        .axes = axes,
                                        .type = BK_OPERATOR_INTEGER});
    bk_operator_add(op->output, (bk_operator_array){.name = "weight",
                                                    .axes = axes,
                                                    .type = BK_OPERATOR_DOUBLE,
                                                    .differentiable = differentiable_weight});
    if (!(kind->flags & BK_ROUTER_EXPERTS))
        bk_operator_add(op->output, (bk_operator_array){.name = "kept",
                                                        .axes = "Tk",
                                                        .type = BK_OPERATOR_INTEGER,
                                                        .optional = true});
    if (kind->flags & BK_ROUTER_STATE)
        bk_operator_add(op->output, (bk_operator_array){
                                        .name = "bias", .axes = "E", .type = BK_OPERATOR_DOUBLE});
    const char *const losses[] = {"aux", "z"};
    for (int i = 0; i < 2; i++)
        bk_operator_add(op->output, (bk_operator_array){.name = losses[i],
                                                        .axes = "",
                                                        .type = BK_OPERATOR_DOUBLE,
                                                        .optional = true,
                                                        .differentiable = true,
                                                        .seed = 1.0});
}

/* ---- checks ---- */

/* What an option of the kind is set to; NULL without that option. */
static const void *setting_of(const bk_operator_call *c, const char *name)
{
    for (const bk_option *o = c->op.options; o && o->name; o++)
        if (strcmp(o->name, name) == 0)
            return (const char *)c->config + o->offset;
    return NULL;
}

/* The index of a choice of the kind's options; 0 without that option. */
static int choice_of(const bk_operator_call *c, const char *name)
{
    const int *choice = setting_of(c, name);
    return choice ? *choice : 0;
}

/* `planned`: an option of the operators of all kinds that have a plan, or NULL. */
static bool has_option(const bk_router_kind *kind, const char *name, const char *planned)
{
    return in_table(kind->options, name) ||
           (planned && strcmp(name, planned) == 0 && kind->flags & BK_ROUTER_TRANSPORT);
}

bk_status routing_check_options(const bk_value *given, const bk_operator *op, const char *planned)
{
    const bk_router_kind *kind = op->plug_in;
    for (const bk_value *v = given->child; v; v = v->next) {
        char owners[256] = "";
        bool known = in_table(op->own_options, v->key) || in_table(op->options, v->key);
        for (int i = 0; !known && bk_routers[i]; i++)
            if (has_option(bk_routers[i], v->key, planned))
                snprintf(owners + strlen(owners), sizeof owners - strlen(owners), "%s%s",
                         *owners ? ", " : "", bk_routers[i]->name);
        if (*owners)
            return bk_fail(BK_USAGE,
                           "%s is not an option of router %s (birkhoff op %s): it belongs "
                           "to %s",
                           v->key, kind->name, op->name, owners);
    }
    return BK_OK;
}

/* Potentials are read where one solve starts from those of the former step. */
static bk_status check_bias(const bk_operator_call *c)
{
    const bool *warm = setting_of(c, "warm_start");
    if (!warm || !bk_operator_given(c, "bias"))
        return BK_OK;
    if (choice_of(c, "scope") != 0)
        return bk_operator_refuse_input(c, "bias", "with scope=local");
    return *warm ? BK_OK : bk_operator_refuse_input(c, "bias", "with warm_start=false");
}

bk_status routing_check(bk_operator_call *c, const bk_router_kind *kind)
{
    const routing_settings *s = settings_of(c);
    int64_t experts = c->axis['E'];
    if (s->k > experts)
        return bk_fail(BK_USAGE, "k=%lld of %lld experts (%s): use at most %lld", (long long)s->k,
                       (long long)experts, c->in, (long long)experts);
    if (kind->check)
        BK_TRY(kind->check(c->config, experts, s->k));
    BK_TRY(bk_router_check_aux(kind, (bk_moe_aux)s->aux, experts, s->k));
    bk_capacity capacity = routing_capacity(c);
    BK_TRY(bk_capacity_check(&capacity, kind));
    if (bk_operator_given(c, "noise") && in_table(kind->options, "noise") &&
        choice_of(c, "noise") == 0)
        return bk_operator_refuse_input(c, "noise", "with noise=none");
    BK_TRY(check_bias(c));
    c->axis['k'] = s->k;
    if (s->capacity_factor == 0.0 && bk_operator_find(c->op.output, "kept") >= 0)
        bk_operator_drop(c->op.output, "kept");
    if (s->aux == 0)
        bk_operator_drop(c->op.output, "aux");
    if (!s->z)
        bk_operator_drop(c->op.output, "z");
    return BK_OK;
}

/* Costs over epsilon and potentials are added, and so stay far from where doubles end. */
static bk_status examine_transport(const bk_operator_call *c)
{
    const double *epsilon = setting_of(c, "epsilon"), *noise = setting_of(c, "noise_scale");
    double most = 1e300;
    if (!epsilon || !settings_of(c)->training)
        return BK_OK;
    BK_TRY(bk_operator_examine_size(c, "bias", most));
    BK_TRY(bk_operator_examine_size(c, "noise", most * *epsilon / fmax(*noise, 1.0)));
    return choice_of(c, "cost") == 0 /* linear: the logits themselves */
               ? bk_operator_examine_size(c, "logits", most * *epsilon)
               : BK_OK;
}

bk_status routing_examine(const bk_operator_call *c)
{
    BK_TRY(bk_operator_examine_finite(c, "bias"));
    BK_TRY(bk_operator_examine_finite(c, "noise"));
    return examine_transport(c);
}

/* ---- what a router reads ---- */

const double *routing_bias(bk_operator_call *c, const bk_router_kind *kind)
{
    const bk_tensor *given = bk_operator_input(c, "bias");
    if (!(kind->flags & BK_ROUTER_STATE))
        return NULL;
    double *bias = BK_ZNEW(c->arena, double, c->axis['E']);
    if (given)
        memcpy(bias, given->data, (size_t)c->axis['E'] * sizeof *bias);
    return bias;
}

const double *routing_noise(const bk_operator_call *c)
{
    const bk_tensor *noise = bk_operator_input(c, "noise");
    return noise ? bk_f64(noise) : NULL;
}

bk_route_blocks *routing_blocks(bk_operator_call *c)
{
    int64_t blocks = settings_of(c)->blocks, tokens = c->axis['T'];
    int64_t first = bk_operator_first_row(c), own = bk_operator_rows(c);
    int64_t *row = BK_NEW(c->arena, int64_t, blocks + 1);
    for (int64_t i = 0; i <= blocks; i++) {
        int64_t local = tokens * i / blocks - first;
        row[i] = local < 0 ? 0 : local > own ? own : local;
    }
    bk_route_blocks *b = BK_NEW(c->arena, bk_route_blocks, 1);
    *b = (bk_route_blocks){.count = blocks, .row = row, .shared = c->world->size > 1};
    return b;
}

bk_capacity routing_capacity(const bk_operator_call *c)
{
    const routing_settings *s = settings_of(c);
    return (bk_capacity){s->capacity_factor, s->min_capacity, (bk_drop_policy)s->drop_policy};
}

/* ---- results ---- */

static void output(bk_operator_call *c, const char *name, bk_dtype dtype, int64_t rows,
                   int64_t columns, const void *data)
{
    bk_tensor *x = bk_tensor_new(c->arena, dtype, BK_SHAPE(rows, columns));
    memcpy(x->data, data, (size_t)bk_count(x) * bk_dtype_size(dtype));
    bk_operator_output(c, name, x);
}

/* Scope local has one row of potentials for each block. */
static void output_bias(bk_operator_call *c, const bk_route *r, const double *bias)
{
    int64_t experts = c->axis['E'], blocks = settings_of(c)->blocks;
    if (r->transport && choice_of(c, "scope") != 0)
        output(c, "bias", BK_F64, blocks, experts, r->bias);
    else
        bk_operator_output(
            c, "bias",
            bk_tensor_wrap(c->arena, BK_F64, BK_SHAPE(experts), (void *)(uintptr_t)bias));
}

/* The state behind the step, as bk_model_step_routers makes it. */
static const double *next_bias(bk_operator_call *c, const bk_router_kind *kind,
                               const bk_moe_state *state, const bk_route *r, const double *bias)
{
    int64_t experts = c->axis['E'], *count = BK_NEW(c->arena, int64_t, experts);
    if (r->next || !settings_of(c)->training || !kind->update)
        return r->next ? r->next : bias;
    double *next = BK_NEW(c->arena, double, experts);
    memcpy(next, bias, (size_t)experts * sizeof *next);
    memcpy(count, state->load, (size_t)experts * sizeof *count);
    bk_sum_i64(c->world->route, experts, count);
    kind->update(c->config, experts, count, next);
    return next;
}

static void output_weight(bk_operator_call *c, int64_t tokens, int64_t k, const bk_route *r)
{
    double *weight = BK_NEW(c->arena, double, tokens *k);
    for (int64_t i = 0; i < tokens * k; i++)
        weight[i] = bk_route_sends(r, i) ? r->weight[i] : 0.0;
    output(c, "weight", BK_F64, tokens, k, weight);
}

routing_choices routing_choices_of(bk_operator_call *c, const bk_route *r)
{
    return routing_gather_choices(c, choice_of(c, "scope") == 0 ? 1 : settings_of(c)->blocks, r);
}

static void output_choices(bk_operator_call *c, const bk_route *r)
{
    routing_choices x = routing_choices_of(c, r);
    bk_operator_output(c, "token", x.token);
    bk_operator_output(c, "weight", x.weight);
}

static void output_slots(bk_operator_call *c, const bk_route *r)
{
    int64_t tokens = bk_operator_rows(c), k = r->slots;
    output(c, "index", BK_I32, tokens, k, r->index);
    output_weight(c, tokens, k, r);
    if (r->kept)
        output(c, "kept", BK_I32, tokens, k, r->kept);
}

void routing_output(bk_operator_call *c, const bk_router_kind *kind, const bk_moe_state *state,
                    const bk_route *r, const double *bias)
{
    if (kind->flags & BK_ROUTER_EXPERTS)
        output_choices(c, r);
    else
        output_slots(c, r);
    if (bk_operator_find(c->op.output, "plan") >= 0 && r->transport)
        output(c, "plan", BK_F64, bk_operator_rows(c), c->axis['E'], r->plan);
    if (kind->flags & BK_ROUTER_STATE)
        output_bias(c, r, next_bias(c, kind, state, r, bias));
    if (kind->flags & BK_ROUTER_TRANSPORT)
        bk_attribute_set_integer(&c->attributes, "ot", r->transport);
}

void routing_output_loss(bk_operator_call *c, const char *name, const double *record)
{
    double value;
    bk_sum_lanes(c->world->loss, &c->tape.lanes, 1, record, &value);
    bk_operator_output_scalar(c, name, value);
}

void routing_figures(bk_operator_call *c, bk_moe_state *state, const bk_route *r)
{
    bk_moe_figures f = {0};
    bk_moe_state_figures(state, c->world->route, &f);
    f.ot_steps = r->transport;
    bk_routing_attributes(&f, &c->attributes);
}

void routing_seed(const bk_operator_call *c, const char *name, double weight, double *record)
{
    for (int64_t l = 0; l < c->tape.lanes.count; l++)
        record[l] = weight * bk_operator_seed(c, name);
}
