/* Operators attention.<kind>: out[B,H,N,D] of q, k, v, samples split over the ranks. */
#include "core/rng.h"
#include "dist/collective.h"
#include "jobs/op/op.h"
#include "models/attention.h"

#include <string.h>

typedef struct attention_settings {
    bk_operator_settings base;
    bool causal, matrix;
    int64_t seed;
} attention_settings;

static const bk_option settings[] = {
    BK_OPERATOR_DTYPE(attention_settings),
    BK_OPTION_BOOL(attention_settings, causal, false, "query i sees the keys j <= i"),
    BK_OPTION_BOOL(attention_settings, matrix, false, "write the probabilities, too"),
    BK_OPTION_END,
};

/* Of kinds that draw numbers. */
static const bk_option seeded_settings[] = {
    BK_OPERATOR_DTYPE(attention_settings),
    BK_OPTION_BOOL(attention_settings, causal, false, "query i sees the keys j <= i"),
    BK_OPTION_BOOL(attention_settings, matrix, false, "write the probabilities, too"),
    BK_OPTION_I64(attention_settings, seed, 0, 0, 1LL << 53, "of the numbers that are drawn"),
    BK_OPTION_END,
};

/* ---- parameters of a kind: [H,K] each, drawn where they are not given ---- */

static int parameters_of(const bk_operator_call *c, bk_attention_parameter *own)
{
    const bk_attention_kind *kind = c->op.plug_in;
    return kind->declare ? kind->declare(c->config, c->axis['H'], c->axis['D'], c->axis['N'], own)
                         : 0;
}

static bk_status check_parameters(bk_operator_call *c)
{
    bk_attention_parameter own[BK_ATTENTION_PARAMETERS];
    int count = parameters_of(c, own);
    for (int i = 0; i < count; i++)
        if (bk_operator_given(c, own[i].name) && c->axis['K'] != own[i].shape[1])
            return bk_fail(BK_INPUT, "%s has K = %lld columns, not %lld as these options ask (%s)",
                           own[i].name, (long long)c->axis['K'], (long long)own[i].shape[1], c->in);
    return BK_OK;
}

/* Uniform within +-init_scale. */
static bk_tensor *draw(const bk_operator_call *c, const bk_attention_parameter *own)
{
    const attention_settings *s = c->own;
    bk_tensor *x = bk_tensor_new(c->arena, c->tape.dtype, own->dims, own->shape);
    bk_philox_key key = bk_philox_for((uint64_t)s->seed, 0, BK_USE_INIT);
    for (int64_t i = 0; i < bk_count(x); i++) {
        uint64_t word[4];
        bk_philox(key, 0, 0, (uint64_t)i, word);
        double value = own->init_scale * (2.0 * bk_unit(word[0]) - 1.0);
        if (x->dtype == BK_F64)
            ((double *)x->data)[i] = value;
        else
            ((float *)x->data)[i] = (float)value;
    }
    x->needs_grad = c->backward;
    return x;
}

/* What was drawn counts as given, and is written. */
static void take_parameters(bk_operator_call *c, bk_attention_args *args)
{
    bk_attention_parameter own[BK_ATTENTION_PARAMETERS];
    int count = parameters_of(c, own);
    for (int i = 0; i < count; i++) {
        int at = bk_operator_find(c->op.input, own[i].name);
        if (!c->given[at]) {
            c->input[at] = draw(c, &own[i]);
            c->given[at] = true;
            bk_operator_output(c, own[i].name, c->input[at]);
        }
        args->parameter[i] = c->input[at];
    }
}

/* ---- one call ---- */

static bk_status check(bk_operator_call *c)
{
    const bk_attention_kind *kind = c->op.plug_in;
    const attention_settings *s = c->own;
    bool cross = c->axis['N'] != c->axis['M'] || bk_operator_given(c, "query_mask");
    if (cross && !(kind->flags & BK_ATTENTION_CROSS))
        return bk_fail(BK_USAGE, "%s has as many keys as queries, not %lld and %lld (%s)",
                       c->op.name, (long long)c->axis['M'], (long long)c->axis['N'], c->in);
    if (s->causal && !(kind->flags & BK_ATTENTION_CAUSAL))
        return bk_attention_refuse_causal(kind, "causal=true");
    if (s->causal && cross)
        return bk_fail(BK_USAGE,
                       "causal=true is not possible with cross attention (%s): use causal=false",
                       c->in);
    if (s->matrix && !(kind->flags & BK_ATTENTION_MATRIX))
        return bk_fail(BK_USAGE, "%s has no matrix (matrix=true): use matrix=false", c->op.name);
    if (!s->matrix && (kind->flags & BK_ATTENTION_MATRIX))
        bk_operator_drop(c->op.output, "matrix");
    if (kind->check)
        BK_TRY(kind->check(c->config));
    if (kind->fits)
        BK_TRY(kind->fits(c->config, c->axis['N'], false));
    return check_parameters(c);
}

/* A mask with a zero, for kinds that ask. */
static bk_status examine(const bk_operator_call *c)
{
    const bk_attention_kind *kind = c->op.plug_in;
    const bk_tensor *mask = bk_operator_input(c, "mask");
    bool padded = false;
    for (int64_t i = 0; mask && i < bk_count(mask); i++)
        padded = padded || bk_i32(mask)[i] == 0;
    return kind->fits ? kind->fits(c->config, c->axis['N'], padded) : BK_OK;
}

