/* birkhoff transport: an entropic transport problem from a file, solved by all ranks.  Rows are
 * read, held and solved where they belong; columns are on every rank. */
#include "core/transport/divergence.h"

#include "core/blas.h"
#include "core/log.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "dist/topology.h"
#include "io/files.h"
#include "io/hdf5.h"
#include "jobs/command.h"
#include "jobs/json.h"
#include "jobs/options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct transport_settings {
    int dtype;
    bool plan;
    int64_t threads;
} transport_settings;

enum { DTYPE_F64, DTYPE_F32 };

static const bk_option settings_table[] = {
    BK_OPTION_CHOICE(transport_settings, dtype, DTYPE_F64, "f64|f32", "arithmetic of the sweeps"),
    BK_OPTION_BOOL(transport_settings, plan, false, "write the plan, n times m numbers, too"),
    BK_OPTION_I64(transport_settings, threads, 0, 0, 4096,
                  "threads a rank; 0 = OMP_NUM_THREADS, or cores bound / ranks on the node"),
    BK_OPTION_END,
};

/* One run of the command. */
typedef struct job {
    bk_arena *arena, *scratch;
    const bk_world *world;
    const char *in, *out;
    transport_settings settings;
    bk_transport_config config;
    bk_lanes lanes;
    bk_transport problem;
    bk_transport_result result;
    bk_divergence_result divergence; /* debias=true */
    double seconds, reported;
} job;

static bk_dtype dtype_of(const job *j)
{
    return j->settings.dtype == DTYPE_F64 ? BK_F64 : BK_F32;
}

/* ---- options ---- */

/* All keys but `gradient`: the command has none. */
static const bk_option *all_options(bk_arena *arena)
{
    int count = 0;
    while (bk_transport_options[count].name)
        count++;
    bk_option *table = BK_ZNEW(arena, bk_option, count + 1), *next = table;
    for (int i = 0; i < count; i++)
        if (strcmp(bk_transport_options[i].name, "gradient") != 0)
            *next++ = bk_transport_options[i];
    return table;
}

static bk_status read_options(bk_context *context, job *j)
{
    const bk_option *options = all_options(j->arena), *const tables[] = {settings_table, options,
                                                                         NULL};
    bk_value *given = bk_value_new(j->arena, BK_MAP, "command line", 0);
    for (int i = 0; i < context->overrides; i++) {
        BK_TRY(bk_value_set(j->arena, given, context->override[i].path, context->override[i].text));
        context->override[i].used = true;
    }
    BK_TRY(bk_options_read(bk_transport_options, &j->config, NULL, "transport", j->arena));
    BK_TRY(bk_options_read(settings_table, &j->settings, given, "transport", j->arena));
    BK_TRY(bk_options_read(options, &j->config, given, "transport", j->arena));
    BK_TRY(bk_options_unknown(given, "transport", tables, NULL));
    return bk_transport_check(&j->config);
}

/* ---- the problem ---- */

/* Shape of a real dataset of `dims` axes; false when there is none. */
static bk_status shape_of(bk_h5 *file, const job *j, const char *name, int dims, int64_t *shape,
                          bool *there)
{
    bk_dtype dtype;
    int found;
    *there = bk_h5_exists(file, name);
    if (!*there)
        return BK_OK;
    BK_TRY(bk_h5_shape(file, name, &dtype, &found, shape));
    if ((dtype != BK_F32 && dtype != BK_F64) || found != dims)
        return bk_fail(BK_INPUT,
                       "%s is no array of reals with %d axes (%s): see birkhoff help "
                       "transport",
                       name, dims, j->in);
    return BK_OK;
}

static bk_status check_length(const job *j, const char *name, int64_t found, int64_t wanted)
{
    if (found == wanted)
        return BK_OK;
    return bk_fail(BK_INPUT, "%s has %lld entries, the problem %lld (%s)", name, (long long)found,
                   (long long)wanted, j->in);
}

