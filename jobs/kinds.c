/* birkhoff kinds: the plug-ins and every key of the configuration, printed from their tables. */
#include "io/data.h"
#include "jobs/command.h"
#include "jobs/config.h"
#include "jobs/json.h"
#include "jobs/options.h"
#include "jobs/preset.h"
#include "models/attention.h"
#include "models/model.h"
#include "models/router.h"

#include <stdio.h>
#include <string.h>

enum { NAMES = 64 };

/* What all plug-ins have in common. */
typedef struct kind {
    const char *name, *summary;
    const char *source; /* NULL or "": none is named */
    const bk_option *options;
} kind;

typedef struct class
{
    const char *name;
    const char *section;           /* of the configuration; NULL: not chosen there */
    const char *choice;            /* how one is chosen */
    bool (*get)(int i, kind *out); /* the i-th, false behind the last */
} class;

static bool get_attention(int i, kind *out)
{
    const bk_attention_kind *k = bk_attentions[i];
    if (k)
        *out = (kind){k->name, k->summary, k->source, k->options};
    return k != NULL;
}

static bool get_router(int i, kind *out)
{
    const bk_router_kind *k = bk_routers[i];
    if (k)
        *out = (kind){k->name, k->summary, k->source, k->options};
    return k != NULL;
}

static bool get_loss(int i, kind *out)
{
    const bk_loss_kind *k = bk_losses[i];
    if (k)
        *out = (kind){k->name, k->summary, k->source, k->options};
    return k != NULL;
}

static bool get_data(int i, kind *out)
{
    const bk_data_kind *k = bk_data_kinds[i];
    if (k)
        *out = (kind){k->name, k->summary, k->source, k->options};
    return k != NULL;
}

static bool get_model(int i, kind *out)
{
    const bk_model_kind *k = bk_models[i];
    if (k)
        *out = (kind){k->name, k->summary, NULL, k->options};
    return k != NULL;
}

static bool get_optimizer(int i, kind *out)
{
    const bk_optimizer_kind *k = bk_optimizers[i];
    if (k)
        *out = (kind){k->name, k->summary, NULL, k->options};
    return k != NULL;
}

static bool get_schedule(int i, kind *out)
{
    const bk_schedule_kind *k = bk_schedules[i];
    if (k)
        *out = (kind){k->name, k->summary, NULL, k->options};
    return k != NULL;
}

static bool get_preset(int i, kind *out)
{
    const bk_preset *k = &bk_presets[i];
    *out = (kind){k->name, k->summary, k->source, k->options};
    return k->name != NULL;
}

static const class classes[] = {
    {"model", "model", "model: {kind: NAME}", get_model},
    {"attention", "model.attention", "model: {attention: {kind: NAME}}", get_attention},
    {"router", "model.moe.router", "model: {moe: {router: {kind: NAME}}}", get_router},
    {"loss", "loss", "loss: [{kind: NAME}]", get_loss},
    {"preset", "loss", "loss: [{kind: preset, name: NAME}]", get_preset},
    {"optimizer", "optim", "optim: {kind: NAME}", get_optimizer},
    {"schedule", "schedule", "schedule: {kind: NAME}", get_schedule},
    {"data", NULL, "birkhoff data NAME", get_data},
};
enum { CLASSES = sizeof classes / sizeof *classes };

/* ---- finding ---- */

/* "config" stands beside the classes: its parts are sections, not plug-ins. */
static const char config[] = "config";

static const class *find_class(const char *name, size_t length)
{
    for (int i = 0; i < CLASSES; i++)
        if (strlen(classes[i].name) == length && memcmp(classes[i].name, name, length) == 0)
            return &classes[i];
    return NULL;
}

static bk_status unknown_class(const char *name)
{
    const char *names[CLASSES + 2] = {config};
    for (int i = 0; i < CLASSES; i++)
        names[i + 1] = classes[i].name;
    const char *near = bk_nearest(name, names);
    return bk_fail(BK_USAGE, "unknown class '%s': %s%s%sbirkhoff kinds lists them", name,
                   near ? "did you mean " : "", near ? near : "", near ? "? " : "");
}

static bk_status find_kind(const class *c, const char *name, kind *out)
{
    const char *names[NAMES + 1] = {0};
    for (int i = 0; i < NAMES && c->get(i, out); i++) {
        if (strcmp(out->name, name) == 0)
            return BK_OK;
        names[i] = out->name;
    }
    return bk_unknown_kind(c->name, name, NULL, names);
}

/* The i-th section of the configuration, in the order of the file; NULL behind the last. */
static const bk_section *section(int i)
{
    enum { BEFORE = 2 }; /* run, data; then the model */
    int models = 0;
    while (bk_model_sections[models].path)
        models++;
    const bk_section *s = i < BEFORE            ? &bk_config_sections[i]
                          : i < BEFORE + models ? &bk_model_sections[i - BEFORE]
                                                : &bk_config_sections[i - models];
    return s->path ? s : NULL;
}

static bk_status find_section(const char *path, const bk_section **out)
{
    const char *names[NAMES + 1] = {0};
    for (int i = 0; i < NAMES && (*out = section(i)); i++) {
        if (strcmp((*out)->path, path) == 0)
            return BK_OK;
        names[i] = (*out)->path;
    }
    const char *near = bk_nearest(path, names);
    return bk_fail(BK_USAGE, "unknown section '%s': %s%s%sbirkhoff kinds config lists them", path,
                   near ? "did you mean " : "", near ? near : "", near ? "? " : "");
}

/* ---- text ---- */

static void print_line(const kind *k)
{
    bool named = k->source && *k->source;
    printf("  %-14s  %s%s%s%s\n", k->name, k->summary, named ? " (" : "", named ? k->source : "",
           named ? ")" : "");
}

