/* birkhoff doctor: the machine, the libraries and the job as found, and what is wrong with them. */
#include "core/blas.h"
#include "core/real.h"
#include "dist/agree.h"
#include "io/hdf5.h"
#include "io/subwords.h"
#include "jobs/command.h"
#include "jobs/json.h"
#include "jobs/machine.h"
#include "jobs/slurm.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SPARE_BYTES_WANTED (1LL << 30)

typedef struct findings {
    bk_machine machine;
    bk_slurm slurm;
    char directory[PATH_MAX];
    bk_storage storage;
    bool syncs;
    double sync_seconds;
} findings;

#ifdef __clang__
static const char compiler[] = __VERSION__;
#else
static const char compiler[] = "gcc " __VERSION__;
#endif

static const char *kernels(void)
{
    return bk_cpu_avx512() ? "avx512" : "avx2";
}

/* ---- the current directory ---- */

static void examine_directory(bk_arena *arena, findings *f)
{
    if (!getcwd(f->directory, sizeof f->directory))
        snprintf(f->directory, sizeof f->directory, ".");
    bk_storage_read(f->directory, &f->storage);
    f->syncs = bk_storage_try(f->directory, &f->sync_seconds) == BK_OK;
    if (!f->syncs)
        bk_machine_add(&f->machine,
                       bk_arena_printf(arena,
                                       "no file can be committed here (%s): %s; choose "
                                       "another run.dir",
                                       f->directory, bk_status_text()));
    if (f->storage.spare >= 0 && f->storage.spare < SPARE_BYTES_WANTED)
        bk_machine_add(&f->machine,
                       bk_arena_printf(arena,
                                       "the file system is nearly full (%s: %.0f MB free): make "
                                       "room, or choose another run.dir",
                                       f->directory, (double)f->storage.spare / 1e6));
}

static void examine_libraries(findings *f)
{
    if (!bk_blas_has_onednn() && strncmp(bk_blas_cblas_description(), "OpenBLAS", 8) != 0)
        bk_machine_add(&f->machine,
                       "products run on a CBLAS that is not OpenBLAS, often slow: "
                       "install libopenblas-openmp-dev or libdnnl-dev and build again");
}

/* ---- what of the Slurm job would break a run ---- */

/* "USR1@180", "B:TERM@60", "R:10": whether the program stops on it. */
static bool hears(const char *signal)
{
    static const char *const heard[] = {"USR1", "TERM", "INT", "10", "15", "2"};
    const char *colon = strchr(signal, ':'), *name = colon ? colon + 1 : signal;
    name += strncmp(name, "SIG", 3) == 0 ? 3 : 0;
    for (size_t i = 0; i < sizeof heard / sizeof *heard; i++)
        if (strcspn(name, "@") == strlen(heard[i]) &&
            strncmp(name, heard[i], strlen(heard[i])) == 0)
            return true;
    return false;
}

static void examine_slurm(bk_machine *m, const bk_slurm *s)
{
    if (s->inside && s->left < 0)
        bk_machine_add(m, "Slurm does not say when it ends this job: give run.time_limit in "
                          "seconds, or the job dies at its limit without a checkpoint");
    if (*s->signal && !hears(s->signal))
        bk_machine_add(m, "the job script asks for a signal that kills the program instead of "
                          "stopping it: --signal=USR1@180");
    if (strcmp(s->batch, "1") != 0)
        return;
    if (strcmp(s->requeue, "0") == 0)
        bk_machine_add(m, "a stopped job is not put back in the queue: sbatch --requeue, or where "
                          "that is forbidden jobs/slurm/chain.sh");
    else if (strcmp(s->output, "append") != 0)
        bk_machine_add(m, "the job script does not ask for --open-mode=append: a restart "
                          "overwrites the log, unless sbatch was told on its command line");
}

/* ---- text ---- */

