#include "jobs/arguments.h"

#include "core/option.h"

#include <ctype.h>
#include <string.h>

/* ---- commands ---- */

#define COMMAND(name) extern const bk_command bk_command_##name;
#include "jobs/commands.def"
#undef COMMAND

#define COMMAND(name) &bk_command_##name,
const bk_command *const bk_commands[] = {
#include "jobs/commands.def"
    NULL};
#undef COMMAND

const bk_command *bk_command_find(const char *name)
{
    for (int i = 0; bk_commands[i]; i++)
        if (strcmp(bk_commands[i]->name, name) == 0)
            return bk_commands[i];
    return NULL;
}

bk_status bk_command_unknown(const char *name)
{
    const char *names[64] = {0};
    for (int i = 0; bk_commands[i] && i < 63; i++)
        names[i] = bk_commands[i]->name;
    const char *near = bk_nearest(name, names);
    return bk_fail(BK_USAGE, "unknown command '%s'%s%s%s: birkhoff help lists them", name,
                   near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

bool bk_command_takes(const bk_command *command, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = command->usage; (at = strstr(at, word)); at += length)
        if (!isalnum((unsigned char)at[length]) && at[length] != '-')
            return true;
    return false;
}

/* ---- options ---- */

typedef enum option_kind { GLOBAL, FLAG, WITH_VALUE } option_kind;

typedef struct option {
    const char *name;
    char letter;
    option_kind kind;
    size_t offset; /* in bk_call: bool, or const char * with a value */
} option;

static const option options[] = {
    {"--help", 'h', GLOBAL, offsetof(bk_call, context.help)},
    {"--version", 'V', GLOBAL, offsetof(bk_call, version)},
    {"--quiet", 'q', GLOBAL, offsetof(bk_call, context.quiet)},
    {"--no-color", 0, GLOBAL, offsetof(bk_call, no_color)},
    {"--json", 0, FLAG, offsetof(bk_call, context.json)},
    {"--dry-run", 0, FLAG, offsetof(bk_call, context.dry_run)},
    {"--list", 0, FLAG, offsetof(bk_call, context.list)},
    {"--in", 0, WITH_VALUE, offsetof(bk_call, context.in)},
    {"--out", 0, WITH_VALUE, offsetof(bk_call, context.out)},
};
enum { OPTIONS = sizeof options / sizeof *options };

static bool fits(const bk_command *command, const option *o)
{
    return o->kind == GLOBAL || (command && bk_command_takes(command, o->name));
}

static const option *find_option(const char *word, size_t length)
{
    for (int i = 0; i < OPTIONS; i++) {
        const option *o = &options[i];
        bool letter = length == 2 && o->letter && word[1] == o->letter;
        if (letter || (strlen(o->name) == length && memcmp(o->name, word, length) == 0))
            return o;
    }
    return NULL;
}

static bk_status unknown_option(const bk_command *command, const char *word)
{
    const char *names[OPTIONS + 1] = {0};
    int count = 0;
    for (int i = 0; i < OPTIONS; i++)
        if (fits(command, &options[i]))
            names[count++] = options[i].name + 2; /* dashes are no likeness */
    const char *near = bk_nearest(word + strspn(word, "-"), names);
    return bk_fail(BK_USAGE, "unknown option %s%s%s%s%s%s: birkhoff help%s%s shows them", word,
                   command ? " of " : "", command ? command->name : "",
                   near ? " (did you mean --" : "", near ? near : "", near ? "?)" : "",
                   command ? " " : "", command ? command->name : "");
}

/* ---- the words ---- */

typedef struct words {
    bk_arena *arena;
    int count, at;
    char **word;
    bk_call *call;
    const option *given[OPTIONS]; /* in the order of the line, checked when the command is known */
    int givens;
} words;

static bk_status take_value(words *w, const option *o, const char *equals, const char **value)
{
    if (equals)
        *value = equals + 1;
    else if (w->at < w->count)
        *value = w->word[w->at++];
    else
        return bk_fail(BK_USAGE, "%s has no value: write %s FILE", o->name, o->name);
    return BK_OK;
}

static bk_status take_option(words *w, const char *word)
{
    const char *equals = strchr(word, '=');
    const option *o = find_option(word, equals ? (size_t)(equals - word) : strlen(word));
    if (!o)
        return unknown_option(w->call->command, word);
    for (int i = 0; i < w->givens; i++)
        if (w->given[i] == o)
            return bk_fail(BK_USAGE, "%s is given twice: remove one", o->name);
    w->given[w->givens++] = o;
    char *member = (char *)w->call + o->offset;
    if (o->kind == WITH_VALUE)
        return take_value(w, o, equals, (const char **)(void *)member);
    if (equals)
        return bk_fail(BK_USAGE, "%s takes no value (%s): write %s", o->name, word, o->name);
    *(bool *)member = true;
    return BK_OK;
}

/* "optim.lr=3e-4", not "dir/a=b.h5": the key is letters, digits, dots, dashes and underscores. */
static const char *override_mark(const char *word)
{
    const char *at = word;
    while (isalnum((unsigned char)*at) || *at == '_' || *at == '.' || *at == '-')
        at++;
    return at > word && *at == '=' ? at : NULL;
}

static bk_status take_override(words *w, const char *word, const char *mark)
{
    bk_context *c = &w->call->context;
    char *path = bk_arena_strdup(w->arena, word);
    path[mark - word] = '\0';
    for (int i = 0; i < c->overrides; i++)
        if (strcmp(c->override[i].path, path) == 0)
            return bk_fail(BK_USAGE, "%s is given twice on the command line: remove one", path);
    c->override[c->overrides++] = (bk_override){.path = path, .text = mark + 1};
    return BK_OK;
}

static bk_status take_plain(words *w, const char *word)
{
    bk_call *call = w->call;
    const char *mark = override_mark(word);
    if (mark)
        return take_override(w, word, mark);
    if (call->command) {
        call->context.argv[call->context.argc++] = word;
        return BK_OK;
    }
    call->command = bk_command_find(word);
    return call->command ? BK_OK : bk_command_unknown(word);
}

/* What was given against the command's usage. */
static bk_status check_fit(const words *w)
{
    const bk_call *call = w->call;
    const bk_command *command = call->command;
    for (int i = 0; i < w->givens; i++)
        if (!fits(command, w->given[i]))
            return unknown_option(command, w->given[i]->name);
    if (call->context.overrides > 0 && (!command || !bk_command_takes(command, "key=value")))
        return bk_fail(BK_USAGE, "%s=%s is not read by %s: birkhoff help%s%s",
                       call->context.override[0].path, call->context.override[0].text,
                       command ? command->name : "birkhoff", command ? " " : "",
                       command ? command->name : "");
    if (!command && !call->version && !call->context.help)
        return bk_fail(BK_USAGE, "no command is given: birkhoff help lists them");
    return BK_OK;
}

bk_status bk_arguments_parse(bk_arena *arena, int argc, char **argv, bk_call *out)
{
    bool plain_only = false;
    words w = {.arena = arena, .count = argc, .at = 1, .word = argv, .call = out};
    *out = (bk_call){.context = {.arena = arena,
                                 .argv = BK_ZNEW(arena, const char *, argc + 1),
                                 .override = BK_ZNEW(arena, bk_override, argc + 1)}};
    while (w.at < argc) {
        const char *word = argv[w.at++];
        if (!plain_only && strcmp(word, "--") == 0)
            plain_only = true;
        else if (!plain_only && word[0] == '-' && word[1] != '\0')
            BK_TRY(take_option(&w, word));
        else
            BK_TRY(take_plain(&w, word));
    }
    return check_fit(&w);
}