/* Sizes of cost[n,m], or of x[n,d] and y[m,d]. */
static bk_status read_sizes(bk_h5 *file, job *j, bool *cost)
{
    int64_t c[BK_MAX_DIMS], x[BK_MAX_DIMS], y[BK_MAX_DIMS];
    bool has_x, has_y;
    BK_TRY(shape_of(file, j, "cost", 2, c, cost));
    BK_TRY(shape_of(file, j, "x", 2, x, &has_x));
    BK_TRY(shape_of(file, j, "y", 2, y, &has_y));
    if (*cost == (has_x || has_y) || has_x != has_y)
        return bk_fail(BK_INPUT, "%s holds %s: it needs cost[n,m], or x[n,d] and y[m,d]", j->in,
                       *cost   ? "cost and points"
                       : has_x ? "x without y"
                       : has_y ? "y without x"
                               : "no problem");
    if (has_x)
        BK_TRY(check_length(j, "a row of y", y[1], x[1]));
    if (*cost && j->config.debias)
        return bk_fail(BK_USAGE, "debias=true needs x and y instead of cost (%s)", j->in);
    j->problem.total = *cost ? c[0] : x[0];
    j->problem.columns = *cost ? c[1] : y[0];
    j->problem.width = *cost ? 0 : x[1];
    return BK_OK;
}

static void cut_rows(job *j)
{
    j->lanes = bk_lanes_of_rank(bk_transport_blocks(j->problem.total), j->problem.total,
                                j->world->rank, j->world->size);
    j->problem.lanes = &j->lanes;
    j->problem.rows = bk_lanes_samples(&j->lanes);
}

/* Rows first .. first+count-1 of `width` numbers each. */
static bk_status read_rows(bk_h5 *file, const job *j, const char *name, bk_dtype dtype,
                           int64_t first, int64_t count, int64_t width, const void **out)
{
    void *data = bk_arena_alloc(j->arena, (size_t)(count * width) * bk_dtype_size(dtype));
    *out = data;
    return count > 0 ? bk_h5_read_rows(file, name, dtype, first, count, data) : BK_OK;
}

static bk_status read_mass(bk_h5 *file, const job *j, const char *name, int64_t total,
                           int64_t first, int64_t count, const double **out)
{
    int64_t shape[BK_MAX_DIMS];
    const void *data;
    bool there;
    BK_TRY(shape_of(file, j, name, 1, shape, &there));
    if (!there)
        return BK_OK;
    BK_TRY(check_length(j, name, shape[0], total));
    BK_TRY(read_rows(file, j, name, BK_F64, first, count, 1, &data));
    *out = data;
    return BK_OK;
}

static bk_status check_names(bk_h5 *file, const job *j)
{
    static const char *const names[] = {"cost", "x", "y", "a", "b", NULL};
    char **paths;
    BK_TRY(bk_h5_walk(file, j->arena, &paths));
    for (; *paths; paths++) {
        bool known = false;
        for (int i = 0; names[i]; i++)
            known = known || strcmp(*paths + 1, names[i]) == 0;
        const char *near = bk_nearest(*paths + 1, names);
        if (!known)
            return bk_fail(BK_USAGE,
                           "%s is not read by transport%s%s%s (%s): it reads cost, or x "
                           "and y, and a, b",
                           *paths + 1, near ? " (did you mean " : "", near ? near : "",
                           near ? "?)" : "", j->in);
    }
    return BK_OK;
}

static bk_status read_problem(bk_h5 *file, job *j)
{
    bk_transport *p = &j->problem;
    bool cost;
    BK_TRY(check_names(file, j));
    BK_TRY(read_sizes(file, j, &cost));
    cut_rows(j);
    int64_t first = bk_lanes_first_sample(&j->lanes);
    p->dtype = dtype_of(j);
    if (cost)
        BK_TRY(read_rows(file, j, "cost", p->dtype, first, p->rows, p->columns, &p->cost));
    else {
        BK_TRY(read_rows(file, j, "x", p->dtype, first, p->rows, p->width, &p->x));
        BK_TRY(read_rows(file, j, "y", p->dtype, 0, p->columns, p->width, &p->y));
    }
    BK_TRY(read_mass(file, j, "a", p->total, first, p->rows, &p->a));
    BK_TRY(read_mass(file, j, "b", p->columns, 0, p->columns, &p->b));
    return bk_transport_check_marginals(&j->config, p->a != NULL, p->b != NULL);
}

