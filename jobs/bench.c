/* birkhoff bench: measures the machine, the kernels and the step against the machine's limit. */
#include "jobs/bench.h"

#include "core/log.h"
#include "dist/collective.h"
#include "jobs/json.h"
#include "jobs/options.h"
#include "jobs/peak.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define BENCH(kind) extern const bk_bench bk_bench_##kind;
#include "jobs/bench/kinds.def"
#undef BENCH

#define BENCH(kind) &bk_bench_##kind,
const bk_bench *const bk_benches[] = {
#include "jobs/bench/kinds.def"
    NULL};
#undef BENCH

/* ---- what the benches share ---- */

void bk_bench_add(bk_bench_result *r, const char *group, const char *name, double value)
{
    BK_ASSERT(r->figures < BK_BENCH_FIGURES, "too many figures");
    r->figure[r->figures++] = (bk_bench_figure){group, name, value};
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

bk_status bk_bench_time(const bk_comm *comm, int64_t warmup, int64_t repeats,
                        bk_status (*work)(void *context), void *context, double *seconds)
{
    double all[BK_BENCH_REPEATS];
    BK_ASSERT(repeats > 0 && repeats <= BK_BENCH_REPEATS, "%lld repeats", (long long)repeats);
    for (int64_t i = -warmup; i < repeats; i++) {
        bk_barrier(comm);
        double start = bk_seconds();
        BK_TRY(work(context));
        double taken = bk_seconds() - start;
        bk_max_f64(comm, 1, &taken);
        all[i < 0 ? 0 : i] = taken;
    }
    qsort(all, (size_t)repeats, sizeof *all, by_size);
    *seconds = repeats % 2 ? all[repeats / 2] : 0.5 * (all[repeats / 2 - 1] + all[repeats / 2]);
    return BK_OK;
}

double bk_bench_limit(const bk_comm *comm, double (*measure)(void))
{
    bk_barrier(comm);
    int64_t limit = (int64_t)measure();
    bk_sum_i64(comm, 1, &limit);
    return (double)limit;
}

static double peak_fp32(void)
{
    return bk_measure_peak(false);
}

static double peak_bf16(void)
{
    return bk_measure_peak(true);
}

double bk_bench_peak(const bk_comm *comm)
{
    return bk_bench_limit(comm, peak_fp32);
}

double bk_bench_peak_bf16(const bk_comm *comm)
{
    return bk_bench_limit(comm, peak_bf16);
}

static int64_t microseconds(struct timeval t)
{
    return (int64_t)t.tv_sec * 1000000 + t.tv_usec;
}

double bk_bench_cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return 1e-6 * (double)(microseconds(usage.ru_utime) + microseconds(usage.ru_stime));
}

double bk_bench_cpu_since(const bk_comm *comm, double start)
{
    int64_t taken = (int64_t)(1e6 * (bk_bench_cpu_seconds() - start));
    bk_sum_i64(comm, 1, &taken);
    return 1e-6 * (double)taken;
}

const char *bk_bench_directory(const char *path)
{
    const char *temporary = getenv("TMPDIR");
    if (path)
        return path;
    return temporary && *temporary ? temporary : "/tmp";
}

/* ---- printing ---- */

static void print_list(bool json)
{
    bk_json j = {.file = stdout};
    if (json)
        bk_json_open_list(&j, NULL);
    for (int i = 0; bk_benches[i]; i++) {
        const bk_bench *b = bk_benches[i];
        if (!json) {
            printf("%-10s  %s\n", b->name, b->summary);
            continue;
        }
        bk_json_open(&j, NULL);
        bk_json_text(&j, "name", b->name);
        bk_json_text(&j, "summary", b->summary);
        bk_options_json(&j, "options", b->options);
        bk_json_close(&j);
    }
    if (!json)
        return;
    bk_json_close_list(&j);
    bk_json_end(&j);
}

static void print_help(const bk_bench *b)
{
    printf("usage: birkhoff bench %s [--json] [key=value ...]\n\n%s.\n\n", b->name, b->summary);
    bk_options_print(stdout, b->options);
    if (b->configured)
        printf("\nDotted keys overlay the configuration: model.layers=2 parallel.threads=1.\n");
}

