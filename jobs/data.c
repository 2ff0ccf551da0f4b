/* birkhoff data: makes or converts a data set into the one format that training reads. */
#include "io/data.h"

#include "dist/agree.h"
#include "dist/comm.h"
#include "io/files.h"
#include "jobs/load.h"
#include "jobs/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bk_status unknown_kind(const char *name)
{
    const char *names[64] = {0};
    for (int i = 0; bk_data_kinds[i] && i < 63; i++)
        names[i] = bk_data_kinds[i]->name;
    return bk_unknown_kind("data", name, NULL, names);
}

static void print_help(const bk_data_kind *kind)
{
    bool source = *kind->source;
    printf("usage: birkhoff data %s %s%sOUT.h5 [key=value ...]\n\n%s%s%s%s.\n\n", kind->name,
           kind->usage, *kind->usage ? " " : "", kind->summary, source ? " (" : "", kind->source,
           source ? ")" : "");
    bk_options_print(stdout, kind->options);
}

/* ---- summary ---- */

/* "0 ham, 1 spam": the numbers that stand in /labels. */
static void print_classes(const char *names)
{
    printf("classes     ");
    for (int i = 0; *names; i++) {
        int length = (int)strcspn(names, "\n");
        printf("%s %d %.*s", i ? "," : "", i, length, names);
        names += length + (names[length] == '\n');
    }
    printf("\n");
}

static void print_summary(const bk_dataset *d, const char *path)
{
    printf("%s  %lld samples, %s, %lld classes, ", path, (long long)d->samples, d->task,
           (long long)d->classes);
    if (d->channels > 0)
        printf("%lld positions x %lld channels\n", (long long)d->positions, (long long)d->channels);
    else
        printf("vocabulary %lld, length at most %lld, mean %.1f\n", (long long)d->vocabulary,
               (long long)d->max_length, bk_mean_length(d));
    for (int i = 0; i < d->splits; i++)
        bk_split_print(&d->split[i]);
    if (d->label_name)
        print_classes(d->label_name);
    if (d->note)
        printf("note         %s\n", d->note);
    printf("sha256       %s\n", d->digest);
}

/* ---- the command ---- */

/* The resolved options as one text, kept in the file; the seed among them. */
static char *options_text(const bk_data_kind *kind, const void *config, int64_t *seed)
{
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    if (!stream)
        bk_fatal("out of memory: options");
    bk_options_write(kind->options, config, 0, stream);
    fclose(stream);
    const char *at = strstr(text, "seed: ");
    *seed = at ? atoll(at + strlen("seed: ")) : 0;
    return text;
}

/* "images train.gz labels.gz layout=patches": what the file was made from, and how. */
static const char *source_text(const bk_context *context, const bk_data_kind *kind)
{
    const char *text = kind->name;
    for (int i = 1; context->argv[i]; i++)
        text = bk_arena_printf(context->arena, "%s %s", text, context->argv[i]);
    for (int i = 0; i < context->overrides; i++)
        text = bk_arena_printf(context->arena, "%s %s=%s", text, context->override[i].path,
                               context->override[i].text);
    return text;
}

static bk_status make(bk_context *context, const bk_data_kind *kind, const void *config,
                      const char *path)
{
    bk_data_args args = {.input = context->argv + 1,
                         .inputs = context->argc - 2,
                         .config = config,
                         .arena = context->arena};
    bk_dataset d = {.path = path, .source = source_text(context, kind)};
    int64_t seed;
    BK_TRY(bk_check_output(path));
    BK_TRY(kind->make(&args, &d));
    char *options = options_text(kind, config, &seed);
    bk_status status = bk_dataset_write(&d, path, seed, options);
    free(options);
    if (status == BK_OK)
        print_summary(&d, path);
    return status;
}

/* What rank 0 does while the others wait for its status. */
static bk_status make_alone(bk_context *context)
{
    const bk_data_kind *kind = bk_data_find(context->argv[0]);
    const char *path = context->argv[context->argc - 1];
    if (!kind)
        return unknown_kind(context->argv[0]);
    if (context->help) {
        print_help(kind);
        return BK_OK;
    }
    if (context->argc < 2)
        return bk_fail(BK_USAGE, "data %s names no output: birkhoff data %s %s%sOUT.h5", kind->name,
                       kind->name, kind->usage, *kind->usage ? " " : "");
    void *config = bk_arena_zalloc(context->arena, kind->config_size + 1);
    BK_TRY(bk_options_from_context(context, kind->options,
                                   bk_arena_printf(context->arena, "data.%s", kind->name), config));
    if (kind->check)
        BK_TRY(kind->check(config));
    context->argv[context->argc - 1] = NULL; /* the inputs end here */
    return make(context, kind, config, path);
}

static bk_status run(bk_context *context)
{
    bk_world *world;
    if (context->argc == 0)
        return bk_fail(BK_USAGE, "data names no kind: birkhoff data KIND [INPUT ...] OUT.h5");
    BK_TRY(bk_world_open(context->arena, 1, &world));
    bk_status status = bk_agree(world->ctl, world->rank == 0 ? make_alone(context) : BK_OK);
    bk_world_close(world);
    return status;
}

const bk_command bk_command_data = {
    .name = "data",
    .summary = "make or convert a data set",
    .usage = "data KIND [INPUT ...] OUT.h5 [--help] [key=value ...]",
    .help = "birkhoff kinds data lists the kinds; birkhoff data KIND --help shows the keys of "
            "one.\n",
    .run = run,
};
