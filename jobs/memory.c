#include "jobs/memory.h"

#include "dist/collective.h"

#include <sys/resource.h>

int64_t bk_peak_bytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (int64_t)usage.ru_maxrss * 1024;
}

int64_t bk_peak_bytes_of_ranks(const bk_comm *comm)
{
    int64_t bytes = bk_peak_bytes();
    bk_max_i64(comm, 1, &bytes);
    return bytes;
}
