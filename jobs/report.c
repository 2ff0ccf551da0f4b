/* birkhoff report: the figures of a run, over its steps and over its depth, or the load of its
 * experts over its steps, as one SVG. */
#include "core/option.h"
#include "io/files.h"
#include "io/yaml.h"
#include "jobs/heat.h"
#include "jobs/options.h"
#include "jobs/plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Over steps: a field of the lines, or one of each layer's probe; over the layers: of the first and
 * the last probe. */
enum {
    LOSS,
    ACCURACY,
    STEP_FIGURES,
    DEPTH_FIGURES = STEP_FIGURES + 6,
    EIGENVALUES = DEPTH_FIGURES + 4,
    PANELS
};

static const char steps[] = "step", layers[] = "layer";

static const bk_panel panels[PANELS] = {
    [LOSS] = {.title = "loss", .axis = steps},
    [ACCURACY] = {.title = "accuracy", .axis = steps},
    [STEP_FIGURES] = {.title = "distance to the doubly stochastic matrices", .axis = steps},
    {.title = "entropy of attention rows, nats", .axis = steps},
    {.title = "largest |row sum - 1|", .axis = steps, .logarithmic = true},
    {.title = "largest |column sum - 1|", .axis = steps, .logarithmic = true},
    {.title = "effective rank of the attention matrix", .axis = steps},
    {.title = "effective rank of the product up to a layer", .axis = steps},
    [DEPTH_FIGURES] = {.title = "distance to the doubly stochastic matrices", .axis = layers},
    {.title = "entropy of attention rows, nats", .axis = layers},
    {.title = "effective rank of the attention matrix", .axis = layers},
    {.title = "effective rank of the product up to a layer", .axis = layers},
    [EIGENVALUES] = {.title = "moduli of the eigenvalues, last evaluation",
                     .axis = "number",
                     .logarithmic = true},
};

/* The fields of jobs/probe.h behind the panels. */
static const char *const step_field[] = {"birkhoff_distance", "entropy",        "row_error",
                                         "column_error",      "effective_rank", "product_rank"};
static const char *const depth_field[] = {"birkhoff_distance", "entropy", "effective_rank",
                                          "product_rank"};

typedef struct report_config {
    int figure;
} report_config;

enum { CURVES, LOAD };

static const bk_option options[] = {
    BK_OPTION_CHOICE(report_config, figure, CURVES, "curves|load",
                     "curves of all figures, or each layer's load of its experts over the steps"),
    BK_OPTION_END,
};

enum { MAPS = 256 };

typedef struct report {
    bk_arena *arena;
    bk_panel *panel;
    const bk_value *first, *last; /* lines that hold probes */
    bk_heat *map;                 /* [MAPS] */
    int maps;
} report;

/* ---- the lines ---- */

/* NaN: absent or null. */
static double number(const bk_value *map, const char *key)
{
    const bk_value *v = bk_value_get(map, key);
    double value;
    return v && v->kind == BK_SCALAR && bk_parse_f64(v->text, &value) ? value : NAN;
}

static void add_probe_of_step(report *r, const bk_value *line)
{
    r->first = r->first ? r->first : line;
    r->last = line;
    for (const bk_value *l = bk_value_get(line, "probe")->child; l; l = l->next) {
        const char *name = bk_arena_printf(r->arena, "layer %.0f", number(l, layers));
        for (int i = 0; i < DEPTH_FIGURES - STEP_FIGURES; i++)
            bk_panel_add(r->arena, &r->panel[STEP_FIGURES + i], name, number(line, steps),
                         number(l, step_field[i]));
    }
}

static int64_t entries(const bk_value *list)
{
    int64_t count = 0;
    for (const bk_value *v = list ? list->child : NULL; v; v = v->next)
        count++;
    return count;
}

/* The map of a layer, made when it is new; NULL behind the last that there is room for, and for
 * another number of experts than before. */
static bk_heat *map_of(report *r, int64_t layer, int64_t experts)
{
    int i = 0;
    while (i < r->maps && r->map[i].layer != layer)
        i++;
    if (i == MAPS || (i < r->maps && r->map[i].experts != experts))
        return NULL;
    if (i == r->maps)
        r->map[r->maps++] = (bk_heat){.layer = layer, .experts = experts};
    return &r->map[i];
}

static void add_loads(report *r, const bk_value *line)
{
    for (const bk_value *l = bk_value_get(line, "moe")->child; l; l = l->next) {
        const bk_value *load = bk_value_get(l, "load");
        int64_t experts = entries(load), place = 0;
        bk_heat *map = experts > 0 ? map_of(r, (int64_t)number(l, layers), experts) : NULL;
        double *share = BK_NEW(r->arena, double, experts);
        for (const bk_value *v = load ? load->child : NULL; v; v = v->next, place++)
            if (!bk_parse_f64(v->text, &share[place]))
                share[place] = NAN;
        if (map)
            bk_heat_add(r->arena, map, number(line, steps), share);
    }
}

