/* The plan of SinKD by Newton (core/transport): for epsilon so small that sweeps would take
 * thousands. A group is a problem of its own; where groups straddle ranks, all ranks solve all of
 * them together, with no rows where they have none. */
#include "losses/sinkd.h"

#include "core/log.h"

#include <math.h>

/* -S is the cost, so epsilon is 1. */
static bk_transport_config config_of(const bk_sinkd *s)
{
    bk_transport_config c;
    bk_status read = bk_options_read(bk_transport_options, &c, NULL, "transport", NULL);
    BK_ASSERT(read == BK_OK, "the defaults of transport");
    c.method = BK_TRANSPORT_NEWTON;
    c.epsilon = 1.0;
    c.marginals = BK_MARGINALS_ONES;
    c.tolerance = s->config->tolerance;
    c.iterations = s->config->iterations;
    c.gradient = BK_GRADIENT_IMPLICIT;
    return c;
}

/* First row of each own lane, counted from the block's first row. */
static int64_t *lane_rows(bk_tape *t, const bk_sinkd *s, const bk_sinkhorn_block *b)
{
    int64_t *row = BK_ZNEW(t->arena, int64_t, t->lanes.count + 1);
    for (int64_t l = 0; b && l <= t->lanes.count; l++) {
        int64_t at = s->lane_row[l] - b->first;
        row[l] = at < 0 ? 0 : at > b->rows ? b->rows : at;
    }
    return row;
}

/* -S of the own rows of a block. */
static double *costs(bk_tape *t, const bk_sinkhorn_block *b)
{
    int64_t count = b ? b->rows * b->columns : 0;
    double *cost = BK_NEW(t->arena, double, count);
    for (int64_t i = 0; i < count; i++)
        cost[i] = -b->s[i];
    return cost;
}

static void solve(bk_tape *t, bk_sinkd *s, const bk_sinkhorn_block *b, int64_t total,
                  bk_transport_result *r)
{
    bk_transport problem = {.dtype = BK_F64,
                            .total = total,
                            .rows = b ? b->rows : 0,
                            .columns = total,
                            .cost = costs(t, b),
                            .lanes = &t->lanes,
                            .lane_row = lane_rows(t, s, b),
                            .reducer = s->shared ? bk_comm_reducer(s->args.comm) : NULL,
                            .differentiate = true,
                            .arena = t->arena,
                            .scratch = t->scratch};
    bk_transport_config config = config_of(s);
    /* Costs that are not numbers make a plan that is none, as sweeps would. */
    bool solved = bk_transport_solve(&problem, &config, r) == BK_OK;
    for (int64_t i = 0; b && i < b->rows; i++)
        s->f[1][b->first + i] = solved ? r->f[i] : NAN;
    for (int64_t j = 0; b && j < b->columns; j++)
        s->g[1][b->column + j] = solved ? r->g[j] : NAN;
}

int64_t bk_sinkd_problems(const bk_sinkd *s)
{
    return s->shared ? s->groups : s->blocks;
}

/* The own block of problem p; NULL. */
static const bk_sinkhorn_block *block_of(const bk_sinkd *s, int64_t p)
{
    for (int64_t k = 0; s->shared && k < s->blocks; k++) {
        int64_t at = s->first + s->block[k].first;
        if (s->block[k].rows > 0 && at >= s->start[p] && at < s->start[p + 1])
            return &s->block[k];
    }
    return s->shared ? NULL : &s->block[p];
}

void bk_sinkd_newton(bk_tape *t, bk_sinkd *s)
{
    s->iterations = s->total > 0;
    s->f[1] = BK_ZNEW(t->arena, double, s->rows);
    s->g[1] = BK_ZNEW(t->arena, double, s->columns);
    s->solution = BK_ZNEW(t->arena, bk_transport_result, bk_sinkd_problems(s));
    for (int64_t p = 0; p < bk_sinkd_problems(s); p++) {
        const bk_sinkhorn_block *b = block_of(s, p);
        solve(t, s, b, s->shared ? s->start[p + 1] - s->start[p] : b->columns, &s->solution[p]);
    }
}

/* Collective where figures are wanted: of the ranks, which may have problems of their own, the one
 * with the most speaks. */
static void report(const bk_sinkd *s, int64_t failed)
{
    static bool warned;
    double most = (double)failed;
    if (!s->args.attributes)
        return;
    bk_reduce_max(bk_comm_reducer(s->args.comm), 1, &most);
    if (most > 0.0)
        bk_warn_once(&warned,
                     "sinkd: Newton did not converge (%.0f of a rank's matchings); such plans are "
                     "held in the gradient: raise iterations or tolerance",
                     most);
}

void bk_sinkd_newton_back(bk_tape *t, const bk_sinkd *s, double *const *adjoint)
{
    int64_t failed = 0;
    for (int64_t p = 0; p < bk_sinkd_problems(s); p++) {
        const bk_sinkhorn_block *b = block_of(s, p);
        double *cost = b ? adjoint[b - s->block] : BK_NEW(t->scratch, double, 1);
        if (s->solution[p].status == BK_TRANSPORT_CONVERGED &&
            bk_transport_gradient(&s->solution[p],
                                  &(bk_transport_adjoint){.value = 1.0, .cost = cost}) == BK_OK)
            continue;
        failed++;
        for (int64_t i = 0; b && i < b->rows; i++)
            bk_sinkd_plan_row(s, b, i, cost + i * b->columns);
    }
    report(s, failed);
}
