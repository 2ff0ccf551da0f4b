/* oneDNN behind core/blas: matmul primitives with operands in fp32 or bf16, one for each shape,
 * kept in a hash table. */
#include "core/blas_internal.h"

#include "core/rng.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef BIRKHOFF_HAVE_ONEDNN

bool bk_onednn_takes(const bk_gemm *g)
{
    (void)g;
    return false;
}

bk_tile bk_onednn_tile(const bk_gemm *g)
{
    return (bk_tile){g->m, g->n};
}

bool bk_onednn_sgemm(const bk_gemm *g)
{
    (void)g;
    return false;
}

bool bk_onednn_has_bf16(void)
{
    return false;
}

const bk_onednn_matmul *bk_onednn_find(bk_dtype operands, const bk_gemm *g)
{
    (void)operands;
    (void)g;
    return NULL;
}

void bk_onednn_run(const bk_onednn_matmul *matmul, const bk_gemm *g)
{
    (void)matmul;
    BK_ASSERT(false, "no oneDNN for a product of %lld rows", (long long)g->m);
}

const char *bk_onednn_description(void)
{
    return "no oneDNN";
}

#else

#include <oneapi/dnnl/dnnl.h>

/* m and k may be DNNL_RUNTIME_DIM_VAL. */
typedef struct shape {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t ta, tb, accumulate, operands, bias, unused;
} shape;

enum { A, B, C, ARRAYS };

struct bk_onednn_matmul {
    shape key;
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t arrays[ARRAYS], bias, scratchpad;
    bk_onednn_matmul *next;
};

enum { SLOTS = 4096 };
static bk_onednn_matmul *table[SLOTS];
static dnnl_engine_t engine;

static void check(dnnl_status_t status, const char *what)
{
    if (status != dnnl_success)
        bk_fatal("oneDNN: %s failed with status %d", what, (int)status);
}
#define CHECK(call) check((call), #call)

static bool has_avx512(void)
{
    return dnnl_get_effective_cpu_isa() > dnnl_cpu_isa_avx2;
}

bool bk_onednn_has_bf16(void)
{
    return (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_bf16) ==
           dnnl_cpu_isa_avx512_core_bf16;
}

/* Below AVX-512, oneDNN does not pack the operands of a product with a short side; it then reads
 * rows that lie whole pages apart (768 and 3072 columns) at half the speed of CBLAS. */
static bool packs(const bk_gemm *g)
{
    return has_avx512() || 1.0 / (double)g->m + 1.0 / (double)g->n < 0.0038;
}

bool bk_onednn_takes(const bk_gemm *g)
{
    return g->alpha == 1.0 && (g->beta == 0.0 || g->beta == 1.0) && packs(g);
}

static bool enough_tiles(const bk_gemm *g, bk_tile t)
{
    enum { ENOUGH = 8 };
    int64_t rows = g->m / t.rows, cols = g->n / t.cols;
    return (rows > 1 ? rows : 1) * (cols > 1 ? cols : 1) >= ENOUGH;
}

/* It packs a tile's part of A and B for each tile: the larger, the less, as long as enough are left
 * to share out.  With many terms a wide one is slow (768 columns, 3072 terms: by a sixth). */
bk_tile bk_onednn_tile(const bk_gemm *g)
{
    enum { SHORT = 1024 };
    const bk_tile small = {512, 384}, tall = {1024, 384}, wide = {512, 768}, large = {1024, 768};
    if (!has_avx512())
        return wide;
    if (g->k <= SHORT && enough_tiles(g, large))
        return large;
    return enough_tiles(g, tall) ? tall : small;
}

bool bk_onednn_sgemm(const bk_gemm *g)
{
    if (!has_avx512())
        return false;
    CHECK(dnnl_sgemm(g->ta == BK_T ? 'T' : 'N', g->tb == BK_T ? 'T' : 'N', g->m, g->n, g->k,
                     (float)g->alpha, g->a, g->lda, g->b, g->ldb, (float)g->beta, g->c, g->ldc));
    return true;
}

static shape shape_of(bk_dtype operands, const bk_gemm *g)
{
    return (shape){.m = g->varying ? DNNL_RUNTIME_DIM_VAL : g->m,
                   .n = g->n,
                   .k = g->varying ? DNNL_RUNTIME_DIM_VAL : g->k,
                   .lda = g->lda,
                   .ldb = g->ldb,
                   .ldc = g->ldc,
                   .ta = (int32_t)g->ta,
                   .tb = (int32_t)g->tb,
                   .accumulate = g->beta == 1.0,
                   .operands = (int32_t)operands,
                   .bias = g->bias != NULL};
}

/* op(X)[rows,cols], stored with ld elements between rows. */
static dnnl_memory_desc_t describe(dnnl_data_type_t type, bk_transpose transpose,
                                   const int64_t extent[2], int64_t ld)
{
    dnnl_memory_desc_t d;
    dnnl_dims_t size = {extent[0], extent[1]}, stride = {ld, 1};
    if (transpose == BK_T) {
        stride[0] = 1;
        stride[1] = ld;
    }
    CHECK(dnnl_memory_desc_init_by_strides(&d, 2, size, type, stride));
    return d;
}

/* The arrays of a product of m rows and k terms. */
static void describe_operands(const shape *s, int64_t m, int64_t k, dnnl_memory_desc_t out[ARRAYS])
{
    dnnl_data_type_t type = s->operands == BK_BF16 ? dnnl_bf16 : dnnl_f32;
    out[A] = describe(type, (bk_transpose)s->ta, (int64_t[]){m, k}, s->lda);
    out[B] = describe(type, (bk_transpose)s->tb, (int64_t[]){k, s->n}, s->ldb);
    out[C] = describe(dnnl_f32, BK_N, (int64_t[]){m, s->n}, s->ldc);
}

