/* jobs/bench.h - what a bench is.  One bench = one file jobs/bench/<name>.c and one line in
 * jobs/bench/kinds.def.  A bench measures one thing against a limit that was measured beside it. */
#ifndef BK_JOBS_BENCH_H
#define BK_JOBS_BENCH_H

#include "core/option.h"
#include "dist/comm.h"
#include "jobs/command.h"

/* A further figure of the result; several of one group become an object of that name in JSON. */
typedef struct bk_bench_figure {
    const char *group; /* NULL: stands by itself */
    const char *name;
    double value;
} bk_bench_figure;

enum { BK_BENCH_FIGURES = 128, BK_BENCH_REPEATS = 1000 };

typedef struct bk_bench_result {
    double seconds; /* median over the repeats, of the slowest rank each */
    double rate;    /* of all ranks together, in `unit` */
    double limit;   /* of the same, measured in the same run */
    const char *unit;
    int ranks, threads;  /* threads a rank */
    const char *library; /* of matrix products; NULL where there are none */
    bk_bench_figure figure[BK_BENCH_FIGURES];
    int figures;
} bk_bench_result;

typedef struct bk_bench {
    const char *name, *summary;
    const bk_option *options; /* keys without a dot */
    size_t config_size;
    bool configured; /* dotted keys overlay the configuration of a run; else they are unknown */
    /* Collective.  `config` was filled from `options`.  All ranks return the same status and
     * result. */
    bk_status (*run)(bk_context *context, const void *config, bk_bench_result *out);
} bk_bench;

extern const bk_bench *const bk_benches[]; /* in the order of kinds.def, ended by NULL */

/* `name` and `group` are borrowed. */
void bk_bench_add(bk_bench_result *r, const char *group, const char *name, double value);

/* Collective.  Median seconds of `work` over `repeats` runs behind `warmup` runs that do not count;
 * ranks start together and the slowest counts.  A status other than BK_OK, the same on all ranks,
 * ends it. */
BK_CHECKED bk_status bk_bench_time(const bk_comm *comm, int64_t warmup, int64_t repeats,
                                   bk_status (*work)(void *context), void *context,
                                   double *seconds);

/* Collective.  What `measure` finds a second on each rank, all of them at once, added up. */
double bk_bench_limit(const bk_comm *comm, double (*measure)(void));

/* Collective.  FLOP/s of multiply-adds on all ranks together (jobs/peak.h), in fp32 and in bf16. */
double bk_bench_peak(const bk_comm *comm);
double bk_bench_peak_bf16(const bk_comm *comm);

/* User and system seconds of all threads of this process so far. */
double bk_bench_cpu_seconds(void);
/* Collective.  Those since `start`, summed over the ranks: what other programs disturb less. */
double bk_bench_cpu_since(const bk_comm *comm, double start);

/* Where a bench writes: `path` when it is given, else TMPDIR, else /tmp. */
const char *bk_bench_directory(const char *path);

#endif
