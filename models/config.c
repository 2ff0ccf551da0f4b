/* The `model:` section: tables, reading, checks, and writing back. */
#include "models/internal.h"

#include <stdio.h>
#include <string.h>

static const bk_option model_options[] = {
    BK_OPTION_TEXT_AS(bk_model_config, kind_name, "kind", "encoder",
                      "model (birkhoff kinds model)"),
    BK_OPTION_I64(bk_model_config, layers, 4, 1, 1024, "Transformer blocks"),
    BK_OPTION_I64(bk_model_config, width, 256, 1, 65536, "channels of the residual stream, C"),
    BK_OPTION_I64(bk_model_config, heads, 4, 1, 1024, "attention heads, H"),
    BK_OPTION_I64(bk_model_config, ffn, 0, 0, 1048576,
                  "hidden width of the feed-forward; 0 = 4 x width"),
    BK_OPTION_I64(bk_model_config, qkv_width, 0, 0, 65536,
                  "H x D of queries, keys and values; 0 = width"),
    BK_OPTION_I64(bk_model_config, max_length, 0, 0, 1 << 24,
                  "longest sample; 0 = what the data holds"),
    BK_OPTION_CHOICE(bk_model_config, activation, 0, "gelu|gelu_tanh|relu|silu",
                     "of the feed-forward (gelu: erf form)"),
    BK_OPTION_CHOICE(bk_model_config, positions, 0, "learned|sinusoid|none",
                     "position information added to the input"),
    BK_OPTION_F64(bk_model_config, dropout, 0.0, 0.0, 0.95,
                  "on the embedding and behind attention and feed-forward"),
    BK_OPTION_F64_ABOVE(bk_model_config, norm_epsilon, 1e-5, 0.0, 1.0,
                        "added to the variance in LayerNorm"),
    BK_OPTION_CHOICE(
        bk_model_config, recompute, 0, "none|block",
        "block: keep the inputs of blocks, make the rest again in backward (same bits; "
        "of a block with experts the attention half)"),
    BK_OPTION_END,
};

static const bk_option attention_options[] = {
    BK_OPTION_TEXT_AS(bk_attention_config, kind_name, "kind", "softmax",
                      "attention (birkhoff kinds attention)"),
    BK_OPTION_CHOICE(bk_attention_config, bias, 0, "auto|false|true",
                     "biases in q, k, v, o (auto: decoder only)"),
    BK_OPTION_F64(bk_attention_config, dropout, 0.0, 0.0, 0.95, "on attention probabilities"),
    BK_OPTION_END,
};

