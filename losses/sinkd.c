/* losses/sinkd.c - batch-wise Sinkhorn distance between student and teacher rows.  For one group of
 * B rows, p = softmax(student/T), q = softmax(teacher/T):
 *   C_ij = sum_v |p_iv - q_jv|;  X = exp(-C/epsilon);  N times: X /= row sums, X /= column sums;
 *   P = X;  L = sum_ij P_ij C_ij.
 * Source: "Sinkhorn Distance Minimization for Knowledge Distillation", LREC-COLING 2024, arXiv
 * 2402.17110.  Student rows stay on their rank, teacher rows are gathered; one sum of B numbers
 * (rule F3) an iteration. */
#include "losses/sinkd.h"

#include "core/attributes.h"
#include "core/vector.h"

#include <math.h>
#include <string.h>

static const bk_option options[] = {
    BK_OPTION_F64_ABOVE(bk_sinkd_config, temperature, 2.0, 0.0, 1e6, "T: softmax of logits / T"),
    BK_OPTION_F64(bk_sinkd_config, epsilon, 0.1, 1e-3, 1e3, "entropic regularisation"),
    BK_OPTION_I64(bk_sinkd_config, iterations, 20, 1, 10000, "normalisations of rows and columns"),
    BK_OPTION_F64(bk_sinkd_config, tolerance, 0.0, 0.0, 1.0,
                  "> 0: stop when the row sums are this near to 1"),
    BK_OPTION_CHOICE(
        bk_sinkd_config, gradient, BK_SINKD_UNROLLED, "unrolled|envelope|implicit",
        "unrolled: of the printed loss; envelope: plan held; implicit: marginals held"),
    BK_OPTION_CHOICE(bk_sinkd_config, reduction, 0, "mean|sum",
                     "mean: divided by the global row count"),
    BK_OPTION_TEXT(bk_sinkd_config, group, "global",
                   "rows matched together: global, lane, sequence, or a size"),
    BK_OPTION_BOOL(bk_sinkd_config, debias, false,
                   "minus half of student against itself and half of teacher against itself"),
    BK_TOP_K(bk_sinkd_config),
    BK_OPTION_I64(bk_sinkd_config, chunk, 4096, 0, 1 << 30,
                  "vocabulary columns at a time; 0 = all"),
    BK_OPTION_CHOICE(bk_sinkd_config, solver, BK_SINKD_SINKHORN, "sinkhorn|newton",
                     "newton: to the tolerance, for small epsilon; iterations = most steps"),
    BK_OPTION_CHOICE(bk_sinkd_config, domain, BK_SINKD_AUTO, "auto|direct|log",
                     "direct: fast, epsilon >= 0.025 (f64: 0.003); auto: where it may"),
    BK_OPTION_END,
};

static bk_status check_solver(const bk_sinkd_config *c)
{
    bool newton = c->solver == BK_SINKD_NEWTON;
    if (newton && c->tolerance == 0.0)
        return bk_fail(BK_USAGE, "solver=newton of sinkd solves to a tolerance (tolerance=0): set "
                                 "it, 1e-6 say");
    if (newton && c->gradient == BK_SINKD_UNROLLED)
        return bk_fail(BK_USAGE, "solver=newton of sinkd has no sweeps to unroll "
                                 "(gradient=unrolled): use implicit or envelope");
    if (newton && c->domain == BK_SINKD_DIRECT)
        return bk_fail(BK_USAGE, "solver=newton of sinkd works with logarithms (domain=direct): "
                                 "remove domain");
    return BK_OK;
}

static bk_status check(const void *config, bk_dtype dtype)
{
    static const char *const names[] = {"global", "lane", "sequence"};
    const bk_sinkd_config *c = config;
    int64_t size;
    BK_TRY(check_solver(c));
    if (c->debias && c->top_k > 0)
        return bk_fail(BK_USAGE,
                       "debias=true of sinkd does not go with top_k=%lld: the two biases would not "
                       "cancel; remove one",
                       (long long)c->top_k);
    if (c->domain == BK_SINKD_DIRECT && c->epsilon < bk_sinkd_direct_bound(dtype))
        return bk_fail(BK_USAGE,
                       "domain=direct of sinkd needs epsilon >= %g in %s (epsilon=%g): "
                       "exp(-2/epsilon) would underflow; use domain=log or auto",
                       bk_sinkd_direct_bound(dtype), bk_dtype_name(dtype), c->epsilon);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(c->group, names[i]) == 0)
            return BK_OK;
    if (bk_parse_i64(c->group, &size) && size >= 1)
        return BK_OK;
    return bk_fail(BK_USAGE,
                   "group=%s of sinkd is not known: use global, lane, sequence or a number of rows",
                   c->group);
}

static const char *whole(const void *config)
{
    return ((const bk_sinkd_config *)config)->debias ? "debias" : NULL;
}

