/* Operator transport: an entropic transport problem, its plan, potentials, value and gradients.
 * Rows are split over the ranks; columns, b and y are held by all. */
#include "core/transport/divergence.h"

#include "core/log.h"
#include "dist/collective.h"
#include "jobs/op/op.h"

#include <string.h>

typedef struct transport_settings {
    bk_operator_settings base;
} transport_settings;

static const bk_option settings[] = {
    BK_OPERATOR_DTYPE(transport_settings),
    BK_OPTION_END,
};

/* ---- checks ---- */

static const bk_transport_config *config_of(const bk_operator_call *c)
{
    return c->config;
}

static bk_status check_points(const bk_operator_call *c)
{
    bool cost = bk_operator_given(c, "cost"), x = bk_operator_given(c, "x"),
         y = bk_operator_given(c, "y");
    if (cost && (x || y))
        return bk_operator_refuse_input(c, x ? "x" : "y", "beside cost");
    if (!cost && !(x && y))
        return bk_fail(BK_USAGE, "input %s is missing (%s): transport reads cost, or x and y",
                       x   ? "y"
                       : y ? "x"
                           : "cost",
                       c->in);
    if (config_of(c)->debias && cost)
        return bk_fail(BK_USAGE, "debias=true needs x and y instead of cost (%s): remove it",
                       c->in);
    return BK_OK;
}

static bk_status check(bk_operator_call *c)
{
    BK_TRY(bk_transport_check(config_of(c)));
    BK_TRY(check_points(c));
    BK_TRY(bk_transport_check_marginals(config_of(c), bk_operator_given(c, "a"),
                                        bk_operator_given(c, "b")));
    if (config_of(c)->debias) {
        bk_operator_drop(c->op.output, "plan");
        c->op.output[bk_operator_find(c->op.output, "value")].seed = 1.0;
    }
    return BK_OK;
}

static int64_t blocks(const bk_operator_call *c)
{
    return bk_transport_blocks(c->axis['N']);
}

/* ---- arrays ---- */

static const void *data_of(const bk_operator_call *c, const char *name)
{
    const bk_tensor *x = bk_operator_input(c, name);
    return x ? x->data : NULL;
}

static bk_transport problem_of(bk_operator_call *c)
{
    return (bk_transport){.dtype = c->tape.dtype,
                          .total = c->axis['N'],
                          .rows = bk_operator_rows(c),
                          .columns = c->axis['M'],
                          .cost = data_of(c, "cost"),
                          .x = data_of(c, "x"),
                          .y = data_of(c, "y"),
                          .width = c->axis['D'],
                          .a = data_of(c, "a"),
                          .b = data_of(c, "b"),
                          .lanes = &c->tape.lanes,
                          .reducer = bk_comm_reducer(c->world->loss),
                          .differentiate = c->backward,
                          .arena = c->arena,
                          .scratch = c->tape.scratch};
}

static void output_plan(bk_operator_call *c, const bk_transport *p, const bk_transport_result *r)
{
    bk_tensor *plan = bk_tensor_new(c->arena, p->dtype, BK_SHAPE(p->rows, p->columns));
    for (int64_t i = 0; i < p->rows; i++)
        bk_transport_plan_row(
            r, i, (char *)plan->data + (size_t)(i * p->columns) * bk_dtype_size(p->dtype));
    bk_operator_output(c, "plan", plan);
}

static void output_potentials(bk_operator_call *c, const bk_transport *p, double *f, double *g)
{
    bk_operator_output(c, "f", bk_tensor_wrap(c->arena, BK_F64, BK_SHAPE(p->rows), f));
    bk_operator_output(c, "g", bk_tensor_wrap(c->arena, BK_F64, BK_SHAPE(p->columns), g));
}

/* A gradient in double for input `name`; its data, zero, or NULL where the input is not given. */
static double *gradient(bk_operator_call *c, const char *name)
{
    bk_tensor *x = bk_operator_input(c, name);
    if (!x || !bk_operator_given(c, name))
        return NULL;
    bk_tensor *g = bk_tensor_new(c->arena, BK_F64, x->dims, x->shape);
    memset(g->data, 0, (size_t)bk_count(g) * sizeof(double));
    c->gradient[bk_operator_find(c->op.input, name)] = g;
    return g->data;
}

static void warn(const bk_operator_call *c, const bk_transport_result *r)
{
    if (r->status > BK_TRANSPORT_FIXED)
        bk_warn("transport ended as %s, residual %.3g (%s): %s",
                bk_transport_status_name(r->status), r->residual_a + r->residual_b, c->in,
                bk_transport_status_sentence(r->status));
}

/* The envelope and a gradient of the plan do not go together: said before the solve. */
static bk_status check_gradient(const bk_operator_call *c)
{
    const bk_transport_config *config = config_of(c);
    if (config->gradient == BK_GRADIENT_ENVELOPE && bk_operator_seed_array(c, "plan"))
        return bk_fail(BK_USAGE,
                       "grad/plan is given (%s): gradient=envelope differentiates value=kl or "
                       "entropy alone; remove it or use gradient=implicit",
                       c->in);
    return BK_OK;
}

