/* What has mass, the marginals, the range of the cost, and what cannot be solved. */
#include "core/transport/internal.h"

#include "core/parallel.h"

#include <math.h>
#include <string.h>

int64_t bk_transport_blocks(int64_t total)
{
    enum { BLOCKS = 64, LEAST_ROWS = 128 };
    int64_t blocks = 1;
    while (blocks < BLOCKS && 2 * blocks * LEAST_ROWS <= total)
        blocks *= 2;
    return blocks;
}

/* ---- rows ---- */

const void *bk_transport_row(const bk_transport_working *w, int64_t i, void *buffer)
{
    size_t size = bk_dtype_size(w->problem.dtype);
    if (w->cost) {
        int64_t place = w->dense ? w->row[i] : i;
        return (const char *)w->cost + (size_t)(place * w->columns) * size;
    }
    const char *x = (const char *)w->x + (size_t)(w->row[i] * w->problem.width) * size;
    w->kernel->distances(w->columns, w->problem.width, (bk_metric)w->config.metric, x, w->y,
                         buffer);
    return buffer;
}

const double *bk_transport_row_f64(const bk_transport_working *w, int64_t i, double *buffer)
{
    const void *row = bk_transport_row(w, i, buffer + w->columns);
    if (w->problem.dtype == BK_F64)
        return row;
    w->kernel->widen(w->columns, row, buffer);
    return buffer;
}

/* First row of own block l; the global number of the first own row, for messages. */
static int64_t block_start(const bk_transport_working *w, int64_t l)
{
    return w->problem.lane_row ? w->problem.lane_row[l]
                               : bk_lane_row(w->problem.lanes, w->problem.rows, l);
}

static int64_t first_row(const bk_transport_working *w)
{
    return w->problem.lane_row ? 0 : bk_lanes_first_sample(w->problem.lanes);
}

/* ---- sums over row blocks ---- */

typedef struct blocks_job {
    bk_transport_working *w;
    bk_transport_body *body;
    void *context;
    int64_t width;
    double *sum, *buffer;
} blocks_job;

static void work_blocks(void *context, int64_t first, int64_t last)
{
    const blocks_job *j = context;
    for (int64_t l = first; l < last; l++)
        j->body(j->w, j->context, j->w->lane_row[l], j->w->lane_row[l + 1], j->sum + l * j->width,
                j->buffer + l * 3 * j->w->columns);
}

void bk_transport_sum(bk_transport_working *w, int64_t width, bk_transport_body *body,
                      void *context, double *out)
{
    const bk_lanes *lanes = w->problem.lanes;
    bk_arena *scratch = w->problem.scratch;
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    blocks_job job = {.w = w,
                      .body = body,
                      .context = context,
                      .width = width,
                      .sum = BK_ZNEW(scratch, double, lanes->count *width),
                      .buffer = BK_NEW(scratch, double, lanes->count * 3 * w->columns)};
    int64_t rows = lanes->count > 0 ? w->rows / lanes->count + 1 : 0;
    bk_parallel(lanes->count, 1, rows * w->columns, work_blocks, &job);
    if (out)
        bk_reduce_vector(w->problem.reducer, lanes, width, job.sum, out, scratch);
    bk_arena_release(scratch, mark);
}

void bk_transport_sum_ranks(const bk_transport *problem, int64_t n, const double *own, double *out)
{
    bk_lanes one = *problem->lanes;
    one.count = one.count > 0;
    bk_reduce_vector(problem->reducer, &one, n, own, out, problem->scratch);
}

/* ---- marginals ---- */

static bool given(const bk_transport_working *w)
{
    return w->config.marginals <= BK_MARGINALS_NORMALIZE;
}

/* Mass of own row i, of column j, before they are divided by anything. */
static double row_mass(const bk_transport_working *w, int64_t i)
{
    if (given(w) && w->problem.a)
        return w->problem.a[i];
    return w->config.marginals == BK_MARGINALS_ONES ? 1.0 : 1.0 / (double)w->problem.total;
}

