#include "jobs/start.h"

#include "core/blas.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* About 20 us: longer than the gap between two products. */
static const char SPINS[] = "2000";

static bool user_has_chosen_waiting(void)
{
    const char *threads = getenv("OMP_NUM_THREADS");
    return getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY") ||
           (threads && strcmp(threads, "1") == 0);
}

/* True when the variable was not there and is now. */
static bool set(const char *name, const char *value)
{
    return !getenv(name) && setenv(name, value, 0) == 0;
}

void bk_start_again_if_needed(char **argv)
{
    bool again = !user_has_chosen_waiting() && set("GOMP_SPINCOUNT", SPINS);
    const char *coretype = bk_blas_coretype();
    again = (coretype && set("OPENBLAS_CORETYPE", coretype)) || again;
    if (again)
        execv("/proc/self/exe", argv);
}
