/* A configuration file. */
#include "io/yaml.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_arena *arena = bk_arena_new("fuzz");
    bk_value *root;
    if (bk_fuzz_read(bk_yaml_parse(arena, "fuzz.yaml", (const char *)data, size, &root)))
        bk_fuzz_configuration(arena, root);
    bk_arena_free(arena);
    return 0;
}