static void add_line(report *r, const bk_value *line)
{
    const bk_value *split = bk_value_get(line, "split");
    const char *name = split && split->text ? split->text : "";
    bk_panel_add(r->arena, &r->panel[LOSS], name, number(line, steps), number(line, "loss"));
    bk_panel_add(r->arena, &r->panel[ACCURACY], name, number(line, steps),
                 number(line, "accuracy"));
    if (bk_value_get(line, "probe"))
        add_probe_of_step(r, line);
    if (bk_value_get(line, "moe"))
        add_loads(r, line);
}

/* JSON is YAML.  A last line without an end is being written. */
static bk_status read_lines(report *r, const char *path)
{
    char *text;
    size_t length;
    BK_TRY(bk_read_file(r->arena, path, &text, &length));
    for (char *at = text, *end; (end = strchr(at, '\n')); at = end + 1) {
        bk_value *line;
        bk_status status = bk_yaml_parse(r->arena, path, at, (size_t)(end - at), &line);
        if (status != BK_OK || line->kind != BK_MAP)
            return bk_fail(BK_INPUT, "a line is no JSON object (%s: byte %lld): mend the file",
                           path, (long long)(at - text));
        add_line(r, line);
    }
    return r->panel[LOSS].count > 0
               ? BK_OK
               : bk_fail(BK_INPUT, "there is nothing to draw yet (%s): train", path);
}

/* ---- over the depth ---- */

static void add_depth(report *r, const bk_value *line)
{
    const char *name = bk_arena_printf(r->arena, "step %.0f", number(line, steps));
    for (const bk_value *l = bk_value_get(line, "probe")->child; l; l = l->next)
        for (int i = 0; i < EIGENVALUES - DEPTH_FIGURES; i++)
            bk_panel_add(r->arena, &r->panel[DEPTH_FIGURES + i], name, number(l, layers),
                         number(l, depth_field[i]));
}

static void add_eigenvalues(report *r)
{
    for (const bk_value *l = bk_value_get(r->last, "probe")->child; l; l = l->next) {
        const char *name = bk_arena_printf(r->arena, "layer %.0f", number(l, layers));
        const bk_value *list = bk_value_get(l, "eigenvalues");
        int place = 1;
        double value;
        for (const bk_value *v = list ? list->child : NULL; v; v = v->next, place++)
            if (bk_parse_f64(v->text, &value))
                bk_panel_add(r->arena, &r->panel[EIGENVALUES], name, place, fmax(value, 1e-6));
    }
}

static void add_depths(report *r)
{
    if (!r->last)
        return;
    add_depth(r, r->first);
    if (r->last != r->first)
        add_depth(r, r->last);
    add_eigenvalues(r);
}

/* ---- the command ---- */

static bk_status draw(const report *r, int figure, const char *title, const char *path)
{
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    if (!stream)
        bk_fatal("out of memory: report");
    if (figure == LOAD)
        bk_heat_write(stream, title, r->map, r->maps);
    else
        bk_plot_write(stream, title, r->panel, PANELS);
    fclose(stream);
    bk_status status = bk_write_text(path, text);
    free(text);
    return status;
}

static bk_status run(bk_context *context)
{
    report_config config;
    if (context->argc != 2)
        return bk_fail(BK_USAGE,
                       "report takes a run directory and an output (%d arguments given): birkhoff "
                       "report RUN_DIR OUT.svg",
                       context->argc);
    BK_TRY(bk_options_from_context(context, options, "report", &config));
    bk_arena *arena = context->arena;
    report r = {.arena = arena,
                .panel = BK_NEW(arena, bk_panel, PANELS),
                .map = BK_ZNEW(arena, bk_heat, MAPS)};
    memcpy(r.panel, panels, sizeof panels);
    const char *lines = bk_arena_printf(arena, "%s/metrics.jsonl", context->argv[0]);
    BK_TRY(read_lines(&r, lines));
    if (config.figure == LOAD && r.maps == 0)
        return bk_fail(BK_INPUT,
                       "no line holds the load of experts (%s): train a model with "
                       "model.moe",
                       lines);
    add_depths(&r);
    return draw(&r, config.figure, context->argv[0], context->argv[1]);
}

static void print_keys(void)
{
    bk_options_print(stdout, options);
}

const bk_command bk_command_report = {
    .name = "report",
    .summary = "the figures of a run as an SVG",
    .usage = "report RUN_DIR OUT.svg [key=value ...]",
    .help = "Draws loss and accuracy over the steps and, where log.probe was set, the figures of "
            "the attention\n"
            "matrices over the steps and over the layers; with figure=load the share of the tokens "
            "that each\n"
            "expert of each layer got in the steps that have a line.\n",
    .print_keys = print_keys,
    .local = true,
    .run = run,
};
