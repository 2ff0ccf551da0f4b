#include "dist/topology.h"

#include "dist/comm.h"
#include "dist/internal.h"

#include <hwloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- what the launcher says ---- */

static int launcher_number(const char *const *names, int otherwise)
{
    for (; *names; names++) {
        const char *text = getenv(*names);
        if (text && *text)
            return atoi(text);
    }
    return otherwise;
}

int bk_launch_rank(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", NULL};
    return launcher_number(names, 0);
}

int bk_launch_size(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", NULL};
    return launcher_number(names, 1);
}

/* ---- the node ---- */

static int objects(hwloc_topology_t topology, hwloc_obj_type_t type)
{
    int count = hwloc_get_nbobjs_by_type(topology, type);
    return count > 0 ? count : 0;
}

/* Objects that share a hardware thread with the set: a core counts with one of its two threads. */
static int objects_in(hwloc_topology_t topology, hwloc_obj_type_t type, hwloc_const_cpuset_t set)
{
    int count = 0;
    hwloc_obj_t object = NULL;
    while ((object = hwloc_get_next_obj_by_type(topology, type, object)))
        count += hwloc_bitmap_intersects(object->cpuset, set) != 0;
    return count;
}

/* FNV-1a of the text of a set; equal sets have equal texts. */
static uint64_t set_digest(hwloc_const_cpuset_t set)
{
    uint64_t digest = 0xcbf29ce484222325u;
    char *text = NULL;
    if (hwloc_bitmap_asprintf(&text, set) < 0)
        return digest;
    for (const char *at = text; *at; at++)
        digest = (digest ^ (unsigned char)*at) * 0x100000001b3u;
    free(text);
    return digest;
}

static void read_node(hwloc_topology_t topology, bk_topology *t, uint64_t *digest)
{
    hwloc_cpuset_t set = hwloc_bitmap_alloc();
    if (hwloc_get_cpubind(topology, set, HWLOC_CPUBIND_PROCESS) != 0)
        hwloc_bitmap_copy(set, hwloc_topology_get_topology_cpuset(topology));
    hwloc_obj_t root = hwloc_get_root_obj(topology);
    hwloc_obj_t package = hwloc_get_obj_by_type(topology, HWLOC_OBJ_PACKAGE, 0);
    const char *model = package ? hwloc_obj_get_info_by_name(package, "CPUModel") : NULL;
    snprintf(t->cpu, sizeof t->cpu, "%s", model ? model : "");
    t->packages = objects(topology, HWLOC_OBJ_PACKAGE);
    t->numa = objects(topology, HWLOC_OBJ_NUMANODE);
    t->cores = objects(topology, HWLOC_OBJ_CORE);
    t->threads = objects(topology, HWLOC_OBJ_PU);
    t->bound_cores = objects_in(topology, HWLOC_OBJ_CORE, set);
    t->bound_threads = objects_in(topology, HWLOC_OBJ_PU, set);
    t->memory = (int64_t)root->total_memory;
    *digest = set_digest(set);
    hwloc_bitmap_free(set);
}

/* A machine that shows no cores (some virtual ones) still has its hardware threads. */
static void complete(bk_topology *t)
{
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    t->threads = t->threads > 0 ? t->threads : online > 0 ? (int)online : 1;
    t->cores = t->cores > 0 ? t->cores : t->threads;
    t->bound_threads = t->bound_threads > 0 ? t->bound_threads : t->threads;
    t->bound_cores = t->bound_cores > 0 ? t->bound_cores : t->bound_threads;
}

/* ---- the job ---- */

static void read_job(bk_topology *t, uint64_t digest)
{
    MPI_Comm node;
    int running = 0, rank = 0;
    uint64_t *all;
    t->ranks = t->nodes = t->node_ranks = t->sharing = 1;
    MPI_Initialized(&running);
    if (!running)
        return;
    t->ranks = bk_mpi_size();
    BK_MPI(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node));
    BK_MPI(MPI_Comm_size(node, &t->node_ranks));
    BK_MPI(MPI_Comm_rank(node, &rank));
    all = malloc((size_t)t->node_ranks * sizeof *all);
    if (!all)
        bk_fatal("out of memory: topology");
    BK_MPI(MPI_Allgather(&digest, 1, MPI_UINT64_T, all, 1, MPI_UINT64_T, node));
    t->sharing = 0;
    for (int i = 0; i < t->node_ranks; i++)
        t->sharing += all[i] == digest;
    free(all);
    t->nodes = rank == 0;
    BK_MPI(MPI_Allreduce(MPI_IN_PLACE, &t->nodes, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD));
    BK_MPI(MPI_Comm_free(&node));
}

void bk_topology_read(bk_topology *out)
{
    hwloc_topology_t topology;
    uint64_t digest = 0;
    *out = (bk_topology){.host = ""};
    gethostname(out->host, sizeof out->host - 1);
    if (hwloc_topology_init(&topology) == 0) {
        if (hwloc_topology_load(topology) == 0)
            read_node(topology, out, &digest);
        hwloc_topology_destroy(topology);
    }
    complete(out);
    read_job(out, digest);
}

/* OMP_NUM_THREADS, the first number of it; 0: not set, or not a number. */
static int threads_wished(void)
{
    const char *wish = getenv("OMP_NUM_THREADS");
    long threads = wish ? strtol(wish, NULL, 10) : 0;
    return threads > 0 && threads <= 4096 ? (int)threads : 0;
}

int bk_topology_threads(void)
{
    bk_topology t;
    bk_topology_read(&t); /* collective, whatever this rank's environment says */
    int threads = threads_wished() > 0 ? threads_wished() : t.bound_cores / t.sharing;
    return threads > 0 ? threads : 1;
}