static const bk_option moe_options[] = {
    BK_OPTION_I64(bk_moe_config, every, 2, 1, 1024, "blocks every-1, 2 every-1, ... have experts"),
    BK_OPTION_I64(bk_moe_config, experts, 8, 1, 65536, "experts, E"),
    BK_OPTION_I64(bk_moe_config, k, 2, 1, 65536, "experts of a token"),
    BK_OPTION_I64(bk_moe_config, hidden, 0, 0, 1048576, "hidden width of an expert; 0 = model.ffn"),
    BK_OPTION_CHOICE(bk_moe_config, activation, 0, "gelu|gelu_tanh|relu|silu", "of the experts"),
    BK_OPTION_F64(
        bk_moe_config, capacity_factor, 0.0, 0.0, 1e6,
        "an expert takes so many times its equal share of a lane's tokens; 0 = all, and 1 "
        "where experts choose"),
    BK_OPTION_I64(bk_moe_config, min_capacity, 1, 1, 1 << 30,
                  "tokens of a lane that an expert takes at least"),
    BK_OPTION_CHOICE(bk_moe_config, drop_policy, BK_DROP_PROBS, "probs|position",
                     "which stay: the largest scores, or first choices before second ones"),
    BK_OPTION_F64(bk_moe_config, max_receive_factor, 0.0, 0.0, 1e9,
                  "stop when a rank would receive so many times its even share of the rows, before "
                  "it makes room; at least 1, 0 = never"),
    BK_OPTION_CHOICE(bk_moe_config, aux, 0, "none|switch|seq|global|cv", "balance loss"),
    BK_OPTION_F64(bk_moe_config, aux_weight, 0.01, 0.0, 1e6, "weight of the balance loss"),
    BK_OPTION_F64(bk_moe_config, z_weight, 0.0, 0.0, 1e6,
                  "weight of the squared log-sum-exp of the router logits"),
    BK_OPTION_I64(bk_moe_config, shared, 0, 0, 1048576,
                  "hidden width of an expert that every token goes to; 0 = none"),
    BK_OPTION_BOOL(bk_moe_config, shared_gate, false,
                   "scale the shared expert's output by a sigmoid of the token"),
    BK_OPTION_CHOICE(bk_moe_config, wire, 0, "fp32|bf16",
                     "rows between tokens and experts, both ways; sums stay fp32"),
    BK_OPTION_CHOICE(
        bk_moe_config, hierarchy, 0, "auto|flat|two_level",
        "rows between nodes: each rank to each, or by way of one rank a node; auto: the "
        "latter where messages are short (8 KiB)"),
    BK_OPTION_I64(bk_moe_config, chunks, 1, 1, 64,
                  "pieces of a rank's experts; rows of one travel while another is at work"),
    BK_OPTION_END,
};

static const bk_option upcycle_options[] = {
    BK_OPTION_TEXT_AS(bk_moe_config, upcycle_from, "from", NULL,
                      "run or checkpoint of the dense model that a new training begins as"),
    BK_OPTION_I64(bk_moe_config, granularity, 1, 1, 65536,
                  "experts that one copy of a dense feed-forward is cut into"),
    BK_OPTION_END,
};

static const bk_option router_options[] = {
    BK_OPTION_TEXT_AS(bk_moe_config, router_name, "kind", "topk", "router (birkhoff kinds router)"),
    BK_OPTION_END,
};

const bk_section bk_model_sections[] = {
    {"model", model_options, "model"},
    {"model.attention", attention_options, "attention"},
    {"model.moe", moe_options, NULL},
    {"model.moe.upcycle", upcycle_options, NULL},
    {"model.moe.router", router_options, "router"},
    {NULL, NULL, NULL},
};

/* ---- keys of a section that has a kind ---- */

/* A kind and its table, to see which kinds have a key. */
typedef struct kind_options {
    const char *name;
    const bk_option *options;
} kind_options;

static bool has_key(const bk_option *table, const char *key)
{
    for (; table && table->name; table++)
        if (strcmp(table->name, key) == 0)
            return true;
    return false;
}

/* BK_USAGE for a key that this kind has not but others have, naming them. */
static bk_status check_foreign_keys(bk_model *model, const bk_value *map, const char *path,
                                    const char *kind, const kind_options *kinds)
{
    char where[BK_PLACE_TEXT];
    for (const bk_value *v = map->child; v; v = v->next) {
        const char *owners = "";
        for (const kind_options *k = kinds; !v->used && k->name; k++)
            if (has_key(k->options, v->key))
                owners =
                    bk_arena_printf(model->arena, "%s%s%s", owners, *owners ? ", " : "", k->name);
        if (*owners)
            return bk_fail(BK_USAGE, "%s.%s is not an option of %s (%s): it belongs to %s", path,
                           v->key, kind, bk_value_place(v, where), owners);
    }
    return BK_OK;
}

/* ---- attention ---- */

static bk_status find_attention(const bk_value *map, bk_attention_config *a)
{
    const char *names[64] = {0};
    a->kind = bk_attention_find(a->kind_name);
    for (int i = 0; bk_attentions[i] && i < 63; i++)
        names[i] = bk_attentions[i]->name;
    return a->kind ? BK_OK
                   : bk_unknown_kind("attention", a->kind_name, bk_value_get(map, "kind"), names);
}

