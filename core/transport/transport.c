#include "core/transport/internal.h"

#include <math.h>
#include <string.h>

const char *bk_transport_status_name(bk_transport_status status)
{
    static const char *const name[] = {[BK_TRANSPORT_CONVERGED] = "converged",
                                       [BK_TRANSPORT_FIXED] = "fixed",
                                       [BK_TRANSPORT_MAX_ITERATIONS] = "max_iterations",
                                       [BK_TRANSPORT_STAGNATED] = "stagnated",
                                       [BK_TRANSPORT_NOT_FINITE] = "not_finite",
                                       [BK_TRANSPORT_INFEASIBLE] = "infeasible",
                                       [BK_TRANSPORT_BAD_INPUT] = "bad_input"};
    return name[status];
}

const char *bk_transport_status_sentence(bk_transport_status status)
{
    static const char *const sentence[] = {
        [BK_TRANSPORT_CONVERGED] = "the marginals are met within the tolerance",
        [BK_TRANSPORT_FIXED] = "the sweeps asked for were done (tolerance=0)",
        [BK_TRANSPORT_MAX_ITERATIONS] =
            "the iterations ran out before the tolerance was met: allow more (iterations=N); "
            "method=newton needs fewest",
        [BK_TRANSPORT_STAGNATED] =
            "the error stopped falling above the tolerance: rounding allows no less, or the "
            "problem is too sharp for this method; use dtype=f64, method=newton, or a larger "
            "epsilon",
        [BK_TRANSPORT_NOT_FINITE] =
            "a number overflowed in every form of the sweeps: scale the cost (cost_scale=max) or "
            "use a larger epsilon",
        [BK_TRANSPORT_INFEASIBLE] = "a row or column of mass has no finite cost",
        [BK_TRANSPORT_BAD_INPUT] = "a cost or a mass is not a number that can be used"};
    return sentence[status];
}

/* ---- the solve ---- */

/* auto: sweeps are recorded where neither envelope nor a converged solution is sure. */
static bool records(const bk_transport *problem, const bk_transport_config *c)
{
    bool asked = c->gradient == BK_GRADIENT_UNROLLED || c->gradient == BK_GRADIENT_AUTO;
    return problem->differentiate && asked && bk_transport_unrollable(c) &&
           !bk_transport_translates(c);
}

static bk_transport_status run(bk_transport_working *w)
{
    static bk_transport_status (*const method[])(bk_transport_working *) = {
        [BK_TRANSPORT_SINKHORN] = bk_transport_solve_sinkhorn,
        [BK_TRANSPORT_NEWTON] = bk_transport_solve_newton,
        [BK_TRANSPORT_SNS] = bk_transport_solve_sns};
    return method[w->config.method](w);
}

bk_status bk_transport_solve(const bk_transport *problem, const bk_transport_config *config,
                             bk_transport_result *result)
{
    bk_transport_working *w = bk_transport_open(problem, config, result);
    BK_TRY(bk_transport_check(config));
    w->record = records(problem, config);
    bk_arena_mark mark = bk_arena_get_mark(problem->scratch);
    bk_status status = bk_transport_prepare(w);
    if (status == BK_OK) {
        result->status = run(w);
        bk_transport_finish(w);
    }
    bk_arena_release(problem->scratch, mark);
    return status;
}

double bk_transport_value(const bk_transport_result *result)
{
    const bk_transport_config *config = &result->working->config;
    return config->value == BK_VALUE_COST ? result->cost
           : config->value == BK_VALUE_KL ? result->kl
                                          : result->entropy;
}

/* ---- the plan ---- */

/* The place of own row i among the rows with mass; -1: it has none. */
static int64_t live_row(const bk_transport_working *w, int64_t i)
{
    int64_t low = 0, high = w->rows;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (w->row[middle] < i)
            low = middle + 1;
        else
            high = middle;
    }
    return low < w->rows && w->row[low] == i ? low : -1;
}

void bk_transport_plan_row(const bk_transport_result *result, int64_t i, void *p)
{
    const bk_transport_working *w = result->working;
    size_t size = bk_dtype_size(w->problem.dtype);
    bk_arena_mark mark = bk_arena_get_mark(w->problem.scratch);
    double *buffer = BK_NEW(w->problem.scratch, double, 2 * w->columns);
    int64_t live = live_row(w, i);
    memset(p, 0, (size_t)w->problem.columns * size);
    if (live >= 0) {
        char *row = (char *)(buffer + w->columns);
        w->kernel->plan(w->columns, w->factor, bk_transport_row(w, live, buffer), w->v, w->u[live],
                        row);
        for (int64_t j = 0; j < w->columns; j++)
            memcpy((char *)p + (size_t)w->column[j] * size, row + (size_t)j * size, size);
    }
    bk_arena_release(w->problem.scratch, mark);
}

void bk_transport_describe(const bk_transport_result *r, bk_attributes *attributes)
{
    const bk_transport_config *config = &r->working->config;
    const struct {
        const char *name;
        int64_t value;
    } counts[] = {
        {"iterations", config->method == BK_TRANSPORT_SINKHORN ? r->sweeps : r->newton_steps},
        {"converged", r->status <= BK_TRANSPORT_FIXED},
        {"sweeps", r->sweeps},
        {"newton_steps", r->newton_steps},
        {"cg_iterations", r->cg_iterations},
        {"half_steps", r->half_steps},
        {"escalations", r->escalations},
        {"guard_events", r->guard_events},
        {"shifted_sweeps", r->shifted_sweeps},
        {"status", r->status},
        {"mode", r->mode}};
    const struct {
        const char *name;
        double value;
    } figures[] = {{"residual", r->residual_a + r->residual_b},
                   {"residual_a", r->residual_a},
                   {"residual_b", r->residual_b},
                   {"epsilon", r->epsilon},
                   {"cost", r->cost},
                   {"kl", r->kl},
                   {"entropy", r->entropy},
                   {"dual", r->dual},
                   {"gap", r->gap}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        bk_attribute_set_integer(attributes, counts[i].name, counts[i].value);
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        bk_attribute_set(attributes, figures[i].name, figures[i].value);
}
