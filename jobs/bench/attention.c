/* bench attention: one call of an attention kind on random q, k, v, forward or forward and
 * backward, on every rank. */
#include "models/attention.h"
#include "core/attributes.h"
#include "core/blas.h"
#include "core/rng.h"
#include "dist/topology.h"
#include "jobs/bench.h"
#include "jobs/memory.h"

#include <string.h>

typedef struct attention_config {
    const char *kind;
    int64_t batch, heads, length, width, threads, warmup, repeats;
    double dropout;
    bool causal, backward;
} attention_config;

static const bk_option options[] = {
    BK_OPTION_TEXT(attention_config, kind, "softmax", "kind (birkhoff kinds attention lists them)"),
    BK_OPTION_I64(attention_config, batch, 1, 1, 1 << 20, "samples a rank"),
    BK_OPTION_I64(attention_config, heads, 8, 1, 1 << 16, "heads"),
    BK_OPTION_I64(attention_config, length, 1024, 1, 1 << 20, "positions of a sample"),
    BK_OPTION_I64(attention_config, width, 64, 1, 1 << 12, "of a head"),
    BK_OPTION_BOOL(attention_config, causal, false, "query i sees the keys j <= i"),
    BK_OPTION_F64(attention_config, dropout, 0.0, 0.0, 0.95, "on attention probabilities"),
    BK_OPTION_BOOL(attention_config, backward, true, "forward and backward, else forward alone"),
    BK_OPTION_I64(attention_config, threads, 0, 0, 4096,
                  "threads a rank; 0 = OMP_NUM_THREADS, or cores bound / ranks on the node"),
    BK_OPTION_I64(attention_config, warmup, 2, 0, BK_BENCH_REPEATS, "runs that do not count"),
    BK_OPTION_I64(attention_config, repeats, 7, 1, BK_BENCH_REPEATS, "runs; the median counts"),
    BK_OPTION_END,
};

enum { ARRAYS = 3 + BK_ATTENTION_PARAMETERS };

/* What does not change from run to run. */
typedef struct work {
    const attention_config *c;
    const bk_attention_kind *kind;
    const void *config;                   /* of the kind */
    bk_attention_parameter array[ARRAYS]; /* q, k, v and the parameters of the kind */
    float *value[ARRAYS], *gradient;      /* of the arrays; of the result */
    int arrays;
    bk_tape tape;
} work;

static int64_t count_of(const bk_attention_parameter *x)
{
    int64_t count = 1;
    for (int i = 0; i < x->dims; i++)
        count *= x->shape[i];
    return count;
}

static void fill(bk_arena *arena, work *w)
{
    const attention_config *c = w->c;
    w->arrays = 3;
    for (int i = 0; i < 3; i++)
        w->array[i] =
            (bk_attention_parameter){.dims = 4, .shape = {c->batch, c->heads, c->length, c->width}};
    if (w->kind->declare)
        w->arrays += w->kind->declare(w->config, c->heads, c->width, c->length, w->array + 3);
    for (int i = 0; i <= w->arrays; i++) {
        int64_t count = count_of(&w->array[i < w->arrays ? i : 0]);
        float **x = i < w->arrays ? &w->value[i] : &w->gradient;
        *x = BK_NEW(arena, float, count);
        for (int64_t j = 0; j < count; j++)
            (*x)[j] = (float)bk_fill((uint64_t)j, (uint64_t)i, -1.0, 1.0);
    }
}

static bk_tensor *apply(work *w, bk_attributes *attributes)
{
    bk_attention_args a = {.causal = w->c->causal,
                           .dropout = w->c->dropout,
                           .config = w->config,
                           .attributes = attributes};
    bk_tensor *x[ARRAYS] = {0};
    bk_tape_begin(&w->tape);
    for (int i = 0; i < w->arrays; i++) {
        x[i] = bk_tape_variable(&w->tape, w->array[i].dims, w->array[i].shape);
        x[i]->data = w->value[i];
    }
    a.q = x[0];
    a.k = x[1];
    a.v = x[2];
    for (int i = 3; i < w->arrays; i++)
        a.parameter[i - 3] = x[i];
    return w->kind->apply(&w->tape, &a);
}