static bk_status fits(const void *config, bool sequences)
{
    const bk_sinkd_config *c = config;
    if (sequences || strcmp(c->group, "sequence") != 0)
        return BK_OK;
    return bk_fail(BK_USAGE,
                   "group=sequence of sinkd matches the rows of one sample, and this model "
                   "has one row a sample: use global, lane or a number of rows");
}

/* ---- what a call returns ---- */

/* value[m] += share sum_ij P_ij C_ij over the rows of each own lane, in row order. */
static void add_value(bk_tape *t, const bk_sinkd *s, double share, double *value)
{
    double *x = BK_NEW(t->scratch, double, s->columns);
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
        for (int64_t i = 0; i < b->rows; i++) {
            double sum = 0.0;
            bk_sinkd_plan_row(s, b, i, x);
            for (int64_t j = 0; j < b->columns; j++)
                sum += x[j] * bk_sinkd_cost(s, b->s[i * b->columns + j]);
            value[bk_sinkhorn_lane(&s->problem, b->first + i)] += share * s->weight * sum;
        }
    }
}

/* The potential itself, out of a vector of f or g. */
static double potential(const bk_sinkd *s, double x)
{
    return s->direct ? bk_log_one(x) : x;
}

/* Collective.  <P,C> + epsilon sum P (log P - 1) = epsilon sum_ij P_ij (f_i + g_j - 1). */
static double entropic_value(bk_tape *t, const bk_sinkd *s)
{
    int64_t n = s->iterations;
    double *x = BK_NEW(t->scratch, double, s->columns), value;
    double *local = BK_ZNEW(t->scratch, double, t->lanes.count);
    double *g = BK_NEW(t->scratch, double, s->columns);
    for (int64_t j = 0; j < s->columns; j++)
        g[j] = potential(s, s->g[n][j]);
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
        for (int64_t i = 0; i < b->rows; i++) {
            double *to = &local[bk_sinkhorn_lane(&s->problem, b->first + i)];
            double f = potential(s, s->f[n][b->first + i]);
            bk_sinkd_plan_row(s, b, i, x);
            for (int64_t j = 0; j < b->columns; j++)
                *to += x[j] * (f + g[b->column + j] - 1.0);
        }
    }
    bk_reduce_vector(bk_comm_reducer(s->args.comm), &t->lanes, 1, local, &value, t->scratch);
    return s->config->epsilon * value;
}

/* Collective.  Newton steps of the problem that took most. */
static int64_t most_steps(const bk_sinkd *s)
{
    double most = 0.0;
    for (int64_t p = 0; p < bk_sinkd_problems(s); p++)
        most = fmax(most, (double)s->solution[p].newton_steps);
    bk_reduce_max(bk_comm_reducer(s->args.comm), 1, &most);
    return (int64_t)most;
}

/* Collective. */
static void report(bk_tape *t, const bk_sinkd *s)
{
    bk_attributes *a = s->args.attributes;
    if (!a)
        return;
    bk_attribute_set_integer(a, "rows", s->total);
    bk_attribute_set_integer(a, "groups", s->groups);
    bk_attribute_set_integer(a, "iterations", s->solution ? most_steps(s) : s->iterations);
    bk_attribute_set(a, "row_violation", bk_sinkd_row_violation(t, s));
    bk_attribute_set(a, "entropic_value", entropic_value(t, s));
}

static void write_plan(bk_tape *t, const bk_sinkd *s)
{
    if (!s->args.plan)
        return;
    BK_ASSERT(s->groups <= 1, "a plan needs one global group");
    bk_tensor *plan = bk_tape_constant(t, BK_F64, BK_SHAPE(s->rows, s->total));
    bk_tensor *cost = bk_tape_constant(t, BK_F64, BK_SHAPE(s->rows, s->total));
    for (int64_t i = 0; i < s->rows; i++)
        bk_sinkd_plan_row(s, &s->block[0], i, (double *)plan->data + i * s->total);
    for (int64_t i = 0; i < s->rows * s->total; i++)
        ((double *)cost->data)[i] = bk_sinkd_cost(s, s->block[0].s[i]);
    *s->args.plan = plan;
    *s->args.cost = cost;
}

/* ---- the tape node ---- */

/* What the node is made from. */
typedef struct attributes {
    bk_loss_args args;
    const bk_tensor *teacher; /* NULL: top */
    bk_top top;
} attributes;

/* W(p,q), and with `debias` W(p,p) and W(q,q). */
enum { MATCHINGS = 3 };
static const double share_of[MATCHINGS] = {1.0, -0.5, -0.5};

typedef struct matchings {
    int count;
    bk_sinkd match[MATCHINGS];
} matchings;

