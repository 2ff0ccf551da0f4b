#include "tests/support/checkpoint.h"

#include "core/rng.h"
#include "io/files.h"
#include "tests/support/check.h"

#include <hdf5.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the run ---- */

static const struct {
    const char *name;
    bk_dtype dtype;
    int dims;
    int64_t shape[BK_MAX_DIMS];
    bool sharded;
} tensors[BK_TEST_TENSORS] = {
    {"model/embed/tokens", BK_F32, 2, {5000, 3}, true},
    {"model/block0/attention/wq", BK_F32, 2, {64, 64}, true}, /* one leaf exactly */
    {"model/block0/moe/w1", BK_F32, 3, {4, 21, 100}, true},
    {"model/block0/moe/router_bias", BK_F64, 1, {4}, false},
    {"model/block0/moe/router_count", BK_I64, 1, {5000}, false},
    {"model/head/b", BK_F32, 1, {7}, true},
    {"model/head/scale", BK_F32, 0, {0}, false}, /* a scalar */
    {"optim/m/embed/tokens", BK_F32, 2, {5000, 3}, true},
    {"optim/v/embed/tokens", BK_F32, 2, {5000, 3}, true},
};

static int64_t count_of(int tensor)
{
    int64_t count = 1;
    for (int i = 0; i < tensors[tensor].dims; i++)
        count *= tensors[tensor].shape[i];
    return count;
}

static double value_of(int tensor, int64_t i, int version)
{
    double x = bk_fill((uint64_t)i, (uint64_t)(tensor + 100 * version), -1.0, 1.0);
    return tensors[tensor].dtype == BK_I64 ? floor(1e6 * x) : x;
}

static void put(bk_dtype dtype, void *data, int64_t i, double value)
{
    if (dtype == BK_I64)
        ((int64_t *)data)[i] = (int64_t)value;
    else if (dtype == BK_F64)
        ((double *)data)[i] = value;
    else
        ((float *)data)[i] = (float)value;
}

static double get(bk_dtype dtype, const void *data, int64_t i)
{
    return dtype == BK_I64   ? (double)((const int64_t *)data)[i]
           : dtype == BK_F64 ? ((const double *)data)[i]
                             : (double)((const float *)data)[i];
}

static bk_piece piece(bk_arena *arena, int tensor, int64_t offset, int64_t end)
{
    bk_piece p = {.name = tensors[tensor].name,
                  .dtype = tensors[tensor].dtype,
                  .dims = tensors[tensor].dims,
                  .offset = offset,
                  .count = end - offset,
                  .data = bk_arena_alloc(arena, (size_t)(end - offset) *
                                                    bk_dtype_size(tensors[tensor].dtype))};
    memcpy(p.global_shape, tensors[tensor].shape, sizeof p.global_shape);
    return p;
}

int64_t bk_test_pieces(bk_arena *arena, int rank, int size, int version, bk_piece *list)
{
    int64_t count = 0;
    for (int t = 0; t < BK_TEST_TENSORS; t++) {
        int64_t n = count_of(t), first = tensors[t].sharded ? n * rank / size : 0;
        int64_t end = tensors[t].sharded ? n * (rank + 1) / size : rank == 0 ? n : 0;
        bk_piece p = piece(arena, t, first, end);
        for (int64_t i = first; i < end; i++)
            put(p.dtype, p.data, i - first, value_of(t, i, version));
        list[count++] = p;
    }
    return count;
}

int64_t bk_test_wishes(bk_arena *arena, int rank, int size, bk_piece *list)
{
    int64_t count = 0;
    for (int t = 0; t < BK_TEST_TENSORS; t++) {
        int64_t n = count_of(t), first = tensors[t].sharded ? n * rank / size - 5 : 0;
        int64_t end = tensors[t].sharded ? n * (rank + 1) / size + 5 : n;
        bk_piece p = piece(arena, t, first > 0 ? first : 0, end < n ? end : n);
        memset(p.data, 0xff, (size_t)p.count * bk_dtype_size(p.dtype));
        list[count++] = p;
    }
    return count;
}