static double *figure(bk_attributes *a, const char *name)
{
    for (int i = 0; i < a->entries; i++)
        if (strcmp(a->entry[i].name, name) == 0)
            return &a->entry[i].value;
    return NULL;
}

/* Counts of own samples become counts of all, errors the largest of all. */
static void join_figures(bk_operator_call *c)
{
    const char *const sums[] = {"pairs", "flop", "clamped"}, *const most[] = {"row_error",
                                                                              "column_error"};
    for (int i = 0; i < 3; i++) {
        double *value = figure(&c->attributes, sums[i]);
        bk_lanes ranks = {.total = c->world->size, .first = c->world->rank, .count = 1};
        if (value)
            bk_sum_lanes(c->world->data, &ranks, 1, value, value);
    }
    for (int i = 0; i < 2; i++) {
        double *value = figure(&c->attributes, most[i]);
        if (value)
            bk_max_f64(c->world->data, 1, value);
    }
}

static bk_status run(bk_operator_call *c)
{
    const bk_attention_kind *kind = c->op.plug_in;
    const attention_settings *s = c->own;
    bk_tensor *matrix = NULL, *lse = NULL;
    bk_attention_args args = {.q = bk_operator_input(c, "q"),
                              .k = bk_operator_input(c, "k"),
                              .v = bk_operator_input(c, "v"),
                              .mask = bk_operator_input(c, "mask"),
                              .query_mask = bk_operator_input(c, "query_mask"),
                              .causal = s->causal,
                              .config = c->config,
                              .matrix = s->matrix ? &matrix : NULL,
                              .lse = kind->flags & BK_ATTENTION_LSE ? &lse : NULL,
                              .attributes = &c->attributes};
    c->tape.seed = (uint64_t)s->seed;
    take_parameters(c, &args);
    bk_tensor *out = kind->apply(&c->tape, &args);
    bk_operator_output(c, "out", out);
    if (lse)
        bk_operator_output(c, "lse", lse);
    if (matrix)
        bk_operator_output(c, "matrix", matrix);
    join_figures(c);
    if (c->backward) {
        bk_operator_seed_tape(c, "out", out);
        if (matrix)
            bk_operator_seed_tape(c, "matrix", matrix);
        bk_tape_backward_seeded(&c->tape);
    }
    return BK_OK;
}

static void add_inputs(const bk_attention_kind *kind, bk_operator *op)
{
    const char *const real[] = {"q", "k", "v"};
    for (int i = 0; i < 3; i++)
        bk_operator_add(op->input, (bk_operator_array){.name = real[i],
                                                       .axes = i == 0 ? "BHND" : "BHMD",
                                                       .type = BK_OPERATOR_REAL,
                                                       .differentiable = true});
    bk_operator_add(op->input, (bk_operator_array){.name = "mask",
                                                   .axes = "BM",
                                                   .type = BK_OPERATOR_INTEGER,
                                                   .optional = true});
    if (kind->flags & BK_ATTENTION_CROSS)
        bk_operator_add(op->input, (bk_operator_array){.name = "query_mask",
                                                       .axes = "BN",
                                                       .type = BK_OPERATOR_INTEGER,
                                                       .optional = true});
}

static void add_outputs(const bk_attention_kind *kind, bk_operator *op)
{
    bk_operator_add(op->output, (bk_operator_array){.name = "out",
                                                    .axes = "BHND",
                                                    .type = BK_OPERATOR_REAL,
                                                    .differentiable = true});
    if (kind->flags & BK_ATTENTION_LSE)
        bk_operator_add(op->output, (bk_operator_array){
                                        .name = "lse", .axes = "BHN", .type = BK_OPERATOR_REAL});
    if (kind->flags & BK_ATTENTION_MATRIX)
        bk_operator_add(op->output, (bk_operator_array){.name = "matrix",
                                                        .axes = "BHNM",
                                                        .type = BK_OPERATOR_REAL,
                                                        .optional = true,
                                                        .differentiable = true});
}

/* Their names, from the options as they are by default. */
static void add_parameters(const bk_attention_kind *kind, bk_arena *arena, bk_operator *op)
{
    bk_attention_parameter own[BK_ATTENTION_PARAMETERS];
    void *config = bk_arena_zalloc(arena, kind->config_size + 1);
    if (!kind->declare || bk_options_read(kind->options, config, NULL, op->name, arena) != BK_OK)
        return;
    int count = kind->declare(config, 1, 1, 1, own);
    for (int i = 0; i < count; i++) {
        bk_operator_array array = {
            .name = own[i].name, .axes = "HK", .type = BK_OPERATOR_REAL, .optional = true};
        bk_operator_add(op->output, array);
        array.differentiable = true;
        bk_operator_add(op->input, array);
    }
}

bool bk_operator_attentions(int index, bk_arena *arena, bk_operator *op)
{
    const bk_attention_kind *kind = bk_attentions[index];
    if (!kind)
        return false;
    *op = (bk_operator){.name = bk_arena_printf(arena, "attention.%s", kind->name),
                        .summary = kind->summary,
                        .kind = kind->name,
                        .rows = 'B',
                        .own_options = kind->flags & BK_ATTENTION_SEED ? seeded_settings : settings,
                        .own_size = sizeof(attention_settings),
                        .options = kind->options,
                        .size = kind->config_size,
                        .plug_in = kind,
                        .check = check,
                        .examine = examine,
                        .run = run};
    add_inputs(kind, op);
    add_outputs(kind, op);
    add_parameters(kind, arena, op);
    return true;
}