static void print_class(const class *c)
{
    kind k;
    printf("%s, chosen by %s\n", c->name, c->choice);
    for (int i = 0; c->get(i, &k); i++)
        print_line(&k);
}

static void print_kind(const class *c, const kind *k)
{
    bool named = k->source && *k->source;
    printf("%s.%s: %s%s%s%s\n\n", c->name, k->name, k->summary, named ? " (" : "",
           named ? k->source : "", named ? ")" : "");
    bk_options_print(stdout, k->options);
    if (c->section)
        printf("\nbirkhoff kinds config.%s shows the keys that every %s has.\n", c->section,
               c->name);
}

static bool kinds_have_keys(const char *name)
{
    const class *c = find_class(name, strlen(name));
    kind k;
    for (int i = 0; c && c->get(i, &k); i++)
        if (k.options && k.options->name)
            return true;
    return false;
}

static void print_section(const bk_section *s)
{
    printf("%s\n", s->path);
    bk_options_print(stdout, s->options);
    if (s->kinds && kinds_have_keys(s->kinds))
        printf("  and the keys of its kind: birkhoff kinds %s\n", s->kinds);
}

static void print_sections(void)
{
    for (int i = 0; section(i); i++) {
        printf("%s", i > 0 ? "\n" : "");
        print_section(section(i));
    }
}

static void print_all(void)
{
    for (int i = 0; i < CLASSES; i++) {
        print_class(&classes[i]);
        printf("\n");
    }
    printf(
        "birkhoff kinds CLASS.KIND shows the keys of one.\n"
        "birkhoff kinds config shows every section of the configuration, config.SECTION one:\n ");
    for (int i = 0; section(i); i++)
        printf(" %s", section(i)->path);
    printf("\n");
}

/* ---- JSON ---- */

static void json_kind(bk_json *j, const kind *k)
{
    bk_json_open(j, NULL);
    bk_json_text(j, "name", k->name);
    bk_json_text(j, "summary", k->summary);
    bk_json_text(j, "source", k->source && *k->source ? k->source : NULL);
    bk_options_json(j, "options", k->options);
    bk_json_close(j);
}

static void json_class(bk_json *j, const class *c)
{
    kind k;
    bk_json_open(j, NULL);
    bk_json_text(j, "class", c->name);
    bk_json_text(j, "section", c->section);
    bk_json_open_list(j, "kinds");
    for (int i = 0; c->get(i, &k); i++)
        json_kind(j, &k);
    bk_json_close_list(j);
    bk_json_close(j);
}

static void json_section(bk_json *j, const bk_section *s)
{
    bk_json_open(j, NULL);
    bk_json_text(j, "section", s->path);
    bk_options_json(j, "options", s->options);
    bk_json_text(j, "kinds", s->kinds);
    bk_json_close(j);
}

static void json_sections(bk_json *j, const char *key)
{
    bk_json_open_list(j, key);
    for (int i = 0; section(i); i++)
        json_section(j, section(i));
    bk_json_close_list(j);
}

static void json_all(bk_json *j)
{
    bk_json_open(j, NULL);
    bk_json_open_list(j, "classes");
    for (int i = 0; i < CLASSES; i++)
        json_class(j, &classes[i]);
    bk_json_close_list(j);
    json_sections(j, config);
    bk_json_close(j);
}

/* ---- the command ---- */

static bk_status show_sections(const char *path, bk_json *j)
{
    const bk_section *s = NULL;
    if (path)
        BK_TRY(find_section(path, &s));
    if (j && s)
        json_section(j, s);
    else if (j)
        json_sections(j, NULL);
    else if (s)
        print_section(s);
    else
        print_sections();
    return BK_OK;
}

static bk_status show_class(const class *c, const char *name, bk_json *j)
{
    kind k;
    if (name)
        BK_TRY(find_kind(c, name, &k));
    if (j && name)
        json_kind(j, &k);
    else if (j)
        json_class(j, c);
    else if (name)
        print_kind(c, &k);
    else
        print_class(c);
    return BK_OK;
}

/* "CLASS" or "CLASS.KIND" */
static bk_status show(bk_arena *arena, const char *what, bk_json *j)
{
    size_t length = strcspn(what, ".");
    const char *name = what[length] ? what + length + 1 : NULL;
    if (strncmp(what, config, length) == 0 && length == strlen(config))
        return show_sections(name, j);
    const class *c = find_class(what, length);
    return c ? show_class(c, name, j)
             : unknown_class(bk_arena_printf(arena, "%.*s", (int)length, what));
}

static void show_all(bk_json *j)
{
    if (j)
        json_all(j);
    else
        print_all();
}

static bk_status run(bk_context *context)
{
    bk_json document = {.file = stdout}, *j = context->json ? &document : NULL;
    if (context->argc > 1)
        return bk_fail(BK_USAGE,
                       "kinds takes one class or class.kind (%d given): birkhoff help "
                       "kinds",
                       context->argc);
    if (context->argc == 1)
        BK_TRY(show(context->arena, context->argv[0], j));
    else
        show_all(j);
    if (j)
        bk_json_end(j);
    return BK_OK;
}

const bk_command bk_command_kinds = {
    .name = "kinds",
    .summary = "the plug-ins, and every key of the configuration",
    .usage = "kinds [CLASS[.KIND]] [--json]",
    .help = "kinds              all classes and kinds\n"
            "kinds router       one class\n"
            "kinds router.ssr   the keys of one kind: type, default, range, meaning\n"
            "kinds config       the keys of every section of the configuration\n"
            "kinds config.run   the keys of one section\n",
    .local = true,
    .run = run,
};
