#include "core/real.h"

#include <stdlib.h>
#include <string.h>

static bool decide(void)
{
    const char *isa = getenv("BIRKHOFF_ISA");
    if (isa && strcmp(isa, "avx2") == 0)
        return false;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool bk_cpu_avx512(void)
{
    static int known = -1;
    if (known < 0)
        known = decide();
    return known == 1;
}