static void print_machine(const bk_machine *m)
{
    const bk_topology *t = &m->node;
    printf("birkhoff      %s, compiled by %s\n", BIRKHOFF_VERSION, compiler);
    printf("machine       %s: %s, %d package%s, %d cores, %d hardware threads, %d NUMA node%s, "
           "%.1f GB\n",
           t->host, *t->cpu ? t->cpu : "unknown processor", t->packages,
           t->packages == 1 ? "" : "s", t->cores, t->threads, t->numa, t->numa == 1 ? "" : "s",
           (double)t->memory / 1e9);
    printf("job           %d rank%s on %d node%s, at most %d a node\n", t->ranks,
           t->ranks == 1 ? "" : "s", t->nodes, t->nodes == 1 ? "" : "s", m->node_ranks);
    printf("binding       ");
    if (m->least_cores == m->most_cores)
        printf("%d", m->least_cores);
    else
        printf("%d to %d", m->least_cores, m->most_cores);
    printf(" of %d cores a rank, %d thread%s a rank", m->node_cores, m->threads,
           m->threads == 1 ? "" : "s");
    const char *spins = getenv("GOMP_SPINCOUNT");
    if (spins)
        printf(", which spin %s times before they sleep", spins);
    printf("\n");
}

static void print_libraries(void)
{
    printf("MPI           %s\n", bk_mpi_library());
    printf("HDF5          %s\n", bk_h5_version());
    printf("BLAS          %s\n", bk_blas_cblas_description());
    printf("oneDNN        %s\n", bk_blas_onednn_description());
    printf("products      by %s; other kernels %s\n", bk_blas_description(), kernels());
    printf("subwords      %s\n", bk_subwords_missing()
                                     ? "none (tokens=subwords needs sentencepiece)"
                                     : "by spm_train and spm_encode");
}

static const char *yes_or_no(const char *flag)
{
    return !*flag ? "unknown" : strcmp(flag, "1") == 0 ? "yes" : "no";
}

static void print_slurm(const bk_slurm *s)
{
    if (!s->inside) {
        printf("Slurm         not inside a job\n");
        return;
    }
    printf("Slurm         job %s on %s, restarted %d times\n", s->job, s->nodes, s->restarts);
    printf("              time left ");
    if (isfinite(s->left) && s->left >= 0)
        printf("%.0f s", s->left);
    else
        printf("%s", s->left < 0 ? "unknown" : "unlimited");
    printf(", requeue %s, signal %s, open mode %s\n", yes_or_no(s->requeue),
           *s->signal ? s->signal : "none", *s->output ? s->output : "default");
}

static void print_storage(const findings *f)
{
    printf("directory     %s: %s, %.1f GB free of %.1f, ", f->directory, f->storage.type,
           (double)f->storage.spare / 1e9, (double)f->storage.total / 1e9);
    if (f->syncs)
        printf("fsync and rename work (%.1f ms)\n", 1e3 * f->sync_seconds);
    else
        printf("files cannot be committed\n");
    printf("/dev/shm      %s, %.0f MB free of %.0f\n", f->machine.shared.type,
           (double)f->machine.shared.spare / 1e6, (double)f->machine.shared.total / 1e6);
    printf("network       %s\n", *f->machine.interfaces ? f->machine.interfaces : "none");
}

static void print_text(const findings *f)
{
    const bk_machine *m = &f->machine;
    print_machine(m);
    print_libraries();
    print_slurm(&f->slurm);
    print_storage(f);
    printf("\n%s\n", m->problems == 0 ? "nothing is wrong" : "what is wrong:");
    for (int i = 0; i < m->problems; i++)
        printf("  %s\n", m->problem[i]);
}

/* ---- JSON ---- */

static void json_machine(bk_json *j, const bk_machine *m)
{
    const bk_topology *t = &m->node;
    bk_json_open(j, "machine");
    bk_json_text(j, "host", t->host);
    bk_json_text(j, "processor", t->cpu);
    bk_json_integer(j, "packages", t->packages);
    bk_json_integer(j, "numa_nodes", t->numa);
    bk_json_integer(j, "cores", t->cores);
    bk_json_integer(j, "hardware_threads", t->threads);
    bk_json_integer(j, "memory_bytes", t->memory);
    bk_json_close(j);
    bk_json_open(j, "job");
    bk_json_integer(j, "ranks", t->ranks);
    bk_json_integer(j, "nodes", t->nodes);
    bk_json_integer(j, "ranks_per_node", m->node_ranks);
    bk_json_integer(j, "least_bound_cores", m->least_cores);
    bk_json_integer(j, "most_bound_cores", m->most_cores);
    bk_json_integer(j, "threads_per_rank", m->threads);
    bk_json_close(j);
}

