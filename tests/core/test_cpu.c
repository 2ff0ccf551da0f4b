/* The instruction set is decided once, and BIRKHOFF_ISA=avx2 takes the small one. */
#include "core/real.h"

#include "tests/support/check.h"
#include "tests/support/child.h"

#include <stdlib.h>

static bool machine_has_it(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

/* Under BIRKHOFF_ISA = isa (NULL: unset) the decision is `expected`, and stays. */
typedef struct wish {
    const char *isa;
    bool expected;
} wish;

static void decide(void *context)
{
    const wish *w = context;
    unsetenv("BIRKHOFF_ISA");
    if (w->isa)
        setenv("BIRKHOFF_ISA", w->isa, 1);
    BK_ASSERT(bk_cpu_avx512() == w->expected, "the other instruction set");
    setenv("BIRKHOFF_ISA", w->expected ? "avx2" : "avx512", 1);
    BK_ASSERT(bk_cpu_avx512() == w->expected, "it changed its mind");
}

static void the_environment_decides_once(void **state)
{
    const wish wishes[] = {{"avx2", false},
                           {NULL, machine_has_it()},
                           {"avx512", machine_has_it()},
                           {"", machine_has_it()}};
    char said[512];
    (void)state;
    for (int i = 0; i < 4; i++) {
        wish w = wishes[i];
        if (bk_test_child(decide, &w, said, sizeof said) != 0)
            fail_msg("BIRKHOFF_ISA=%s: %s", w.isa ? w.isa : "(unset)", said);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_environment_decides_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