static void shape(bk_tape *t, bk_node *n)
{
    const attributes *a = n->attributes;
    BK_ASSERT(!a->teacher ||
                  (bk_same_shape(n->in[0], a->teacher) && a->teacher->dtype == n->in[0]->dtype),
              "student and teacher differ in shape");
    n->out[0]->dtype = BK_F64;
    n->out[0]->dims = 1;
    n->out[0]->shape[0] = t->lanes.count;
}

/* Collective.  Rows, sides and costs of all matchings. */
static void make_costs(bk_tape *t, const attributes *a, matchings *m)
{
    bk_sinkd *s = &m->match[0];
    *s = (bk_sinkd){.args = a->args, .config = a->args.config};
    m->count = s->config->debias ? MATCHINGS : 1;
    bk_sinkd_match_rows(t, s);
    s->weight = s->config->reduction == BK_SUM ? 1.0 : s->total > 0 ? 1.0 / (double)s->total : 0.0;
    s->left = bk_sinkd_side_new(t, s, a->args.logits);
    if (!a->teacher) {
        bk_sinkd_top_cost(t, s, &a->top);
        return;
    }
    s->right = bk_sinkd_side_new(t, s, a->teacher);
    bk_sinkd_side_hold(t, s, s->right);
    if (s->config->debias) {
        m->match[1] = m->match[2] = *s;
        bk_sinkd_side_hold(t, s, s->left);
        m->match[1].right = s->left;
        m->match[2].left = s->right;
    }
    for (int i = 0; i < m->count; i++)
        bk_sinkd_make_cost(t, &m->match[i]);
}

static void forward(bk_tape *t, bk_node *n)
{
    matchings *m = n->saved = BK_ZNEW(t->arena, matchings, 1);
    double *value = n->out[0]->data;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    make_costs(t, n->attributes, m);
    memset(value, 0, (size_t)t->lanes.count * sizeof *value);
    for (int i = 0; i < m->count; i++) {
        bk_sinkd_make_plan(t, &m->match[i]);
        add_value(t, &m->match[i], share_of[i], value);
    }
    report(t, &m->match[0]);
    write_plan(t, &m->match[0]);
    bk_arena_release(t->scratch, mark);
}

/* Both arguments of -W(p,p)/2 move: h_i -= 1/2 sum_j (G_ij + G_ji) sign(p_iv - p_jv). */
static void own_back(bk_tape *t, const bk_sinkd *s, const double *seed)
{
    double *const *adjoint = bk_sinkd_plan_back(t, s);
    double **turned = BK_NEW(t->scratch, double *, s->blocks + 1);
    for (int64_t k = 0; k < s->blocks; k++)
        turned[k] = BK_NEW(t->scratch, double, s->block[k].rows * s->block[k].columns);
    bk_sinkd_transpose(t, s, adjoint, turned);
    for (int64_t k = 0; k < s->blocks; k++)
        for (int64_t i = 0; i < s->block[k].rows * s->block[k].columns; i++)
            turned[k][i] = share_of[1] * (adjoint[k][i] + turned[k][i]);
    bk_sinkd_cost_back(t, s, turned, seed);
}

/* Every lane has the same seed: rows of other lanes see this lane's loss through the plan. */
static void backward(bk_tape *t, bk_node *n)
{
    const matchings *m = n->saved;
    const bk_sinkd *s = &m->match[0];
    if (s->total == 0)
        return;
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    double *const *adjoint = bk_sinkd_plan_back(t, s);
    if (s->k > 0)
        bk_sinkd_top_cost_back(t, s, adjoint, n->out[0]->grad);
    else
        bk_sinkd_cost_back(t, s, adjoint, n->out[0]->grad);
    if (m->count > 1)
        own_back(t, &m->match[1], n->out[0]->grad);
    bk_arena_release(t->scratch, mark);
}

static const bk_op sinkd = {
    .name = "sinkd", .shape = shape, .forward = forward, .backward = backward, .collective = true};

static bk_tensor *apply(bk_tape *t, const bk_loss_args *args)
{
    const bk_sinkd_config *c = args->config;
    attributes a = {.args = *args};
    a.top = bk_top_read(t, args, c->top_k, c->temperature, &a.teacher);
    BK_ASSERT(a.teacher || !c->debias, "debias needs whole rows of the teacher");
    return bk_apply(t, &sinkd, 1, &args->logits, 1, &a, sizeof a)->out[0];
}

const bk_loss_kind bk_loss_sinkd = {
    .name = "sinkd",
    .summary = "batch-wise Sinkhorn distance between student and teacher rows",
    .source = "arXiv 2402.17110",
    .options = options,
    .config_size = sizeof(bk_sinkd_config),
    .flags = BK_LOSS_TEACHER | BK_LOSS_COLLECTIVE | BK_LOSS_GROUPS,
    .check = check,
    .fits = fits,
    .whole = whole,
    .apply = apply,
};
