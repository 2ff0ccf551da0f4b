#include "tests/support/router.h"

#include "core/rng.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Arenas of closed problems, for the next ones: making one is dear under ASan. */
static bk_arena *spare[16];
static int spares;

static bk_arena *take_arena(void)
{
    return spares > 0 ? spare[--spares] : bk_arena_new("router");
}

static void give_arena(bk_arena *arena)
{
    bk_arena_reset(arena);
    if (spares < 16)
        spare[spares++] = arena;
    else
        bk_arena_free(arena);
}

static void read_options(bk_test_router *p, const char *options)
{
    bk_value *map = bk_value_new(p->arena, BK_MAP, "test", 0);
    char *text = bk_arena_strdup(p->arena, options), *rest = NULL;
    for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        char *equal = strchr(word, '=');
        *equal = '\0';
        assert_int_equal(bk_value_set(p->arena, map, word, equal + 1), BK_OK);
    }
    assert_true(p->kind->config_size <= sizeof p->config);
    assert_int_equal(bk_options_read(p->kind->options, p->config, map, "router", p->arena), BK_OK);
}

bk_test_router *bk_test_router_open(const char *kind, const char *options, int64_t tokens,
                                    int64_t experts, const double *logits)
{
    bk_test_router *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->arena = take_arena();
    p->scratch = take_arena();
    p->lanes = bk_lanes_single(tokens);
    p->kind = bk_router_find(kind);
    assert_non_null(p->kind);
    read_options(p, options);
    p->args = (bk_route_args){.kind = p->kind,
                              .logits = logits,
                              .tokens = tokens,
                              .experts = experts,
                              .k = 2,
                              .valid = tokens,
                              .lanes = &p->lanes,
                              .aux = BK_AUX_SWITCH,
                              .training = true,
                              .seed = 1,
                              .config = p->config,
                              .arena = p->arena,
                              .scratch = p->scratch};
    if (p->kind->flags & BK_ROUTER_NOISE_GATE) {
        p->noise_logits = BK_NEW(p->arena, double, tokens *experts);
        p->grad_noise = BK_NEW(p->arena, double, tokens *experts);
        bk_test_spread(tokens * experts, p->noise_logits, 2, 1.0);
        p->args.noise_logits = p->noise_logits;
    }
    return p;
}

void bk_test_router_close(bk_test_router *p)
{
    give_arena(p->arena);
    give_arena(p->scratch);
    free(p);
}

void bk_test_router_lanes(bk_test_router *p, int64_t lanes)
{
    p->lanes = (bk_lanes){.total = lanes, .count = lanes, .batch = p->args.tokens};
}

void bk_test_router_mask(bk_test_router *p, const int32_t *mask)
{
    p->args.mask = mask;
    p->args.valid = 0;
    for (int64_t t = 0; t < p->args.tokens; t++)
        p->args.valid += !mask || mask[t] != 0;
}

const bk_route *bk_test_router_run(bk_test_router *p)
{
    memset(&p->route, 0, sizeof p->route);
    p->kind->route(&p->args, &p->route);
    return &p->route;
}

/* ---- variants ---- */

/* `word` is "name=value" or the name alone. */
static bool has_option(const bk_router_kind *kind, const char *word)
{
    for (const bk_option *o = kind->options; o->name; o++)
        if (strncmp(word, o->name, strlen(o->name)) == 0 &&
            (word[strlen(o->name)] == '=' || word[strlen(o->name)] == '\0'))
            return true;
    return false;
}

bool bk_test_router_has(const bk_router_kind *kind, const char *option)
{
    return has_option(kind, option);
}

static void append(char text[512], const char *key, const char *value)
{
    size_t length = strlen(text);
    int written = snprintf(text + length, 512 - length, "%s=%s ", key, value);
    assert_true(written > 0 && length + (size_t)written < 512);
}

/* The words of `fixed` that the kind knows, and its shares at 1. */
static void common_options(const bk_router_kind *kind, const char *fixed, bool shares,
                           char text[512])
{
    char words[512], *rest = NULL;
    snprintf(words, sizeof words, "%s", fixed);
    text[0] = '\0';
    for (char *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
        if (has_option(kind, word)) {
            char *value = strchr(word, '=');
            *value = '\0';
            append(text, word, value + 1);
        }
    for (const bk_option *o = kind->options; shares && o->name; o++)
        if (o->type == BK_OPT_F64 && o->least == 0.0 && o->most == 1.0)
            append(text, o->name, "1");
}

void bk_test_router_variants(const bk_router_kind *kind, const char *fixed, bool shares,
                             void (*test)(const char *kind, const char *options))
{
    char common[512], choices[128], options[512], *rest;
    common_options(kind, fixed, shares, common);
    test(kind->name, common);
    for (const bk_option *o = kind->options; o->name; o++) {
        if ((o->type != BK_OPT_CHOICE && o->type != BK_OPT_BOOL) || strstr(common, o->name))
            continue;
        snprintf(choices, sizeof choices, "%s", o->type == BK_OPT_BOOL ? "true|false" : o->text);
        rest = NULL;
        for (char *choice = strtok_r(choices, "|", &rest); choice;
             choice = strtok_r(NULL, "|", &rest)) {
            snprintf(options, sizeof options, "%s", common);
            append(options, o->name, choice);
            test(kind->name, options);
        }
    }
}

void bk_test_spread(int64_t n, double *x, uint64_t tag, double spread)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = bk_fill((uint64_t)i, tag, -spread, spread);
}

void bk_test_same_routes(const bk_test_router *a, int64_t first, const bk_test_router *b,
                         int64_t other, int64_t n)
{
    int64_t k = a->route.slots;
    size_t slots = (size_t)(n * k);
    assert_memory_equal(a->route.index + first * k, b->route.index + other * k,
                        slots * sizeof *a->route.index);
    assert_memory_equal(a->route.weight + first * k, b->route.weight + other * k,
                        slots * sizeof *a->route.weight);
}