static double column_mass(const bk_transport_working *w, int64_t j)
{
    if (given(w) && w->problem.b)
        return w->problem.b[j];
    double m = (double)w->problem.columns;
    return w->config.marginals == BK_MARGINALS_ONES ? (double)w->problem.total / m : 1.0 / m;
}

/* ---- what is wrong with the input ---- */

/* First places, as what a maximum over the ranks leaves: -place, or -inf where there is none. */
enum { BAD_MASS_A, BAD_MASS_B, BAD_COST, EMPTY_ROW, PLACES };

static void first_place(double *place, int64_t at)
{
    if (-(double)at > *place)
        *place = -(double)at;
}

static bool good_mass(double x)
{
    return x >= 0.0 && isfinite(x);
}

/* a[rows given], and the sums of a (over all ranks) and b. */
static void sum_masses(bk_transport_working *w, double sum[2])
{
    const bk_lanes *lanes = w->problem.lanes;
    double *local = BK_ZNEW(w->problem.scratch, double, lanes->count);
    for (int64_t l = 0; l < lanes->count; l++)
        for (int64_t i = block_start(w, l); i < block_start(w, l + 1); i++)
            local[l] += row_mass(w, i);
    bk_reduce_vector(w->problem.reducer, lanes, 1, local, &sum[0], w->problem.scratch);
    sum[1] = 0.0;
    for (int64_t j = 0; j < w->problem.columns; j++)
        sum[1] += column_mass(w, j);
}

/* A row's cost as given, before columns are left out. */
static double cost_at(const bk_transport_working *w, int64_t i, int64_t j)
{
    int64_t at = i * w->problem.columns + j;
    return bk_real_get(w->problem.dtype, w->problem.cost, at);
}

static bool bad_point(const bk_transport_working *w, const void *points, int64_t i)
{
    for (int64_t k = 0; k < w->problem.width; k++) {
        int64_t at = i * w->problem.width + k;
        if (!isfinite(bk_real_get(w->problem.dtype, points, at)))
            return true;
    }
    return false;
}

/* Costs and points of the own rows. */
static void look_at_costs(const bk_transport_working *w, int64_t first, double *place)
{
    int64_t m = w->problem.columns;
    for (int64_t i = 0; i < w->problem.rows; i++)
        for (int64_t j = 0; w->problem.cost && j < m; j++) {
            double c = cost_at(w, i, j);
            if (!(c > -INFINITY))
                first_place(&place[BAD_COST], (first + i) * m + j);
        }
    for (int64_t i = 0; !w->problem.cost && i < w->problem.rows; i++)
        if (bad_point(w, w->problem.x, i))
            first_place(&place[BAD_COST], (first + i) * m);
    for (int64_t j = 0; !w->problem.cost && j < m; j++)
        if (bad_point(w, w->problem.y, j))
            first_place(&place[BAD_COST], j);
}

static bk_status refuse_places(bk_transport_working *w, const double *place)
{
    int64_t m = w->problem.columns > 0 ? w->problem.columns : 1;
    if (place[BAD_MASS_A] > -INFINITY)
        return bk_fail(BK_INPUT, "a[%.0f] is negative or not finite (transport): masses are >= 0",
                       -place[BAD_MASS_A]);
    if (place[BAD_MASS_B] > -INFINITY)
        return bk_fail(BK_INPUT, "b[%.0f] is negative or not finite (transport): masses are >= 0",
                       -place[BAD_MASS_B]);
    if (place[BAD_COST] > -INFINITY && !w->problem.cost)
        return bk_fail(BK_INPUT, "a point of x or y is not finite (transport): points are numbers");
    if (place[BAD_COST] > -INFINITY)
        return bk_fail(BK_INPUT,
                       "cost[%lld,%lld] is NaN or -inf (transport): costs are numbers, or +inf for "
                       "pairs that are forbidden",
                       (long long)(-place[BAD_COST]) / (long long)m,
                       (long long)(-place[BAD_COST]) % (long long)m);
    return BK_OK;
}

