/* jobs/memory.h - the memory that a process holds. */
#ifndef BK_JOBS_MEMORY_H
#define BK_JOBS_MEMORY_H

#include "dist/comm.h"

/* Peak resident bytes of this process since its start (getrusage). */
int64_t bk_peak_bytes(void);

/* Collective.  The largest over the ranks of `comm`. */
int64_t bk_peak_bytes_of_ranks(const bk_comm *comm);

#endif