static void print_json(const bk_bench *b, const bk_bench_result *r)
{
    bk_json j = {.file = stdout};
    const char *group = NULL;
    bk_json_open(&j, NULL);
    bk_json_text(&j, "name", b->name);
    bk_json_number(&j, "seconds", r->seconds);
    bk_json_number(&j, "rate", r->rate);
    bk_json_text(&j, "unit", r->unit);
    bk_json_number(&j, "limit", r->limit);
    bk_json_number(&j, "fraction", r->rate / r->limit);
    bk_json_integer(&j, "ranks", r->ranks);
    bk_json_integer(&j, "threads", r->threads);
    if (r->library)
        bk_json_text(&j, "library", r->library);
    for (int i = 0; i < r->figures; i++) {
        const bk_bench_figure *f = &r->figure[i];
        if (group && group != f->group)
            bk_json_close(&j);
        if (f->group && group != f->group)
            bk_json_open(&j, f->group);
        group = f->group;
        bk_json_number(&j, f->name, f->value);
    }
    if (group)
        bk_json_close(&j);
    bk_json_close(&j);
    bk_json_end(&j);
}

static void print_text(const bk_bench *b, const bk_bench_result *r)
{
    printf("%-20s %.6g s\n", b->name, r->seconds);
    printf("%-20s %.4g %s\n", "rate", r->rate, r->unit);
    printf("%-20s %.4g %s (%.1f %% reached)\n", "limit", r->limit, r->unit,
           100.0 * r->rate / r->limit);
    printf("%-20s %d ranks x %d threads\n", "on", r->ranks, r->threads);
    if (r->library)
        printf("%-20s %s\n", "library", r->library);
    for (int i = 0; i < r->figures; i++) {
        const bk_bench_figure *f = &r->figure[i];
        char name[64];
        snprintf(name, sizeof name, "%s%s%s", f->group ? f->group : "", f->group ? " " : "",
                 f->name);
        printf("%-20s %.6g\n", name, f->value);
    }
}

/* ---- the command ---- */

static bk_status find(const char *name, const bk_bench **out)
{
    const char *names[64] = {0};
    *out = NULL;
    for (int i = 0; bk_benches[i] && i < 63; i++) {
        names[i] = bk_benches[i]->name;
        if (strcmp(names[i], name) == 0)
            *out = bk_benches[i];
    }
    if (*out)
        return BK_OK;
    const char *near = bk_nearest(name, names);
    return bk_fail(BK_USAGE, "unknown bench '%s'%s%s%s: birkhoff bench lists them", name,
                   near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

/* Fills `config` from the keys that belong to the bench itself; dotted ones stay for the
 * configuration of the run. */
static bk_status read_options(bk_context *context, const bk_bench *b, void *config)
{
    bk_context own = *context;
    own.override = BK_NEW(context->arena, bk_override, context->overrides + 1);
    own.overrides = 0;
    int kept = 0;
    for (int i = 0; i < context->overrides; i++) {
        bool dotted = b->configured && strchr(context->override[i].path, '.');
        bk_override *to = dotted ? &context->override[kept++] : &own.override[own.overrides++];
        *to = context->override[i];
    }
    context->overrides = kept;
    return bk_options_from_context(&own, b->options,
                                   bk_arena_printf(context->arena, "bench.%s", b->name), config);
}

static bk_status run_bench(bk_context *context, const bk_bench *b)
{
    bk_bench_result r = {0};
    void *config = bk_arena_zalloc(context->arena, b->config_size + 1);
    BK_TRY(read_options(context, b, config));
    BK_TRY(b->run(context, config, &r));
    if (!bk_log_speaks())
        return BK_OK;
    if (context->json)
        print_json(b, &r);
    else
        print_text(b, &r);
    return BK_OK;
}

static bk_status run(bk_context *context)
{
    const bk_bench *b;
    if (context->argc > 1)
        return bk_fail(BK_USAGE, "bench takes one name (%d given): birkhoff bench lists them",
                       context->argc);
    if (context->argc == 0 && context->overrides > 0)
        return bk_fail(BK_USAGE, "%s=%s without a bench: birkhoff bench NAME [key=value ...]",
                       context->override[0].path, context->override[0].text);
    if (context->argc == 1) {
        BK_TRY(find(context->argv[0], &b));
        if (!context->help)
            return run_bench(context, b);
    }
    if (!bk_log_speaks())
        return BK_OK;
    if (context->argc == 1)
        print_help(b);
    else
        print_list(context->json);
    return BK_OK;
}

const bk_command bk_command_bench = {
    .name = "bench",
    .summary = "measure the machine, the kernels or a training step",
    .usage = "bench [NAME] [--help] [--json] [key=value ...]",
    .help = "Without a name: lists what can be measured; birkhoff bench NAME --help shows the keys "
            "of one.\nPrints the median time, the rate, the limit of the machine measured in the "
            "same run, and the\nfraction of it that was reached.\n",
    .run = run,
};