/* Collective. */
static bk_status examine(bk_transport_working *w)
{
    int64_t first = first_row(w);
    double place[PLACES] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    for (int64_t i = 0; i < w->problem.rows; i++)
        if (!good_mass(row_mass(w, i)))
            first_place(&place[BAD_MASS_A], first + i);
    for (int64_t j = 0; j < w->problem.columns; j++)
        if (!good_mass(column_mass(w, j)))
            first_place(&place[BAD_MASS_B], j);
    look_at_costs(w, first, place);
    bk_reduce_max(w->problem.reducer, PLACES, place);
    return refuse_places(w, place);
}

/* Divides by the sums where asked for; equal sums when balanced. */
static bk_status settle_masses(bk_transport_working *w, double divisor[2])
{
    double sum[2];
    sum_masses(w, sum);
    divisor[0] = divisor[1] = 1.0;
    if (!(sum[0] > 0.0 && sum[1] > 0.0))
        return bk_fail(BK_INPUT,
                       "the problem has no mass (transport: sum a = %g, sum b = %g, %lld "
                       "rows, %lld columns): nothing can be moved",
                       sum[0], sum[1], (long long)w->problem.total, (long long)w->problem.columns);
    if (!isfinite(sum[0]) || !isfinite(sum[1]))
        return bk_fail(BK_INPUT, "the sum of the masses overflows (transport): divide them");
    if (w->config.marginals == BK_MARGINALS_NORMALIZE) {
        divisor[0] = sum[0];
        divisor[1] = sum[1];
    } else if (bk_transport_balanced(w)) {
        if (fabs(sum[0] - sum[1]) > 1e-6 * fmax(sum[0], sum[1]))
            return bk_fail(BK_USAGE,
                           "sum a = %.9g and sum b = %.9g differ (transport): use "
                           "marginals=normalize, or unbalanced=RHO",
                           sum[0], sum[1]);
        divisor[1] = sum[1] / sum[0]; /* what rounding left between them */
    }
    w->mass = sum[1] / divisor[1];
    return BK_OK;
}

/* ---- leaving out what has no mass ---- */

static void keep_rows(bk_transport_working *w, double divisor)
{
    const bk_lanes *lanes = w->problem.lanes;
    bk_arena *arena = w->problem.arena;
    int64_t *row = BK_NEW(arena, int64_t, w->problem.rows);
    w->a = BK_NEW(arena, double, w->problem.rows);
    w->lane_row = BK_ZNEW(arena, int64_t, lanes->count + 1);
    for (int64_t l = 0; l < lanes->count; l++) {
        for (int64_t i = block_start(w, l); i < block_start(w, l + 1); i++)
            if (row_mass(w, i) > 0.0) {
                w->a[w->rows] = row_mass(w, i) / divisor;
                row[w->rows++] = i;
            }
        w->lane_row[l + 1] = w->rows;
    }
    w->row = row;
}

static void keep_columns(bk_transport_working *w, double divisor)
{
    int64_t *column = BK_NEW(w->problem.arena, int64_t, w->problem.columns);
    w->b = BK_NEW(w->problem.arena, double, w->problem.columns);
    for (int64_t j = 0; j < w->problem.columns; j++)
        if (column_mass(w, j) > 0.0) {
            w->b[w->columns] = column_mass(w, j) / divisor;
            column[w->columns++] = j;
        }
    w->column = column;
}

/* out[i] = in[place[i]] for elements of `size` bytes. */
static void pick(int64_t n, const int64_t *place, size_t size, const void *in, void *out,
                 int64_t stride)
{
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)out + (size_t)i * size,
               (const char *)in + (size_t)(place[i] * stride) * size, size);
}

static void keep_costs(bk_transport_working *w)
{
    size_t size = bk_dtype_size(w->problem.dtype);
    w->dense = w->columns == w->problem.columns;
    w->cost = w->problem.cost;
    if (w->dense)
        return;
    char *cost = bk_arena_alloc(w->problem.arena, (size_t)(w->rows * w->columns) * size);
    for (int64_t i = 0; i < w->rows; i++)
        pick(w->columns, w->column, size,
             (const char *)w->problem.cost + (size_t)(w->row[i] * w->problem.columns) * size,
             cost + (size_t)(i * w->columns) * size, 1);
    w->cost = cost;
}