static void json_libraries(bk_json *j)
{
    bk_json_open(j, "libraries");
    bk_json_text(j, "mpi", bk_mpi_library());
    bk_json_text(j, "hdf5", bk_h5_version());
    bk_json_text(j, "blas", bk_blas_cblas_description());
    bk_json_text(j, "onednn", bk_blas_has_onednn() ? bk_blas_onednn_description() : NULL);
    bk_json_text(j, "products", bk_blas_description());
    bk_json_text(j, "kernels", kernels());
    bk_json_bool(j, "subwords", !bk_subwords_missing());
    bk_json_text(j, "compiler", compiler);
    bk_json_close(j);
}

static const char *or_null(const char *text)
{
    return *text ? text : NULL;
}

static void json_slurm(bk_json *j, const bk_slurm *s)
{
    if (!s->inside) {
        bk_json_text(j, "slurm", NULL);
        return;
    }
    bk_json_open(j, "slurm");
    bk_json_text(j, "job", s->job);
    bk_json_text(j, "nodes", s->nodes);
    bk_json_integer(j, "restarts", s->restarts);
    bk_json_number(j, "seconds_left", s->left < 0 ? INFINITY : s->left);
    bk_json_text(j, "requeue", yes_or_no(s->requeue));
    bk_json_text(j, "signal", or_null(s->signal));
    bk_json_text(j, "open_mode", or_null(s->output));
    bk_json_close(j);
}

static void json_storage(bk_json *j, const findings *f)
{
    bk_json_open(j, "directory");
    bk_json_text(j, "path", f->directory);
    bk_json_text(j, "type", f->storage.type);
    bk_json_integer(j, "total_bytes", f->storage.total);
    bk_json_integer(j, "free_bytes", f->storage.spare);
    bk_json_bool(j, "syncs", f->syncs);
    bk_json_number(j, "sync_seconds", f->sync_seconds);
    bk_json_close(j);
    bk_json_open(j, "shared_memory");
    bk_json_text(j, "type", f->machine.shared.type);
    bk_json_integer(j, "total_bytes", f->machine.shared.total);
    bk_json_integer(j, "free_bytes", f->machine.shared.spare);
    bk_json_close(j);
    bk_json_text(j, "interfaces", f->machine.interfaces);
}

static void print_json(const findings *f)
{
    bk_json j = {.file = stdout};
    bk_json_open(&j, NULL);
    bk_json_text(&j, "version", BIRKHOFF_VERSION);
    json_machine(&j, &f->machine);
    json_libraries(&j);
    json_slurm(&j, &f->slurm);
    json_storage(&j, f);
    bk_json_open_list(&j, "problems");
    for (int i = 0; i < f->machine.problems; i++)
        bk_json_text(&j, NULL, f->machine.problem[i]);
    bk_json_close_list(&j);
    bk_json_close(&j);
    bk_json_end(&j);
}

/* ---- the command ---- */

static void report(bk_context *context, findings *f)
{
    bk_slurm_read(&f->slurm);
    examine_slurm(&f->machine, &f->slurm);
    examine_directory(context->arena, f);
    examine_libraries(f);
    if (context->json)
        print_json(f);
    else
        print_text(f);
}

static bk_status run(bk_context *context)
{
    bk_world *world;
    findings *f = BK_ZNEW(context->arena, findings, 1);
    if (context->argc > 0)
        return bk_fail(BK_USAGE, "doctor takes no arguments (%s): birkhoff doctor [--json]",
                       context->argv[0]);
    BK_TRY(bk_world_open(context->arena, 1, &world));
    bk_status status = bk_agree(world->ctl, bk_blas_setup(0, BK_GEMM_AUTO));
    if (status == BK_OK) {
        bk_machine_read(context->arena, world, 0, &f->machine);
        if (world->rank == 0)
            report(context, f);
    }
    bk_world_close(world);
    return status;
}

const bk_command bk_command_doctor = {
    .name = "doctor",
    .summary = "what was found on this machine, and what is wrong with it",
    .usage = "doctor [--json]",
    .help = "Run it the way a job would be run: mpirun -n 4 birkhoff doctor, or inside a Slurm "
            "job.\n",
    .run = run,
};