void bk_test_check_pieces(const bk_piece *list, int64_t count, int version)
{
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < list[t].count; i++) {
            double wanted = value_of((int)t, list[t].offset + i, version);
            wanted = list[t].dtype == BK_F32 ? (double)(float)wanted : wanted;
            if (get(list[t].dtype, list[t].data, i) != wanted)
                fail_msg("%s: element %lld is wrong", list[t].name,
                         (long long)(list[t].offset + i));
        }
}

bk_run_state bk_test_state(int64_t step)
{
    return (bk_run_state){.step = step,
                          .samples_seen = 64 * step,
                          .tokens_seen = 1000 * step,
                          .updates_skipped = 2,
                          .epoch = step / 10,
                          .cursor = 64 * step,
                          .seed = 42,
                          .best_value = 0.75,
                          .best_step = 3,
                          .data_path = "listops.h5",
                          .data_digest = "0123456789abcdef",
                          .config = "run: {dir: x}\n# \xc3\xa9\n",
                          .machine = "P: 2\nkernels: avx2",
                          .lanes = 4};
}

bk_save_options bk_test_options(int writers)
{
    return (bk_save_options){.writers = writers,
                             .nodes = 1,
                             .keep = 3,
                             .started_from = -1,
                             .run_id = "00112233445566ff"};
}

const char *bk_test_save(const bk_comm *comm, bk_arena *arena, const char *directory, int64_t step,
                         int version, const bk_save_options *options)
{
    bk_piece list[BK_TEST_TENSORS];
    int64_t count = bk_test_pieces(arena, bk_comm_rank(comm), bk_comm_size(comm), version, list);
    bk_run_state state = bk_test_state(step);
    bk_saved saved;
    if (bk_checkpoint_save(comm, directory, list, count, &state, options, &saved) != BK_OK)
        fail_msg("save: %s", bk_status_text());
    assert_true(saved.bytes > 0);
    return bk_arena_strdup(arena, saved.payload);
}

void bk_test_check_newest(const bk_comm *comm, const char *directory, int64_t step, int version)
{
    bk_arena *arena = bk_arena_new("newest");
    bk_checkpoint *c;
    bk_piece list[BK_TEST_TENSORS];
    if (bk_checkpoint_find(comm, arena, directory, (bk_find_options){0}, &c) != BK_OK)
        fail_msg("find: %s", bk_status_text());
    assert_non_null(c);
    assert_int_equal(bk_checkpoint_state(c)->step, step);
    int64_t count = bk_test_wishes(arena, bk_comm_rank(comm), bk_comm_size(comm), list);
    if (bk_checkpoint_read(comm, c, list, count, "model/") != BK_OK)
        fail_msg("read: %s", bk_status_text());
    bk_test_check_pieces(list, count, version);
    bk_arena_free(arena);
}

/* ---- the payload, by other means ---- */

enum { NAMES = 64, LEAF = 4096 };

typedef struct whole {
    char name[128];
    char *data;
    int64_t count, filled;
    size_t element;
} whole;

typedef struct gathered {
    whole tensor[NAMES];
    int count;
} gathered;

static int64_t integer_attribute(hid_t object, const char *name, int64_t *value, int64_t room)
{
    hid_t id = H5Aopen(object, name, H5P_DEFAULT), space = H5Aget_space(id);
    int64_t count = (int64_t)H5Sget_simple_extent_npoints(space);
    assert_true(count <= room);
    if (count > 0)
        assert_true(H5Aread(id, H5T_NATIVE_INT64, value) >= 0);
    int64_t dims = H5Sget_simple_extent_ndims(space);
    H5Sclose(space);
    H5Aclose(id);
    return dims == 0 ? 0 : count;
}

static whole *whole_named(gathered *g, const char *name, int64_t count, size_t element)
{
    for (int i = 0; i < g->count; i++)
        if (strcmp(g->tensor[i].name, name) == 0)
            return &g->tensor[i];
    assert_true(g->count < NAMES);
    whole *w = &g->tensor[g->count++];
    snprintf(w->name, sizeof w->name, "%s", name);
    w->data = malloc((size_t)count * element);
    w->count = count;
    w->element = element;
    return w;
}