/* A sweep that is unrolled is kept. */
static void warn_memory(const bk_operator_call *c, const bk_transport *p)
{
    enum { MANY = 1000, PRESET = 2000 };
    const bk_transport_config *config = config_of(c);
    int64_t sweeps = config->iterations > 0 ? config->iterations : PRESET;
    if (c->backward && config->gradient == BK_GRADIENT_UNROLLED && sweeps > MANY)
        bk_warn("gradient=unrolled keeps up to %lld sweeps (%s): %.3g MiB; gradient=implicit of a "
                "converged solve keeps none",
                (long long)sweeps, c->in,
                (double)(sweeps * (p->total + p->columns)) * sizeof(double) / 0x1p20);
}

/* ---- one problem ---- */

static bk_status backward(bk_operator_call *c, const bk_transport *p, const bk_transport_result *r)
{
    const bk_tensor *seed = bk_operator_seed_array(c, "plan");
    double *cost = gradient(c, "cost"), *x = gradient(c, "x"), *y = gradient(c, "y");
    if (!cost)
        cost = BK_ZNEW(c->arena, double, p->rows * p->columns);
    bk_transport_adjoint adjoint = {.plan = seed ? seed->data : NULL,
                                    .value = bk_operator_seed(c, "value"),
                                    .cost = cost,
                                    .a = gradient(c, "a"),
                                    .b = gradient(c, "b")};
    BK_TRY(bk_transport_gradient(r, &adjoint));
    if (x)
        bk_transport_points_back(p, (bk_metric)config_of(c)->metric, cost, x, y);
    return BK_OK;
}

static bk_status run_problem(bk_operator_call *c, const bk_transport *p)
{
    bk_transport_result r;
    BK_TRY(check_gradient(c));
    warn_memory(c, p);
    BK_TRY(bk_transport_solve(p, config_of(c), &r));
    warn(c, &r);
    output_plan(c, p, &r);
    output_potentials(c, p, r.f, r.g);
    bk_operator_output_scalar(c, "value", bk_transport_value(&r));
    bk_transport_describe(&r, &c->attributes);
    return c->backward ? backward(c, p, &r) : BK_OK;
}

/* ---- a divergence ---- */

static bk_status run_divergence(bk_operator_call *c, const bk_transport *p)
{
    bk_divergence_result r;
    BK_TRY(bk_divergence_solve(p, config_of(c), &r));
    warn(c, &r.between);
    output_potentials(c, p, r.f, r.g);
    bk_operator_output_scalar(c, "value", r.value);
    bk_transport_describe(&r.between, &c->attributes);
    bk_attribute_set_integer(&c->attributes, "converged", r.converged);
    bk_attribute_set_integer(&c->attributes, "self_iterations_a", r.self_iterations[0]);
    bk_attribute_set_integer(&c->attributes, "self_iterations_b", r.self_iterations[1]);
    if (!r.converged && r.between.status <= BK_TRANSPORT_FIXED)
        bk_warn("OT(a,a) or OT(b,b) of the divergence did not converge (%s): allow more iterations",
                c->in);
    /* Nobody asked for gradients: none of a divergence that they do not belong to. */
    bool asked = bk_operator_seed_array(c, "value") != NULL;
    c->backward = c->backward && (asked || r.converged);
    if (!c->backward)
        return BK_OK;
    return bk_divergence_gradient(&r, bk_operator_seed(c, "value"), gradient(c, "x"),
                                  gradient(c, "y"), gradient(c, "a"), gradient(c, "b"));
}

static bk_status run(bk_operator_call *c)
{
    bk_transport p = problem_of(c);
    return config_of(c)->debias ? run_divergence(c, &p) : run_problem(c, &p);
}

/* ---- the table ---- */

static void add_input(bk_operator *op, const char *name, const char *axes, bk_operator_type type)
{
    bk_operator_add(
        op->input,
        (bk_operator_array){
            .name = name, .axes = axes, .type = type, .optional = true, .differentiable = true});
}

static void add_output(bk_operator *op, const char *name, const char *axes, bool differentiable)
{
    bk_operator_add(op->output, (bk_operator_array){.name = name,
                                                    .axes = axes,
                                                    .type = BK_OPERATOR_DOUBLE,
                                                    .differentiable = differentiable});
}

bool bk_operator_transports(int index, bk_arena *arena, bk_operator *op)
{
    (void)arena;
    if (index > 0)
        return false;
    *op = (bk_operator){.name = "transport",
                        .summary = "entropic optimal transport of a to b",
                        .kind = "transport",
                        .rows = 'N',
                        .own_options = settings,
                        .own_size = sizeof(transport_settings),
                        .options = bk_transport_options,
                        .size = sizeof(bk_transport_config),
                        .check = check,
                        .lanes = blocks,
                        .run = run};
    add_input(op, "cost", "NM", BK_OPERATOR_REAL);
    add_input(op, "x", "ND", BK_OPERATOR_REAL);
    add_input(op, "y", "MD", BK_OPERATOR_REAL);
    add_input(op, "a", "N", BK_OPERATOR_DOUBLE);
    add_input(op, "b", "M", BK_OPERATOR_DOUBLE);
    add_output(op, "plan", "NM", true);
    add_output(op, "f", "N", false);
    add_output(op, "g", "M", false);
    add_output(op, "value", "", true);
    return true;
}