static bk_status read_file(job *j)
{
    bk_h5 *file;
    BK_TRY(bk_h5_open_as(j->arena, j->in, "problem", "name an HDF5 file with cost, or x and y",
                         &file));
    bk_status status = read_problem(file, j), closed = bk_h5_close(file);
    return status != BK_OK ? status : closed;
}

/* ---- the solve ---- */

/* At most one line every few seconds. */
static void report(void *context, const bk_transport_result *r)
{
    enum { EVERY = 5 };
    job *j = context;
    double now = bk_seconds();
    if (now - j->reported < EVERY)
        return;
    j->reported = now;
    bk_note("%lld sweeps, %lld Newton steps, epsilon %.3g, error %.3g", (long long)r->sweeps,
            (long long)r->newton_steps, r->step[r->steps - 1].epsilon, r->step[r->steps - 1].error);
}

static bk_status solve(job *j)
{
    double start = bk_seconds();
    j->reported = start;
    j->problem.reducer = bk_comm_reducer(j->world->loss);
    j->problem.arena = j->arena;
    j->problem.scratch = j->scratch;
    j->problem.progress = report;
    j->problem.progress_context = j;
    bk_status status = BK_OK;
    if (j->config.debias) {
        status = bk_divergence_solve(&j->problem, &j->config, &j->divergence);
        j->result = j->divergence.between;
    } else {
        status = bk_transport_solve(&j->problem, &j->config, &j->result);
    }
    j->seconds = bk_seconds() - start;
    return status;
}

static double value_of(const job *j)
{
    return j->config.debias ? j->divergence.value : bk_transport_value(&j->result);
}

/* ---- the answer ---- */

/* x[rows] of all ranks, on every rank. */
static double *gather(const job *j, const double *x)
{
    int size = j->world->size;
    int64_t *bytes = BK_NEW(j->arena, int64_t, size), own = j->problem.rows * (int64_t)sizeof *x;
    double *all = BK_NEW(j->arena, double, j->problem.total);
    bk_gather_counts(j->world->data, own, bytes);
    bk_allgather_bytes(j->world->data, x, own, bytes, all);
    return all;
}

static bk_status write_history(const job *j, bk_h5 *file)
{
    const bk_transport_result *r = &j->result;
    double *epsilon = BK_NEW(j->arena, double, r->steps),
           *error = BK_NEW(j->arena, double, r->steps);
    int32_t *newton = BK_NEW(j->arena, int32_t, r->steps);
    for (int64_t i = 0; i < r->steps; i++) {
        epsilon[i] = r->step[i].epsilon;
        error[i] = r->step[i].error;
        newton[i] = r->step[i].newton;
    }
    BK_TRY(bk_h5_write(file, "history/epsilon", BK_F64, 1, &r->steps, epsilon));
    BK_TRY(bk_h5_write(file, "history/error", BK_F64, 1, &r->steps, error));
    return bk_h5_write(file, "history/newton", BK_I32, 1, &r->steps, newton);
}

static bk_attributes figures(const job *j)
{
    bk_attributes a = {.entries = 0};
    bk_transport_describe(&j->result, &a);
    if (j->config.debias)
        bk_attribute_set_integer(&a, "converged", j->divergence.converged);
    return a;
}

static bk_status write_attributes(const job *j, bk_h5 *file)
{
    double value = value_of(j);
    bk_attributes a = figures(j);
    BK_TRY(bk_h5_set_attribute(file, "/", "value", BK_F64, 0, &value));
    BK_TRY(bk_h5_set_attribute(file, "/", "seconds", BK_F64, 0, &j->seconds));
    BK_TRY(bk_h5_set_attribute_text(file, "/", "status_name",
                                    bk_transport_status_name(j->result.status)));
    return bk_h5_set_figures(file, &a);
}

static bk_status write_potentials(const job *j, bk_h5 *file, const double *f, const double *g)
{
    BK_TRY(bk_h5_stamp(file, "birkhoff-transport"));
    BK_TRY(bk_h5_write(file, "f", BK_F64, 1, &j->problem.total, f));
    BK_TRY(bk_h5_write(file, "g", BK_F64, 1, &j->problem.columns, g));
    BK_TRY(write_history(j, file));
    BK_TRY(write_attributes(j, file));
    if (!j->settings.plan)
        return BK_OK;
    int64_t shape[] = {j->problem.total, j->problem.columns};
    return bk_h5_create_dataset(file, "plan", j->problem.dtype, 2, shape);
}

