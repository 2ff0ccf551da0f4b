/* A checkpoint directory: the manifest's length in two bytes, the manifest, shard 0.  Mutations of
 * the manifest carry its right digest, most of them; those of the shard do not. */
#include "io/checkpoint.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { HEAD = 2, MOST_BYTES = 1 << 24 };

static size_t manifest_length(const uint8_t *data, size_t size)
{
    size_t length = data[0] + 256u * data[1];
    return length < size - HEAD ? length : size - HEAD;
}

static size_t mutate_manifest(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    uint8_t text[1 << 14];
    size_t old = manifest_length(data, size), room = most - size + old;
    if (old > sizeof text)
        return size;
    memcpy(text, data + HEAD, old);
    size_t length = LLVMFuzzerMutate(text, old, room < sizeof text ? room : sizeof text);
    if (seed % 8 != 0)
        bk_fuzz_sign_manifest((char *)text, length);
    memmove(data + HEAD + length, data + HEAD + old, size - HEAD - old);
    memcpy(data + HEAD, text, length);
    data[0] = (uint8_t)length;
    data[1] = (uint8_t)(length >> 8);
    return size - old + length;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    if (size < HEAD || seed % 5 == 0)
        return LLVMFuzzerMutate(data, size, most);
    return mutate_manifest(data, size, most, seed);
}

/* Reads every tensor of a modest size whole. */
static void read_tensors(bk_arena *arena, const bk_checkpoint *c)
{
    for (int64_t i = 0; i < bk_checkpoint_tensors(c); i++) {
        bk_piece p = {0};
        bk_checkpoint_tensor(c, i, &p.name, &p.dtype, &p.dims, p.global_shape);
        p.count = 1;
        for (int k = 0; k < p.dims; k++)
            p.count *= p.global_shape[k];
        if (p.count > MOST_BYTES / 8)
            bk_fuzz_wrong("%s has %lld elements in a small file", p.name, (long long)p.count);
        p.data = bk_arena_alloc(arena, (size_t)p.count * bk_dtype_size(p.dtype));
        bk_fuzz_read(bk_checkpoint_read(NULL, c, &p, 1, NULL));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEAD)
        return 0;
    bk_arena *arena = bk_arena_new("fuzz");
    const char *directory = bk_fuzz_path(arena, "run");
    const char *shard = bk_fuzz_path(arena, "run/shard-00000.h5");
    size_t length = manifest_length(data, size);
    bk_checkpoint *c;
    mkdir(directory, 0777);
    bk_fuzz_write(bk_fuzz_path(arena, "run/manifest.json"), data + HEAD, length);
    bk_fuzz_write(shard, data + HEAD + length, size - HEAD - length);
    if (bk_fuzz_read(bk_checkpoint_open(NULL, arena, directory, BK_CHECK_SHA256, &c)))
        read_tensors(arena, c);
    bk_fuzz_read(bk_verify(NULL, directory));
    bk_arena_free(arena);
    return 0;
}