static bk_status check_attention_keys(bk_model *model, const bk_value *map, const char *path,
                                      const bk_attention_kind *kind)
{
    const bk_option *tables[] = {attention_options, kind->options, NULL};
    kind_options kinds[64] = {0};
    for (int i = 0; bk_attentions[i] && i < 63; i++)
        kinds[i] = (kind_options){bk_attentions[i]->name, bk_attentions[i]->options};
    BK_TRY(check_foreign_keys(model, map, path, kind->name, kinds));
    return bk_options_unknown(map, path, tables, NULL);
}

static bk_status read_attention(bk_model *model, bk_value *map, const char *path,
                                bk_attention_config *a)
{
    BK_TRY(bk_options_read(attention_options, a, map, path, model->arena));
    BK_TRY(find_attention(map, a));
    if (a->kind->config_size > 0)
        a->config = bk_arena_zalloc(model->arena, a->kind->config_size);
    if (a->kind->options)
        BK_TRY(bk_options_read(a->kind->options, a->config, map, path, model->arena));
    if (map)
        BK_TRY(check_attention_keys(model, map, path, a->kind));
    if (bk_model_causal(model) && !(a->kind->flags & BK_ATTENTION_CAUSAL))
        return bk_attention_refuse_causal(a->kind, path);
    if (a->kind->check)
        BK_TRY(a->kind->check(a->config));
    return a->kind->fits ? a->kind->fits(a->config, bk_model_positions(model),
                                         model->data.min_length < model->config.max_length)
                         : BK_OK;
}

static bk_status wrong_length(const bk_model *model, const bk_value *list)
{
    char where[BK_PLACE_TEXT];
    long long entries = 0;
    for (const bk_value *v = list->child; v; v = v->next)
        entries++;
    return bk_fail(BK_USAGE,
                   "model.attention has %lld entries for %lld layers (%s): give one for each layer",
                   entries, (long long)model->config.layers, bk_value_place(list, where));
}

static bk_status read_attentions(bk_model *model, bk_value *value)
{
    int64_t layers = model->config.layers;
    model->attention = BK_ZNEW(model->arena, bk_attention_config, layers);
    model->attention_list = value && value->kind == BK_LIST;
    bk_value *entry = model->attention_list ? value->child : value;
    if (value)
        value->used = true;
    for (int64_t i = 0; i < layers; i++) {
        if (model->attention_list && !entry)
            return wrong_length(model, value);
        const char *path = model->attention_list
                               ? bk_arena_printf(model->arena, "model.attention.%lld", (long long)i)
                               : "model.attention";
        BK_TRY(read_attention(model, entry, path, &model->attention[i]));
        if (model->attention_list)
            entry = entry->next;
    }
    return model->attention_list && entry ? wrong_length(model, value) : BK_OK;
}

/* ---- mixture of experts ---- */

static bk_status check_router_keys(bk_model *model, bk_value *map, const bk_moe_config *moe)
{
    const char *path = "model.moe.router";
    const bk_option *tables[] = {router_options, moe->router->options, NULL};
    kind_options kinds[64] = {0};
    for (int i = 0; bk_routers[i] && i < 63; i++)
        kinds[i] = (kind_options){bk_routers[i]->name, bk_routers[i]->options};
    map->used = true;
    BK_TRY(check_foreign_keys(model, map, path, moe->router->name, kinds));
    return bk_options_unknown(map, path, tables, NULL);
}

static bk_status refuse_decoder(const bk_moe_config *moe)
{
    return bk_fail(BK_USAGE,
                   "router %s does not go with model.kind=decoder (model.moe.router): later tokens "
                   "decide about earlier ones; choose another router",
                   moe->router->name);
}

