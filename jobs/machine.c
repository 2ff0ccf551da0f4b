#include "jobs/machine.h"

#include "core/blas.h"
#include "core/log.h"
#include "dist/collective.h"
#include "jobs/slurm.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static const char shared_memory[] = "/dev/shm";
/* Open MPI keeps its queues there; with less a write ends in SIGBUS. */
#define SHARED_BYTES_A_RANK (16LL << 20)

static const char *variable(const char *name)
{
    const char *text = getenv(name);
    return text ? text : "";
}

/* ---- what one rank finds ---- */

/* Names of the interfaces that are up, have an IPv4 address and lead out of the node. */
static int list_interfaces(char *names, size_t size)
{
    struct ifaddrs *all = NULL;
    int count = 0;
    names[0] = '\0';
    if (getifaddrs(&all) != 0)
        return 0;
    for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET || !(i->ifa_flags & IFF_UP) ||
            (i->ifa_flags & IFF_LOOPBACK))
            continue;
        size_t used = strlen(names);
        snprintf(names + used, size - used, "%s%s", used > 0 ? " " : "", i->ifa_name);
        count++;
    }
    freeifaddrs(all);
    return count;
}

/* Collective over the node.  Open MPI copies between two ranks of a node by process_vm_readv, which
 * containers forbid: tried here on the next rank. */
static bool copy_works(const bk_comm *node)
{
    static const int64_t secret = 0x6269726b686f6666;
    int size = bk_comm_size(node), next = (bk_comm_rank(node) + 1) % size;
    int64_t read = 0;
    int64_t *pid = calloc((size_t)size, sizeof *pid), *at = calloc((size_t)size, sizeof *at);
    if (!pid || !at)
        bk_fatal("out of memory: machine");
    bk_gather_counts(node, (int64_t)getpid(), pid);
    bk_gather_counts(node, (int64_t)(intptr_t)&secret, at);
    struct iovec to = {&read, sizeof read}, from = {(void *)(intptr_t)at[next], sizeof read};
    ssize_t got = process_vm_readv((pid_t)pid[next], &to, 1, &from, 1, 0);
    bk_barrier(node); /* nobody leaves before it was read */
    free(pid);
    free(at);
    return got == (ssize_t)sizeof read && read == secret;
}

static bool copy_is_off(void)
{
    return strcmp(variable("OMPI_MCA_btl_vader_single_copy_mechanism"), "none") == 0;
}

/* ---- the same on all ranks ---- */

/* Facts of all ranks, as maxima; a minimum is the maximum of the negative. */
static void share(const bk_world *world, bk_machine *m, bool copy_failed)
{
    const bk_topology *t = &m->node;
    int64_t used = (int64_t)t->bound_cores * t->node_ranks / t->sharing;
    int64_t spare = m->shared.spare < 0 ? INT64_MAX : m->shared.spare;
    int64_t fact[] = {-t->bound_cores,
                      t->bound_cores,
                      -used,
                      t->cores,
                      t->node_ranks,
                      bk_launch_size(),
                      bk_slurm_tasks_alone(t->ranks),
                      copy_failed,
                      m->interface_count,
                      -spare};
    bk_max_i64(world->ctl, sizeof fact / sizeof *fact, fact);
    m->least_cores = (int)(-fact[0]);
    m->most_cores = (int)(fact[1]);
    m->least_used = (int)(-fact[2]);
    m->node_cores = (int)(fact[3]);
    m->node_ranks = (int)(fact[4]);
    m->launched = (int)(fact[5]);
    m->tasks_alone = fact[6] != 0;
    m->copy_failed = fact[7] != 0;
    m->interface_count = (int)(fact[8]);
    m->shared_spare = fact[9] == -INT64_MAX ? -1 : -fact[9];
}

/* ---- checks: NULL when there is nothing to say ---- */

typedef const char *check(bk_arena *arena, const bk_machine *m);

static const char *check_launcher(bk_arena *arena, const bk_machine *m)
{
    if (m->tasks_alone)
        return "srun started several tasks, but each is alone in MPI: use srun --mpi=pmix";
    if (m->launched <= m->node.ranks)
        return NULL;
    return bk_arena_printf(
        arena,
        "the launcher started %d processes, but MPI sees %d: start birkhoff with "
        "the mpirun of %.*s",
        m->launched, m->node.ranks, (int)strcspn(bk_mpi_library(), ","), bk_mpi_library());
}

static const char *check_binding(bk_arena *arena, const bk_machine *m)
{
    if (m->threads <= m->least_cores)
        return NULL;
    return bk_arena_printf(arena,
                           "a rank has %d threads but is bound to %d core%s: mpirun --bind-to none "
                           "or --map-by slot:PE=%d, or parallel.threads=%d",
                           m->threads, m->least_cores, m->least_cores > 1 ? "s" : "", m->threads,
                           m->least_cores);
}

