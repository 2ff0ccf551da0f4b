/* Operators router.<kind>: index and weight of logits[T,E], tokens split over the ranks. */
#include "jobs/op/routing.h"

#include <string.h>

typedef struct router_settings {
    routing_settings routing;
    bool plan;
} router_settings;

static const bk_option settings[] = {
    ROUTING_OPTIONS(router_settings),
    BK_OPTION_BOOL(router_settings, plan, false, "write the transport plan, where there is one"),
    BK_OPTION_END,
};

/* Of kinds that solve no transport problem. */
static const bk_option settings_without_plan[] = {
    ROUTING_OPTIONS(router_settings),
    BK_OPTION_END,
};

static bk_status check(bk_operator_call *c)
{
    const bk_router_kind *kind = c->op.plug_in;
    if ((kind->flags & BK_ROUTER_TRANSPORT) && !((const router_settings *)c->own)->plan)
        bk_operator_drop(c->op.output, "plan");
    return routing_check(c, kind);
}

static bk_route_args args_of(bk_operator_call *c)
{
    const bk_router_kind *kind = c->op.plug_in;
    const routing_settings *s = &((const router_settings *)c->own)->routing;
    const bk_tensor *noise_logits = bk_operator_input(c, "noise_logits");
    bk_route_args a = {.kind = kind,
                       .logits = bk_f64(bk_operator_input(c, "logits")),
                       .noise_logits = noise_logits ? bk_f64(noise_logits) : NULL,
                       .tokens = bk_operator_rows(c),
                       .experts = c->axis['E'],
                       .k = s->k,
                       .first_token = bk_operator_first_row(c),
                       .noise = routing_noise(c),
                       .bias = routing_bias(c, kind),
                       .reducer = bk_comm_reducer(c->world->route),
                       .lanes = &c->tape.lanes,
                       .blocks = routing_blocks(c),
                       .aux = (bk_moe_aux)s->aux,
                       .capacity_factor = s->capacity_factor,
                       .training = s->training,
                       .seed = (uint64_t)s->seed,
                       .step = s->step,
                       .layer = (int)s->layer,
                       .config = c->config,
                       .arena = c->tape.arena,
                       .scratch = c->tape.scratch,
                       .attributes = &c->attributes};
    a.mask = bk_operator_mask(c, &a.valid);
    return a;
}

/* Room for what goes out through an input [T,E]. */
static bk_tensor *new_gradient(bk_operator_call *c, const bk_route_args *a, const char *name)
{
    bk_tensor *grad = bk_tensor_new(c->arena, BK_F64, BK_SHAPE(a->tokens, a->experts));
    c->gradient[bk_operator_find(c->op.input, name)] = grad;
    return grad;
}

/* The incoming gradient of the weights that count; NULL when none is given. */
static const double *seed_of_weight(bk_operator_call *c, const bk_route_args *a, const bk_route *r)
{
    bk_tensor *seed = bk_operator_seed_array(c, "weight");
    if (!seed)
        return NULL;
    if (a->kind->flags & BK_ROUTER_EXPERTS) {
        routing_choices x = routing_choices_of(c, r);
        return routing_spread_seed(c, &x, bk_f64(seed));
    }
    double *gw = BK_ZNEW(c->arena, double, a->tokens * a->k);
    for (int64_t i = 0; i < a->tokens * a->k; i++)
        gw[i] = bk_route_sends(r, i) ? bk_f64(seed)[i] : 0.0;
    return gw;
}

static void backward(bk_operator_call *c, const bk_route_args *a, const bk_route *r)
{
    const routing_settings *s = &((const router_settings *)c->own)->routing;
    bk_tensor *logits = new_gradient(c, a, "logits");
    double *aux = BK_NEW(c->arena, double, a->lanes->count),
           *z = BK_NEW(c->arena, double, a->lanes->count);
    routing_seed(c, "aux", s->aux_weight, aux);
    routing_seed(c, "z", s->z_weight, z);
    bk_route_back b = {.weight = seed_of_weight(c, a, r),
                       .aux = s->aux ? aux : NULL,
                       .z = s->z ? z : NULL,
                       .logits = logits->data};
    if (a->noise_logits)
        b.noise_logits = new_gradient(c, a, "noise_logits")->data;
    bk_route_gradient(a, r, &b);
}

