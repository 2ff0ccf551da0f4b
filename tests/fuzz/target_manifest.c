/* manifest.json of a checkpoint; most mutations carry the right digest of their own. */
#include "io/checkpoint_internal.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    size = LLVMFuzzerMutate(data, size, most);
    if (seed % 8 != 0)
        bk_fuzz_sign_manifest((char *)data, size);
    return size;
}

/* Every element of every tensor in exactly one piece of a shard that there is. */
static void check(const bk_manifest *m)
{
    for (int64_t i = 0; i < m->tensors; i++) {
        const bk_stored_tensor *t = &m->tensor[i];
        int64_t at = 0;
        for (int k = 0; k < t->pieces; k++) {
            const bk_stored_piece *p = &t->piece[k];
            if (p->offset != at || p->length <= 0 || p->shard < 0 || p->shard >= m->shards)
                bk_fuzz_wrong("a piece of %s is wrong", t->name);
            at += p->length;
        }
        if (at != t->count || bk_manifest_find(m, t->name) != t)
            bk_fuzz_wrong("%s is not covered or not found", t->name);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_arena *arena = bk_arena_new("fuzz");
    char *text = bk_arena_zalloc(arena, size + 1);
    bk_manifest m = {0}, again = {0};
    memcpy(text, data, size);
    if (bk_fuzz_read(bk_manifest_parse(arena, "manifest.json", text, &m))) {
        check(&m);
        const char *first = bk_manifest_text(arena, &m);
        if (!bk_fuzz_read(bk_manifest_parse(arena, "again", first, &again)) ||
            strcmp(first, bk_manifest_text(arena, &again)) != 0)
            bk_fuzz_wrong("the manifest reads back as another: %s", bk_status_text());
    }
    bk_arena_free(arena);
    return 0;
}