/* Collective.  Rows go to rank 0 in pieces of a few MiB; it receives all of them, whether or not it
 * can still write.  `file` and the status are rank 0's. */
static bk_status write_plan(const job *j, bk_h5 *file, bk_status status)
{
    enum { TAG = 1, PIECE = 8 << 20 };
    int64_t bytes = j->problem.columns * (int64_t)bk_dtype_size(j->problem.dtype);
    int64_t some = PIECE / bytes + 1, *rows = BK_NEW(j->arena, int64_t, j->world->size), first = 0;
    char *piece = bk_arena_alloc(j->arena, (size_t)(some * bytes));
    bk_gather_counts(j->world->data, j->problem.rows, rows);
    for (int owner = 0; owner < j->world->size; owner++)
        for (int64_t i = 0; i < rows[owner]; i += some) {
            int64_t count = rows[owner] - i < some ? rows[owner] - i : some;
            for (int64_t k = 0; owner == j->world->rank && k < count; k++)
                bk_transport_plan_row(&j->result, i + k, piece + k * bytes);
            if (owner != 0 && j->world->rank == owner)
                bk_send_bytes(j->world->data, 0, TAG, piece, count * bytes);
            if (owner != 0 && j->world->rank == 0)
                bk_receive_bytes(j->world->data, owner, TAG, piece, count * bytes);
            if (j->world->rank == 0 && status == BK_OK)
                status = bk_h5_write_rows(file, "plan", j->problem.dtype, first + i, count, piece);
            if (i + count == rows[owner])
                first += rows[owner];
        }
    return status;
}

/* Collective.  The file appears whole or not at all. */
static bk_status write_file(const job *j)
{
    const double *f = gather(j, j->config.debias ? j->divergence.f : j->result.f),
                 *g = j->config.debias ? j->divergence.g : j->result.g;
    const char *temporary = bk_arena_printf(j->arena, "%s.tmp.%d", j->out, (int)getpid());
    bool writes = j->world->rank == 0;
    bk_h5 *file = NULL;
    bk_status status = writes ? bk_h5_create(j->arena, temporary, &file) : BK_OK;
    if (writes && status == BK_OK)
        status = write_potentials(j, file, f, g);
    if (j->settings.plan)
        status = write_plan(j, file, status);
    if (file) {
        bk_status closed = bk_h5_close(file);
        status = status != BK_OK ? status : closed;
    }
    if (writes && status == BK_OK)
        status = bk_sync_file(temporary);
    if (writes && status == BK_OK && rename(temporary, j->out) != 0)
        status =
            bk_fail(BK_FAULT, "the output cannot be renamed (%s): %s", j->out, strerror(errno));
    if (writes && status != BK_OK)
        unlink(temporary);
    return bk_agree(j->world->ctl, writes && status == BK_OK ? bk_sync_parent(j->out) : status);
}

/* ---- what is printed ---- */

static void print_json(const job *j)
{
    bk_attributes a = figures(j);
    bk_json out = {.file = stdout};
    bk_json_open(&out, NULL);
    bk_json_text(&out, "status", bk_transport_status_name(j->result.status));
    bk_json_integer(&out, "rows", j->problem.total);
    bk_json_integer(&out, "columns", j->problem.columns);
    bk_json_integer(&out, "ranks", j->world->size);
    bk_json_integer(&out, "threads", bk_blas_threads());
    bk_json_number(&out, "seconds", j->seconds);
    bk_json_number(&out, "value", value_of(j));
    for (int i = 0; i < a.entries; i++)
        if (strcmp(a.entry[i].name, "status") == 0)
            continue;
        else if (a.entry[i].integer)
            bk_json_integer(&out, a.entry[i].name, (int64_t)a.entry[i].value);
        else
            bk_json_number(&out, a.entry[i].name, a.entry[i].value);
    bk_json_close(&out);
    bk_json_end(&out);
}