static const char *check_idle(bk_arena *arena, const bk_machine *m)
{
    if (m->least_used >= m->node_cores)
        return NULL;
    return bk_arena_printf(
        arena,
        "the binding lets the ranks of a node run on %d of its %d cores: mpirun --bind-to none or "
        "--map-by slot:PE=%d to use all",
        m->least_used, m->node_cores, m->node_cores / m->node_ranks);
}

/* mpirun sees it by itself, srun does not. */
static bool ranks_yield(void)
{
    const char *yield = variable("OMPI_MCA_mpi_yield_when_idle");
    yield = *yield ? yield : variable("OMPI_MCA_mpi_oversubscribe");
    return strcmp(yield, "1") == 0 || strcmp(yield, "true") == 0;
}

static const char *check_oversubscribed(bk_arena *arena, const bk_machine *m)
{
    if (m->node_ranks <= m->node_cores || ranks_yield())
        return NULL;
    return bk_arena_printf(arena,
                           "%d ranks share %d cores of a node and do not yield: use fewer, or set "
                           "OMPI_MCA_mpi_yield_when_idle=1",
                           m->node_ranks, m->node_cores);
}

static const char *check_threads(bk_arena *arena, const bk_machine *m)
{
    int fit = m->node_cores / m->node_ranks;
    if (m->threads == 1 || m->threads * m->node_ranks <= m->node_cores)
        return NULL;
    return bk_arena_printf(arena,
                           "%d ranks x %d threads are more than the %d cores of a node: "
                           "parallel.threads=%d",
                           m->node_ranks, m->threads, m->node_cores, fit > 0 ? fit : 1);
}

static const char *check_shared(bk_arena *arena, const bk_machine *m)
{
    int64_t needed = SHARED_BYTES_A_RANK * m->node_ranks;
    if (m->shared_spare < 0 || m->shared_spare >= needed)
        return NULL;
    return bk_arena_printf(arena,
                           "shared memory is nearly full (%s: %.0f MB free, %.0f wanted for %d "
                           "ranks): remove old files there, or give the container more",
                           shared_memory, (double)m->shared_spare / 1e6, (double)needed / 1e6,
                           m->node_ranks);
}

static const char *check_copy(bk_arena *arena, const bk_machine *m)
{
    (void)arena;
    return m->copy_failed ? "ranks cannot read one another's memory (process_vm_readv is "
                            "forbidden): mpirun --mca btl_vader_single_copy_mechanism none"
                          : NULL;
}

static const char *check_interfaces(bk_arena *arena, const bk_machine *m)
{
    if (m->node.nodes == 1 || m->interface_count < 2 || *variable("OMPI_MCA_btl_tcp_if_include") ||
        *variable("OMPI_MCA_btl_tcp_if_exclude"))
        return NULL;
    return bk_arena_printf(arena,
                           "a node has %d network interfaces (%s): name the one to use, mpirun "
                           "--mca btl_tcp_if_include NAME",
                           m->interface_count, m->interfaces);
}

static const char *check_products(bk_arena *arena, const bk_machine *m)
{
    const char *coretype = bk_blas_coretype(), *own = getenv("OPENBLAS_CORETYPE");
    (void)m;
    if (!coretype || !own || !strstr(bk_blas_cblas_description(), "Prescott"))
        return NULL; /* narrower vectors may be the user's choice */
    return bk_arena_printf(
        arena,
        "OPENBLAS_CORETYPE=%s runs products at a tenth of this processor's speed: "
        "remove it, or set OPENBLAS_CORETYPE=%s",
        own, coretype);
}

static check *const checks[] = {check_launcher,       check_binding,  check_idle,
                                check_oversubscribed, check_threads,  check_shared,
                                check_copy,           check_products, check_interfaces};

void bk_machine_add(bk_machine *m, const char *problem)
{
    if (m->problems < BK_PROBLEMS)
        m->problem[m->problems++] = problem;
}

void bk_machine_read(bk_arena *arena, const bk_world *world, int threads, bk_machine *out)
{
    *out = (bk_machine){0};
    bk_topology_read(&out->node);
    out->threads = threads > 0 ? threads : bk_topology_threads();
    bk_storage_read(shared_memory, &out->shared);
    out->interface_count = list_interfaces(out->interfaces, sizeof out->interfaces);
    bool copies = copy_works(world->node);
    share(world, out, !copies && !copy_is_off());
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        const char *problem = checks[i](arena, out);
        if (problem)
            bk_machine_add(out, problem);
    }
}

void bk_machine_warn(const bk_world *world, int threads)
{
    bk_arena *arena = bk_arena_new("machine");
    bk_machine m;
    bk_machine_read(arena, world, threads, &m);
    for (int i = 0; i < m.problems; i++)
        bk_warn("%s", m.problem[i]);
    bk_arena_free(arena);
}