static bk_status read_router(bk_model *model, bk_value *map, bk_moe_config *moe)
{
    const char *path = "model.moe.router", *names[64] = {0};
    BK_TRY(bk_options_read(router_options, moe, map, path, model->arena));
    moe->router = bk_router_find(moe->router_name);
    for (int i = 0; bk_routers[i] && i < 63; i++)
        names[i] = bk_routers[i]->name;
    if (!moe->router)
        return bk_unknown_kind("router", moe->router_name, bk_value_get(map, "kind"), names);
    moe->router_config = bk_arena_zalloc(model->arena, moe->router->config_size);
    BK_TRY(bk_options_read(moe->router->options, moe->router_config, map, path, model->arena));
    if (map)
        BK_TRY(check_router_keys(model, map, moe));
    if (bk_model_causal(model) && moe->router->flags & BK_ROUTER_EXPERTS)
        return refuse_decoder(moe);
    if (moe->router->check)
        BK_TRY(moe->router->check(moe->router_config, moe->experts, moe->k));
    BK_TRY(bk_router_check_aux(moe->router, (bk_moe_aux)moe->aux, moe->experts, moe->k));
    bk_capacity capacity = bk_moe_capacity(moe);
    BK_TRY(bk_capacity_check(&capacity, moe->router));
    return bk_upcycle_check_router(moe);
}

static bk_status read_upcycle(bk_model *model, bk_value *map, bk_moe_config *moe)
{
    const char *path = "model.moe.upcycle";
    const bk_option *tables[] = {upcycle_options, NULL};
    if (!map)
        return BK_OK;
    map->used = moe->upcycles = true;
    BK_TRY(bk_options_read(upcycle_options, moe, map, path, model->arena));
    BK_TRY(bk_options_unknown(map, path, tables, NULL));
    return bk_upcycle_check(model, moe);
}

static bk_status read_moe(bk_model *model, bk_value *map)
{
    if (!map)
        return BK_OK;
    bk_moe_config *moe = model->moe = BK_ZNEW(model->arena, bk_moe_config, 1);
    const bk_option *tables[] = {moe_options, NULL};
    const char *more[] = {"router", "upcycle", NULL};
    map->used = true;
    BK_TRY(bk_options_read(moe_options, moe, map, "model.moe", model->arena));
    BK_TRY(bk_options_unknown(map, "model.moe", tables, more));
    BK_TRY(read_upcycle(model, bk_value_get(map, "upcycle"), moe));
    if (moe->hidden == 0)
        moe->hidden = model->config.ffn;
    if (moe->k > moe->experts)
        return bk_fail(BK_USAGE,
                       "model.moe.k=%lld is more than model.moe.experts=%lld: choose k <= experts",
                       (long long)moe->k, (long long)moe->experts);
    if (model->world->expert > moe->experts)
        return bk_fail(BK_USAGE,
                       "parallel.expert=%d is more than model.moe.experts=%lld: choose a degree of "
                       "at most %lld",
                       model->world->expert, (long long)moe->experts, (long long)moe->experts);
    if (moe->max_receive_factor > 0.0 && moe->max_receive_factor < 1.0)
        return bk_fail(
            BK_USAGE,
            "model.moe.max_receive_factor=%g is below the even share: use 0 or at least 1",
            moe->max_receive_factor);
    if (moe->shared_gate && moe->shared == 0)
        return bk_fail(BK_USAGE, "model.moe.shared_gate=true gates nothing: give model.moe.shared "
                                 "a width");
    if (moe->every > model->config.layers)
        return bk_fail(BK_USAGE,
                       "model.moe.every=%lld leaves no block with experts in %lld layers: choose "
                       "every <= layers",
                       (long long)moe->every, (long long)model->config.layers);
    return read_router(model, bk_value_get(map, "router"), moe);
}

/* ---- the section ---- */