static void print_text(const job *j)
{
    const bk_transport_result *r = &j->result;
    printf("%s: %s\n", bk_transport_status_name(r->status),
           bk_transport_status_sentence(r->status));
    printf("  problem    %lld x %lld, epsilon %.6g\n", (long long)j->problem.total,
           (long long)j->problem.columns, r->epsilon);
    printf("  value      %.12g%s\n", value_of(j), j->config.debias ? " (divergence)" : "");
    printf("  kl, dual   %.12g, %.12g (gap %.3g)\n", r->kl, r->dual, r->gap);
    printf("  residuals  rows %.3g, columns %.3g\n", r->residual_a, r->residual_b);
    printf("  work       %lld sweeps, %lld Newton steps, %lld CG iterations in %.3f s, %d ranks x "
           "%d threads\n",
           (long long)r->sweeps, (long long)r->newton_steps, (long long)r->cg_iterations,
           j->seconds, j->world->size, bk_blas_threads());
}

static void print(const bk_context *context, const job *j)
{
    if (!bk_log_speaks())
        return;
    if (context->json)
        print_json(j);
    else
        print_text(j);
}

/* ---- the command ---- */

static bk_status check_files(const job *j)
{
    if (bk_same_file(j->in, j->out))
        return bk_fail(BK_USAGE, "input and output are one file (%s): name another output", j->in);
    return bk_check_output(j->out);
}

static void warn(const job *j)
{
    const bk_transport_result *r = &j->result;
    if (r->status > BK_TRANSPORT_FIXED)
        bk_warn("transport ended as %s, residual %.3g (%s): %s",
                bk_transport_status_name(r->status), r->residual_a + r->residual_b, j->in,
                bk_transport_status_sentence(r->status));
    else if (j->config.debias && !j->divergence.converged)
        bk_warn("OT(a,a) or OT(b,b) of the divergence did not converge (%s): allow more iterations",
                j->in);
}

static bk_status work(bk_context *context, job *j)
{
    const bk_comm *ctl = j->world->ctl;
    BK_TRY(bk_agree(ctl, j->world->rank == 0 ? check_files(j) : BK_OK));
    BK_TRY(bk_agree(ctl, read_file(j)));
    BK_TRY(bk_agree(ctl, solve(j)));
    warn(j);
    BK_TRY(write_file(j));
    print(context, j);
    return BK_OK;
}

static bk_status run(bk_context *context)
{
    job *j = BK_ZNEW(context->arena, job, 1);
    bk_world *world;
    j->arena = context->arena;
    if (context->argc != 2)
        return bk_fail(BK_USAGE,
                       "transport takes two files (%d given): birkhoff transport IN.h5 "
                       "OUT.h5",
                       context->argc);
    j->in = context->argv[0];
    j->out = context->argv[1];
    BK_TRY(read_options(context, j));
    int threads = j->settings.threads > 0 ? (int)j->settings.threads : bk_topology_threads();
    BK_TRY(bk_blas_setup(threads, BK_GEMM_AUTO));
    BK_TRY(bk_world_open(context->arena, 1, &world));
    j->world = world;
    j->scratch = bk_arena_new("scratch");
    bk_status status = work(context, j);
    bk_arena_free(j->scratch);
    bk_world_close(world);
    return status;
}

static void print_keys(void)
{
    bk_arena *arena = bk_arena_new("help");
    bk_options_print(stdout, settings_table);
    printf("\n");
    bk_options_print(stdout, all_options(arena));
    bk_arena_free(arena);
}

const bk_command bk_command_transport = {
    .name = "transport",
    .summary = "solve an entropic transport problem from a file",
    .usage = "transport IN.h5 OUT.h5 [--json] [key=value ...]",
    .help = "IN.h5: cost[n,m], or points x[n,d] and y[m,d], whose distances are made as they are "
            "needed\n"
            "(no n times m memory with method=sinkhorn); a[n], b[m] if they are not uniform.\n"
            "OUT.h5: potentials f[n] and g[m], history/{epsilon,error,newton} of every sweep and "
            "step,\n"
            "the plan with plan=true, and root attributes: value, residuals, counts, seconds.\n"
            "Rows are split over the ranks.\n",
    .print_keys = print_keys,
    .run = run,
};