/* The capacity of experts that choose is known only now. */
static bk_status check_seed(const bk_operator_call *c)
{
    const bk_tensor *seed = bk_operator_seed_array(c, "weight"),
                    *weight = c->output[bk_operator_find(c->op.output, "weight")];
    if (!seed || seed->shape[1] == weight->shape[1])
        return BK_OK;
    return bk_fail(BK_INPUT, "grad/weight has %lld columns for %lld weights of an expert (%s)",
                   (long long)seed->shape[1], (long long)weight->shape[1], c->in);
}

static bk_status run(bk_operator_call *c)
{
    const bk_router_kind *kind = c->op.plug_in;
    const routing_settings *s = &((const router_settings *)c->own)->routing;
    bk_route_args a = args_of(c);
    bk_route r = {0};
    bk_moe_state state = {0};
    int64_t lanes = a.lanes->count;
    bk_route_losses losses = {.aux = s->aux ? BK_ZNEW(c->arena, double, lanes) : NULL,
                              .z = s->z ? BK_ZNEW(c->arena, double, lanes) : NULL};
    bk_moe_state_init(&state, c->arena, a.experts);
    bk_capacity capacity = routing_capacity(c);
    kind->route(&a, &r);
    bk_route_limit(&a, &capacity, &r);
    a.attributes = NULL;
    bk_route_measure(&a, &r, &losses);
    bk_moe_state_count(&state, &a, &r, losses.aux, losses.z);
    routing_output(c, kind, &state, &r, a.bias);
    if (losses.aux)
        routing_output_loss(c, "aux", losses.aux);
    if (losses.z)
        routing_output_loss(c, "z", losses.z);
    routing_figures(c, &state, &r);
    BK_TRY(check_seed(c));
    if (c->backward)
        backward(c, &a, &r);
    return BK_OK;
}

static bk_status choose(const bk_value *given, bk_operator *op)
{
    return routing_check_options(given, op, "plan");
}

/* Kind number `index` of those that look at the logits; NULL past the last. */
static const bk_router_kind *operator_kind(int index)
{
    int i = 0;
    for (; bk_routers[i]; i++)
        if (!(bk_routers[i]->flags & BK_ROUTER_BENCHMARK) && index-- == 0)
            break;
    return bk_routers[i];
}

bool bk_operator_routers(int index, bk_arena *arena, bk_operator *op)
{
    const bk_router_kind *kind = operator_kind(index);
    if (!kind)
        return false;
    bool plans = (kind->flags & BK_ROUTER_TRANSPORT) != 0;
    *op = (bk_operator){.name = bk_arena_printf(arena, "router.%s", kind->name),
                        .summary = kind->summary,
                        .kind = kind->name,
                        .rows = 'T',
                        .own_options = plans ? settings : settings_without_plan,
                        .own_size = sizeof(router_settings),
                        .options = kind->options,
                        .size = kind->config_size,
                        .plug_in = kind,
                        .choose = choose,
                        .check = check,
                        .examine = routing_examine,
                        .run = run};
    bk_operator_add(op->input, (bk_operator_array){.name = "logits",
                                                   .axes = "TE",
                                                   .type = BK_OPERATOR_DOUBLE,
                                                   .differentiable = true});
    if (kind->flags & BK_ROUTER_NOISE_GATE)
        bk_operator_add(op->input, (bk_operator_array){.name = "noise_logits",
                                                       .axes = "TE",
                                                       .type = BK_OPERATOR_DOUBLE,
                                                       .differentiable = true});
    routing_add_inputs(kind, op);
    routing_add_outputs(kind, true, op);
    if (plans)
        bk_operator_add(op->output, (bk_operator_array){.name = "plan",
                                                        .axes = "TE",
                                                        .type = BK_OPERATOR_DOUBLE,
                                                        .optional = true});
    return true;
}
