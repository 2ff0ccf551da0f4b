/* Operators attention.<kind>: out[B,H,N,D] of q, k, v, samples split over the ranks. */
#include "dist/collective.h"
#include "jobs/op/op.h"
#include "models/attention.h"

#include <string.h>

typedef struct attention_settings {
    bk_operator_settings base;
    bool causal, matrix;
} attention_settings;

static const bk_option settings[] = {
    BK_OPERATOR_DTYPE(attention_settings),
    BK_OPTION_BOOL(attention_settings, causal, false, "query i sees the keys j <= i"),
    BK_OPTION_BOOL(attention_settings, matrix, false, "write the probabilities, too"),
    BK_OPTION_END,
};

static bk_status check(bk_operator_call *c)
{
    const bk_attention_kind *kind = c->op.plug_in;
    const attention_settings *s = c->own;
    bool cross = c->axis['N'] != c->axis['M'] || bk_operator_given(c, "query_mask");
    if (cross && !(kind->flags & BK_ATTENTION_CROSS))
        return bk_fail(BK_INPUT, "%s has as many keys as queries, not %lld and %lld (%s)",
                       c->op.name, (long long)c->axis['M'], (long long)c->axis['N'], c->in);
    if (s->causal && (cross || !(kind->flags & BK_ATTENTION_CAUSAL)))
        return bk_fail(BK_USAGE, "causal=true is not possible with %s (%s): use causal=false",
                       cross ? "cross attention" : c->op.name, c->in);
    if (s->matrix && !(kind->flags & BK_ATTENTION_MATRIX))
        return bk_fail(BK_USAGE, "%s has no matrix (matrix=true): use matrix=false", c->op.name);
    if (!s->matrix && (kind->flags & BK_ATTENTION_MATRIX))
        bk_operator_drop(c->op.output, "matrix");
    return kind->check ? kind->check(c->config) : BK_OK;
}

static double *figure(bk_attributes *a, const char *name)
{
    for (int i = 0; i < a->entries; i++)
        if (strcmp(a->entry[i].name, name) == 0)
            return &a->entry[i].value;
    return NULL;
}

/* Counts of own samples become counts of all. */
static void sum_figures(bk_operator_call *c)
{
    const char *const names[] = {"pairs", "flop"};
    for (int i = 0; i < 2; i++) {
        double *value = figure(&c->attributes, names[i]);
        bk_lanes ranks = {.total = c->world->size, .first = c->world->rank, .count = 1};
        if (value)
            bk_sum_lanes(c->world->data, &ranks, 1, value, value);
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
    bk_tensor *out = kind->apply(&c->tape, &args);
    bk_operator_output(c, "out", out);
    if (lse)
        bk_operator_output(c, "lse", lse);
    if (matrix)
        bk_operator_output(c, "matrix", matrix);
    sum_figures(c);
    if (c->backward) {
        bk_operator_seed_tape(c, "out", out);
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
                                                        .optional = true});
}

bool bk_operator_attentions(int index, bk_arena *arena, bk_operator *op)
{
    const bk_attention_kind *kind = bk_attentions[index];
    if (!kind)
        return false;
    BK_ASSERT(!kind->declare, "attention.%s has parameters, which op does not read yet",
              kind->name);
    *op = (bk_operator){.name = bk_arena_printf(arena, "attention.%s", kind->name),
                        .summary = kind->summary,
                        .kind = kind->name,
                        .rows = 'B',
                        .own_options = settings,
                        .own_size = sizeof(attention_settings),
                        .options = kind->options,
                        .size = kind->config_size,
                        .plug_in = kind,
                        .check = check,
                        .run = run};
    add_inputs(kind, op);
    add_outputs(kind, op);
    return true;
}