/* Scratchpads are ours, one for each thread: the library's own would be shared by tiles that run
 * side by side. */
static dnnl_primitive_t make_primitive(bk_onednn_matmul *x)
{
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_attr_t attributes;
    dnnl_post_ops_t after;
    dnnl_primitive_desc_t description;
    dnnl_primitive_t primitive;
    CHECK(dnnl_matmul_desc_init(&matmul, &x->arrays[A], &x->arrays[B],
                                x->key.bias ? &x->bias : NULL, &x->arrays[C]));
    CHECK(dnnl_primitive_attr_create(&attributes));
    CHECK(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user));
    CHECK(dnnl_post_ops_create(&after));
    if (x->key.accumulate)
        CHECK(dnnl_post_ops_append_sum(after, 1.0f));
    CHECK(dnnl_primitive_attr_set_post_ops(attributes, after));
    CHECK(dnnl_primitive_desc_create(&description, &matmul, attributes, engine, NULL));
    CHECK(dnnl_primitive_create(&primitive, description));
    x->scratchpad = *dnnl_primitive_desc_query_md(description, dnnl_query_scratchpad_md, 0);
    CHECK(dnnl_primitive_desc_destroy(description));
    CHECK(dnnl_post_ops_destroy(after));
    CHECK(dnnl_primitive_attr_destroy(attributes));
    return primitive;
}

static bk_onednn_matmul *make(const shape *s)
{
    if (!engine)
        CHECK(dnnl_engine_create(&engine, dnnl_cpu, 0));
    bk_onednn_matmul *x = calloc(1, sizeof *x);
    if (!x)
        bk_fatal("out of memory: oneDNN primitive");
    x->key = *s;
    describe_operands(s, s->m, s->k, x->arrays);
    x->bias = describe(dnnl_f32, BK_N, (int64_t[]){1, s->n}, s->n);
    x->primitive = make_primitive(x);
    return x;
}

const bk_onednn_matmul *bk_onednn_find(bk_dtype operands, const bk_gemm *g)
{
    shape s = shape_of(operands, g);
    bk_onednn_matmul **slot = &table[bk_hash_bytes(&s, sizeof s) % SLOTS];
    for (bk_onednn_matmul *x = *slot; x; x = x->next)
        if (memcmp(&x->key, &s, sizeof s) == 0)
            return x;
    bk_onednn_matmul *fresh = make(&s);
    fresh->next = *slot;
    *slot = fresh;
    return fresh;
}

static _Thread_local struct {
    dnnl_stream_t stream;
    void *scratchpad;
    size_t bytes;
} own;

static void *own_scratchpad(size_t bytes)
{
    if (bytes > own.bytes) {
        free(own.scratchpad);
        own.bytes = (bytes + 4095) / 4096 * 4096;
        own.scratchpad = aligned_alloc(4096, own.bytes);
        if (!own.scratchpad)
            bk_fatal("out of memory: oneDNN scratchpad of %zu bytes", bytes);
    }
    return own.scratchpad;
}

void bk_onednn_run(const bk_onednn_matmul *x, const bk_gemm *g)
{
    enum { ARGUMENTS = 5 };
    dnnl_exec_arg_t argument[ARGUMENTS];
    dnnl_memory_desc_t own_arrays[ARRAYS];
    const dnnl_memory_desc_t *arrays = g->varying ? own_arrays : x->arrays;
    if (g->varying)
        describe_operands(&x->key, g->m, g->k, own_arrays);
    if (!own.stream)
        CHECK(dnnl_stream_create(&own.stream, engine, dnnl_stream_default_flags));
    const struct {
        int name;
        const dnnl_memory_desc_t *shape;
        const void *data;
    } list[ARGUMENTS] = {{DNNL_ARG_SRC, &arrays[A], g->a},
                         {DNNL_ARG_WEIGHTS, &arrays[B], g->b},
                         {DNNL_ARG_DST, &arrays[C], g->c},
                         {DNNL_ARG_SCRATCHPAD, &x->scratchpad,
                          own_scratchpad(dnnl_memory_desc_get_size(&x->scratchpad))},
                         {DNNL_ARG_BIAS, &x->bias, g->bias}};
    int count = x->key.bias ? ARGUMENTS : ARGUMENTS - 1;
    for (int i = 0; i < count; i++) {
        argument[i].arg = list[i].name;
        CHECK(dnnl_memory_create(&argument[i].memory, list[i].shape, engine,
                                 (void *)(uintptr_t)list[i].data));
    }
    CHECK(dnnl_primitive_execute(x->primitive, own.stream, count, argument));
    for (int i = 0; i < count; i++)
        CHECK(dnnl_memory_destroy(argument[i].memory));
}

const char *bk_onednn_description(void)
{
    static char text[64];
    const dnnl_version_t *v = dnnl_version();
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    const char *name = isa == dnnl_cpu_isa_avx2  ? "avx2"
                       : isa < dnnl_cpu_isa_avx2 ? "sse"
                       : bk_onednn_has_bf16()    ? "avx512, bf16"
                                                 : "avx512";
    snprintf(text, sizeof text, "oneDNN %d.%d.%d (%s)", v->major, v->minor, v->patch, name);
    return text;
}

#endif