/* y[width,columns], so that distances run along the columns. */
static void keep_points(bk_transport_working *w)
{
    size_t size = bk_dtype_size(w->problem.dtype);
    char *y = bk_arena_alloc(w->problem.arena, (size_t)(w->problem.width * w->columns) * size);
    for (int64_t k = 0; k < w->problem.width; k++)
        pick(w->columns, w->column, size, (const char *)w->problem.y + (size_t)k * size,
             y + (size_t)(k * w->columns) * size, w->problem.width);
    w->x = w->problem.x;
    w->y = y;
}

static void logs(bk_transport_working *w)
{
    w->log_a = BK_NEW(w->problem.arena, double, w->rows);
    w->log_b = BK_NEW(w->problem.arena, double, w->columns);
    bk_log_f64(w->rows, w->a, w->log_a);
    bk_log_f64(w->columns, w->b, w->log_b);
}

/* ---- range of the cost, and pairs that cannot be met ---- */

typedef struct range {
    double *least, *most; /* one a row block */
    int64_t *empty;       /* first row without a finite cost, one a block; -1 */
} range;

enum { SUM_COST, COUNT_COST, COUNT_ROWS, RANGE_SUMS }; /* then the finite costs of each column */

static void look_at_rows(const bk_transport_working *w, void *context, int64_t first, int64_t last,
                         double *sum, double *buffer)
{
    range *g = context;
    int64_t l = 0;
    while (l + 1 < w->problem.lanes->count && w->lane_row[l + 1] <= first)
        l++;
    for (int64_t i = first; i < last; i++) {
        const double *c = bk_transport_row_f64(w, i, buffer);
        int64_t finite = 0;
        for (int64_t j = 0; j < w->columns; j++) {
            bool counts = c[j] < INFINITY;
            finite += counts;
            sum[RANGE_SUMS + j] += counts;
            sum[SUM_COST] += counts ? c[j] : 0.0;
            g->least[l] = counts && c[j] < g->least[l] ? c[j] : g->least[l];
            g->most[l] = counts && c[j] > g->most[l] ? c[j] : g->most[l];
        }
        sum[COUNT_COST] += (double)finite;
        sum[COUNT_ROWS] += 1.0;
        if (finite == 0 && g->empty[l] < 0)
            g->empty[l] = i;
    }
}

static bk_status refuse_empty(bk_transport_working *w, double row, const double *sums)
{
    if (row > -INFINITY)
        return bk_fail(BK_INPUT,
                       "row %.0f has mass, but no finite cost (transport): the problem is "
                       "infeasible; allow a pair, or set a[%.0f] to 0",
                       -row, -row);
    for (int64_t j = 0; j < w->columns; j++)
        if (sums[RANGE_SUMS + j] == 0.0)
            return bk_fail(BK_INPUT,
                           "column %lld has mass, but no finite cost (transport): the problem is "
                           "infeasible; allow a pair, or set b[%lld] to 0",
                           (long long)w->column[j], (long long)w->column[j]);
    return BK_OK;
}

static double statistic(const bk_transport_working *w, const double *sums, double most)
{
    double value = 1.0;
    if (w->config.cost_scale == BK_COST_SCALE_MAX)
        value = most;
    else if (w->config.cost_scale == BK_COST_SCALE_MEAN)
        value = sums[SUM_COST] / sums[COUNT_COST];
    return value != 0.0 ? fabs(value) : 1.0;
}

static void take_range(bk_transport_working *w, const range *g, double extreme[4])
{
    int64_t first = first_row(w);
    for (int i = 0; i < 4; i++)
        extreme[i] = -INFINITY;
    for (int64_t l = 0; l < w->problem.lanes->count; l++) {
        extreme[0] = fmax(extreme[0], -g->least[l]);
        extreme[1] = fmax(extreme[1], g->most[l]);
        if (g->empty[l] >= 0)
            first_place(&extreme[2], first + w->row[g->empty[l]]);
    }
    for (int64_t i = 0; i < w->rows; i++)
        extreme[3] = fmax(extreme[3], w->a[i]);
    bk_reduce_max(w->problem.reducer, 4, extreme);
}

