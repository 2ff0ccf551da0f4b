#include "jobs/preset.h"

#include <string.h>

/* ---- tasks ---- */

typedef struct task {
    double alpha, temperature;
    int batch;
    bool annealed; /* T falls to 1 */
} task;

enum { NO_TASK, T0 = 8 };

#define TASKS "none|cola|mnli|mrpc|qnli|qqp|rte|sst2|t0"

/* In the order of TASKS. */
static const task tasks[] = {
    [1] = {0.9, 1.0, 16, false}, /* cola */
    [2] = {0.8, 3.0, 16, true},  /* mnli */
    [3] = {1.0, 4.0, 16, true},  /* mrpc */
    [4] = {0.8, 3.0, 16, false}, /* qnli */
    [5] = {1.0, 4.0, 32, true},  /* qqp */
    [6] = {0.9, 3.5, 16, false}, /* rte */
    [7] = {0.9, 2.0, 32, false}, /* sst2 */
    [T0] = {0.1, 1.0, 16, false},
};

typedef struct preset_config {
    const char *kind, *name;
    int task;
} preset_config;

static const bk_option options[] = {
    BK_OPTION_CHOICE(preset_config, task, NO_TASK, TASKS, "whose alpha, T and batch are taken"),
    BK_OPTION_END,
};

static const bk_option common[] = {
    BK_OPTION_TEXT(preset_config, kind, NULL, "preset"),
    BK_OPTION_TEXT(preset_config, name, NULL, "which list (birkhoff kinds preset)"),
    BK_OPTION_END,
};

enum { OFFICIAL, DEFAULT };

const bk_preset bk_presets[] = {
    [OFFICIAL] = {"official", "the published GLUE recipe: CE, KL and SinKD summed over a lane",
                  "arXiv 2402.17110", options},
    [DEFAULT] = {"default", "the same with SinKD as a mean over the global batch", NULL, options},
    {NULL, NULL, NULL, NULL},
};

/* ---- entries ---- */

/* Where new entries go, and what they say of where they stand. */
typedef struct writer {
    bk_arena *arena;
    bk_value *list;
    const bk_value *at;
} writer;

/* "key=value key=value" as one more entry of the list. */
static bk_status add(const writer *w, const char *text)
{
    bk_value *entry = bk_value_new(w->arena, BK_MAP, w->at->file, w->at->line);
    char *words = bk_arena_strdup(w->arena, text), *rest = NULL;
    for (char *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        char *equal = strchr(word, '=');
        *equal = '\0';
        BK_TRY(bk_value_set(w->arena, entry, word, equal + 1));
    }
    bk_value_append(w->list, entry);
    return BK_OK;
}

static bk_status add_without_task(const writer *w)
{
    BK_TRY(add(w, "kind=cross_entropy weight=0.2"));
    BK_TRY(add(w, "kind=kl weight=0.8 temperature=2"));
    return add(w, "kind=sinkd weight=0.8 temperature=2 epsilon=0.1 iterations=20 reduction=mean "
                  "group=global");
}

static bk_status add_task(const writer *w, const task *k, int preset)
{
    bool t0 = k == &tasks[T0];
    BK_TRY(add(w, bk_arena_printf(w->arena, "kind=cross_entropy weight=%.12g",
                                  t0 ? 1.0 : 1.0 - k->alpha)));
    BK_TRY(
        add(w, bk_arena_printf(w->arena,
                               "kind=kl weight=%.12g temperature=%.12g t_squared=false "
                               "entropy=false%s",
                               k->alpha, k->temperature, k->annealed ? " temperature_end=1" : "")));
    return add(w, bk_arena_printf(w->arena,
                                  "kind=sinkd weight=%.12g temperature=2 epsilon=0.1 iterations=20 "
                                  "gradient=unrolled %s",
                                  preset == OFFICIAL ? 0.0008 : 0.0008 * k->batch,
                                  preset == OFFICIAL ? "reduction=sum group=lane"
                                                     : "reduction=mean group=global"));
}

/* ---- reading ---- */

static bk_status find(const preset_config *c, const bk_value *entry, const char *path, int *out)
{
    const char *names[] = {bk_presets[OFFICIAL].name, bk_presets[DEFAULT].name, NULL};
    char where[BK_PLACE_TEXT];
    for (*out = 0; c->name && names[*out]; ++*out)
        if (strcmp(names[*out], c->name) == 0)
            return BK_OK;
    if (c->name)
        return bk_unknown_kind("preset", c->name, bk_value_get(entry, "name"), names);
    return bk_fail(BK_USAGE,
                   "%s is a preset without a name (%s): write - {kind: preset, name: "
                   "official, task: sst2}",
                   path, bk_value_place(entry, where));
}

static bk_status expand(const writer *w, bk_value *entry, const char *path)
{
    const bk_option *tables[] = {common, options, NULL};
    char where[BK_PLACE_TEXT];
    preset_config c;
    int preset;
    for (int i = 0; i < 2; i++)
        BK_TRY(bk_options_read(tables[i], &c, entry, path, w->arena));
    BK_TRY(bk_options_unknown(entry, path, tables, NULL));
    BK_TRY(find(&c, entry, path, &preset));
    if (c.task != NO_TASK)
        return add_task(w, &tasks[c.task], preset);
    if (preset == DEFAULT)
        return add_without_task(w);
    return bk_fail(BK_USAGE, "the preset official needs a task (%s): add task: one of %s",
                   bk_value_place(entry, where), strchr(TASKS, '|') + 1);
}

static bool is_preset(const bk_value *entry)
{
    const bk_value *kind = entry->kind == BK_MAP ? bk_value_get(entry, "kind") : NULL;
    return kind && kind->kind == BK_SCALAR && strcmp(kind->text, "preset") == 0;
}

bk_status bk_presets_expand(bk_arena *arena, bk_value *list, bk_value **out)
{
    bool any = false;
    for (const bk_value *entry = list->child; entry; entry = entry->next)
        any = any || is_preset(entry);
    *out = list;
    if (!any)
        return BK_OK;
    *out = bk_value_new(arena, BK_LIST, list->file, list->line);
    int place = 0;
    for (bk_value *entry = list->child; entry; entry = entry->next, place++) {
        writer w = {arena, *out, entry};
        if (is_preset(entry))
            BK_TRY(expand(&w, entry, bk_arena_printf(arena, "loss.%d", place)));
        else
            bk_value_append(*out, bk_value_copy(arena, entry));
    }
    return BK_OK;
}