static bk_status find_model_kind(bk_model *model, const bk_value *section)
{
    const char *name = model->config.kind_name, *names[16] = {0};
    for (int i = 0; bk_models[i] && i < 15; i++) {
        names[i] = bk_models[i]->name;
        if (strcmp(names[i], name) == 0)
            model->kind = bk_models[i];
    }
    return model->kind ? BK_OK
                       : bk_unknown_kind("model", name, bk_value_get(section, "kind"), names);
}

static bk_status check_shapes(const bk_model *model)
{
    const bk_model_config *c = &model->config;
    if (c->qkv_width % c->heads != 0)
        return bk_fail(
            BK_USAGE,
            "model.heads=%lld does not divide the width of queries (%lld): choose a divisor",
            (long long)c->heads, (long long)c->qkv_width);
    if (c->max_length > 0 && c->max_length < model->data.max_length)
        return bk_fail(BK_INPUT,
                       "the data set has samples of %lld positions, model.max_length is %lld: "
                       "raise it or set data.max_length",
                       (long long)model->data.max_length, (long long)c->max_length);
    return BK_OK;
}

static bk_status check_model_keys(bk_model *model, const bk_value *section)
{
    const bk_option *tables[] = {model_options, model->kind->options, NULL};
    const char *more[] = {"attention", "moe", NULL};
    kind_options kinds[16] = {0};
    for (int i = 0; bk_models[i] && i < 15; i++)
        kinds[i] = (kind_options){bk_models[i]->name, bk_models[i]->options};
    BK_TRY(check_foreign_keys(model, section, "model", model->kind->name, kinds));
    return bk_options_unknown(section, "model", tables, more);
}

bk_status bk_model_read_config(bk_model *model, bk_value *section)
{
    bk_model_config *c = &model->config;
    BK_TRY(bk_options_read(model_options, c, section, "model", model->arena));
    BK_TRY(find_model_kind(model, section));
    BK_TRY(bk_options_read(model->kind->options, c, section, "model", model->arena));
    c->ffn = c->ffn ? c->ffn : 4 * c->width;
    c->qkv_width = c->qkv_width ? c->qkv_width : c->width;
    BK_TRY(check_shapes(model));
    c->max_length = c->max_length ? c->max_length : model->data.max_length;
    BK_TRY(read_attentions(model, bk_value_get(section, "attention")));
    BK_TRY(read_moe(model, bk_value_get(section, "moe")));
    return section ? check_model_keys(model, section) : BK_OK;
}

static void write_attention(const bk_attention_config *a, const char *head, int indent, FILE *file)
{
    fprintf(file, "%*s%s\n", indent, "", head);
    bk_options_write(attention_options, a, indent + 2, file);
    if (a->kind->options)
        bk_options_write(a->kind->options, a->config, indent + 2, file);
}

static void write_attentions(const bk_model *model, int indent, FILE *file)
{
    if (!model->attention_list) {
        write_attention(&model->attention[0], "attention:", indent, file);
        return;
    }
    fprintf(file, "%*sattention:\n", indent, "");
    for (int64_t i = 0; i < model->config.layers; i++)
        write_attention(&model->attention[i], "-", indent + 2, file);
}

void bk_model_write_options(const bk_model *model, int indent, void *stream)
{
    FILE *file = stream;
    bk_options_write(model_options, &model->config, indent, file);
    bk_options_write(model->kind->options, &model->config, indent, file);
    write_attentions(model, indent, file);
    if (!model->moe)
        return;
    fprintf(file, "%*smoe:\n", indent, "");
    bk_options_write(moe_options, model->moe, indent + 2, file);
    if (model->moe->upcycles) {
        fprintf(file, "%*supcycle:\n", indent + 2, "");
        bk_options_write(upcycle_options, model->moe, indent + 4, file);
    }
    fprintf(file, "%*srouter:\n", indent + 2, "");
    bk_options_write(router_options, model->moe, indent + 4, file);
    bk_options_write(model->moe->router->options, model->moe->router_config, indent + 4, file);
}