static bk_status pass(void *context)
{
    work *w = context;
    bk_tensor *out = apply(w, NULL);
    if (w->c->backward) {
        memcpy(bk_grad(&w->tape, out), w->gradient, (size_t)bk_count(out) * sizeof(float));
        bk_tape_backward_seeded(&w->tape);
    }
    return BK_OK;
}

/* Multiply-adds of the pass, counted by the kind; backward is 2.5 times forward where a softmax is
 * streamed (its scores are computed again), else twice. */
static double flops_of(work *w)
{
    bk_attributes a = {0};
    double forward = 0.0, back = w->kind->flags & BK_ATTENTION_LSE ? 2.5 : 2.0;
    apply(w, &a);
    for (int i = 0; i < a.entries; i++)
        if (strcmp(a.entry[i].name, "flop") == 0)
            forward = a.entry[i].value;
    return w->c->backward ? forward * (1.0 + back) : forward;
}

static bk_status measure(bk_context *context, work *w, const bk_world *world, bk_bench_result *out)
{
    const attention_config *c = w->c;
    fill(context->arena, w);
    double flops = flops_of(w) * world->size;
    BK_TRY(bk_bench_time(world->ctl, c->warmup, c->repeats, pass, w, &out->seconds));
    out->rate = flops / out->seconds;
    out->limit = bk_bench_peak(world->ctl);
    bk_bench_add(out, NULL, "tokens_per_second",
                 (double)(c->batch * c->length * world->size) / out->seconds);
    bk_bench_add(out, NULL, "peak_bytes", (double)bk_peak_bytes_of_ranks(world->ctl));
    return BK_OK;
}

static bk_status find(bk_context *context, const attention_config *c, work *w)
{
    void *config;
    w->c = c;
    w->kind = bk_attention_find(c->kind);
    if (!w->kind)
        return bk_fail(BK_USAGE, "unknown attention kind '%s': birkhoff kinds attention lists them",
                       c->kind);
    if (c->causal && !(w->kind->flags & BK_ATTENTION_CAUSAL))
        return bk_attention_refuse_causal(w->kind, "causal=true");
    if (c->dropout > 0 && !(w->kind->flags & BK_ATTENTION_DROPOUT))
        return bk_fail(BK_USAGE, "dropout=%g is not possible with %s: use dropout=0", c->dropout,
                       c->kind);
    w->config = config = bk_arena_zalloc(context->arena, w->kind->config_size + 1);
    BK_TRY(bk_options_read(w->kind->options, config, NULL, c->kind, context->arena));
    if (w->kind->check)
        BK_TRY(w->kind->check(config));
    return w->kind->fits ? w->kind->fits(config, c->length, false) : BK_OK;
}

static bk_status run(bk_context *context, const void *config, bk_bench_result *out)
{
    const attention_config *c = config;
    bk_world *world;
    work w = {0};
    BK_TRY(find(context, c, &w));
    BK_TRY(bk_blas_setup(c->threads > 0 ? (int)c->threads : bk_topology_threads(), BK_GEMM_AUTO));
    BK_TRY(bk_world_open(context->arena, 1, &world));
    w.tape = (bk_tape){.arena = bk_arena_new("step"),
                       .scratch = bk_arena_new("scratch"),
                       .dtype = BK_F32,
                       .lanes = bk_lanes_single(c->batch),
                       .training = c->dropout > 0,
                       .recording = c->backward};
    *out = (bk_bench_result){.unit = "FLOP/s",
                             .ranks = world->size,
                             .threads = bk_blas_threads(),
                             .library = bk_blas_description()};
    bk_status status = measure(context, &w, world, out);
    bk_arena_free(w.tape.arena);
    bk_arena_free(w.tape.scratch);
    bk_world_close(world);
    return status;
}

const bk_bench bk_bench_attention = {
    .name = "attention",
    .summary = "an attention kind, forward and backward, on random q, k, v",
    .options = options,
    .config_size = sizeof(attention_config),
    .run = run,
};