static herr_t gather_one(hid_t root, const char *name, const H5O_info_t *info, void *context)
{
    if (info->type != H5O_TYPE_DATASET ||
        (strncmp(name, "model/", 6) != 0 && strncmp(name, "optim/", 6) != 0))
        return 0;
    hid_t set = H5Dopen2(root, name, H5P_DEFAULT), type = H5Dget_type(set),
          space = H5Dget_space(set);
    int64_t shape[BK_MAX_DIMS] = {0}, offset = 0, count = 1;
    int64_t dims = integer_attribute(set, "global_shape", shape, BK_MAX_DIMS);
    assert_int_equal(integer_attribute(set, "offset", &offset, 1), 0);
    for (int64_t i = 0; i < dims; i++)
        count *= shape[i];
    int64_t length = (int64_t)H5Sget_simple_extent_npoints(space);
    assert_int_equal(H5Sget_simple_extent_ndims(space), 1);
    assert_int_equal(offset % LEAF, 0);
    whole *w = whole_named(context, name, count, H5Tget_size(type));
    assert_true(offset + length <= w->count);
    hid_t memory = H5Tget_native_type(type, H5T_DIR_DEFAULT);
    assert_true(H5Dread(set, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT,
                        w->data + (size_t)offset * w->element) >= 0);
    w->filled += length;
    H5Tclose(memory);
    H5Sclose(space);
    H5Tclose(type);
    H5Dclose(set);
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const whole *)a)->name, ((const whole *)b)->name);
}

static void sha256(const void *data, size_t bytes, unsigned char out[32])
{
    assert_int_equal(EVP_Digest(data, bytes, out, NULL, EVP_sha256(), NULL), 1);
}

static void digest_of(const whole *w, unsigned char out[32])
{
    int64_t leaves = (w->count + LEAF - 1) / LEAF;
    unsigned char *all = malloc((size_t)leaves * 32);
    for (int64_t i = 0; i < leaves; i++) {
        int64_t count = w->count - i * LEAF < LEAF ? w->count - i * LEAF : LEAF;
        sha256(w->data + (size_t)(i * LEAF) * w->element, (size_t)count * w->element, all + 32 * i);
    }
    sha256(all, (size_t)leaves * 32, out);
    free(all);
}

static void join(gathered *g, char out[65])
{
    unsigned char digest[32];
    char *all = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&all, &bytes);
    qsort(g->tensor, (size_t)g->count, sizeof *g->tensor, by_name);
    for (int i = 0; i < g->count; i++) {
        assert_int_equal(g->tensor[i].filled, g->tensor[i].count);
        digest_of(&g->tensor[i], digest);
        fwrite(g->tensor[i].name, 1, strlen(g->tensor[i].name) + 1, stream);
        fwrite(digest, 1, sizeof digest, stream);
        free(g->tensor[i].data);
    }
    fclose(stream);
    sha256(all, bytes, digest);
    for (int i = 0; i < 32; i++)
        sprintf(out + 2 * i, "%02x", digest[i]);
    free(all);
}

void bk_test_payload(const char *checkpoint, char out[65])
{
    bk_arena *arena = bk_arena_new("payload");
    gathered *g = BK_ZNEW(arena, gathered, 1);
    for (char **names = bk_list_directory(arena, checkpoint); *names; names++) {
        if (strncmp(*names, "shard-", 6) != 0)
            continue;
        hid_t file = H5Fopen(bk_arena_printf(arena, "%s/%s", checkpoint, *names), H5F_ACC_RDONLY,
                             H5P_DEFAULT);
        assert_true(file >= 0);
        assert_true(H5Ovisit2(file, H5_INDEX_NAME, H5_ITER_INC, gather_one, g, H5O_INFO_BASIC) >=
                    0);
        H5Fclose(file);
    }
    join(g, out);
    bk_arena_free(arena);
}