/* Collective. */
static bk_status measure(bk_transport_working *w)
{
    bk_arena *scratch = w->problem.scratch;
    int64_t blocks = w->problem.lanes->count;
    range g = {BK_NEW(scratch, double, blocks), BK_NEW(scratch, double, blocks),
               BK_NEW(scratch, int64_t, blocks)};
    double *sums = BK_NEW(scratch, double, RANGE_SUMS + w->columns), extreme[4];
    for (int64_t l = 0; l < blocks; l++) {
        g.least[l] = INFINITY;
        g.most[l] = -INFINITY;
        g.empty[l] = -1;
    }
    bk_transport_sum(w, RANGE_SUMS + w->columns, look_at_rows, &g, sums);
    take_range(w, &g, extreme);
    bk_status status = refuse_empty(w, extreme[2], sums);
    w->total = (int64_t)sums[COUNT_ROWS];
    w->a_most = extreme[3];
    w->divisor = statistic(w, sums, extreme[1]);
    w->least = -extreme[0] / w->divisor;
    w->most = extreme[1] / w->divisor;
    if (status == BK_OK && !isfinite(w->most - w->least))
        return bk_fail(BK_INPUT, "the costs overflow (transport: from %g to %g): divide them",
                       w->least, w->most);
    if (status != BK_OK)
        w->result->status = BK_TRANSPORT_INFEASIBLE;
    return status;
}

/* ---- all of it ---- */

static void resolve(bk_transport_working *w)
{
    bk_transport_config *c = &w->config;
    if (c->iterations == 0)
        c->iterations = c->method == BK_TRANSPORT_SINKHORN ? 2000 : 200;
    if (c->tolerance < 0.0)
        c->tolerance = w->problem.dtype == BK_F64 ? 1e-9 : 1e-5;
    w->epsilon = c->epsilon;
    for (int side = 0; side < 2; side++)
        w->rho[side] = bk_transport_rho(c, side);
}

static void start(bk_transport_working *w)
{
    bk_arena *arena = w->problem.arena;
    w->u = BK_ZNEW(arena, double, w->rows);
    w->next_u = BK_ZNEW(arena, double, w->rows);
    w->v = BK_ZNEW(arena, double, w->columns);
    w->next_v = BK_ZNEW(arena, double, w->columns);
    w->eta = 0.0;
    bk_transport_set_eta(w, 1.0 / w->epsilon);
}

bk_transport_working *bk_transport_open(const bk_transport *problem,
                                        const bk_transport_config *config,
                                        bk_transport_result *result)
{
    bk_transport_working *w = BK_NEW(problem->arena, bk_transport_working, 1);
    *w = (bk_transport_working){.problem = *problem,
                                .config = *config,
                                .kernel = bk_transport_kernels_of(problem->dtype),
                                .vector = bk_vector(problem->dtype),
                                .result = result};
    *result = (bk_transport_result){.status = BK_TRANSPORT_BAD_INPUT, .working = w};
    return w;
}

bk_status bk_transport_prepare(bk_transport_working *w)
{
    double divisor[2];
    resolve(w);
    BK_TRY(examine(w));
    BK_TRY(settle_masses(w, divisor));
    keep_rows(w, divisor[0]);
    keep_columns(w, divisor[1]);
    if (w->problem.cost)
        keep_costs(w);
    else
        keep_points(w);
    logs(w);
    BK_TRY(measure(w));
    start(w);
    return BK_OK;
}

bool bk_transport_balanced(const bk_transport_working *w)
{
    return isinf(w->rho[0]) && isinf(w->rho[1]);
}

double bk_transport_kappa(const bk_transport_working *w, int side)
{
    return isinf(w->rho[side]) ? 1.0 : w->rho[side] / (w->rho[side] + 1.0 / w->eta);
}

void bk_transport_set_eta(bk_transport_working *w, double eta)
{
    double ratio = w->eta > 0.0 ? eta / w->eta : 0.0;
    for (int64_t i = 0; i < w->rows; i++)
        w->u[i] *= ratio;
    for (int64_t j = 0; j < w->columns; j++)
        w->v[j] *= ratio;
    w->eta = eta;
    w->factor = eta / w->divisor;
    w->kernel_stale = true;
}
