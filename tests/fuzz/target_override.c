/* A command line: one argument a line.  key=value arguments of `train` lie over a configuration,
 * those of `data` fill the options of a kind. */
#include "io/data.h"
#include "io/yaml.h"
#include "jobs/arguments.h"
#include "jobs/options.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

enum { WORDS = 64 };

static const char base[] = "run: {dir: runs/x}\n"
                           "data: {train: x.h5}\n"
                           "model: {layers: 2, attention: [{kind: softmax}, {kind: softmax}], "
                           "moe: {every: 2, experts: 4, router: {kind: topk}}}\n"
                           "distill: {teacher: runs/t}\n"
                           "loss: [{kind: cross_entropy}, {kind: kl}, {kind: sinkd}]\n";

static int split(char *text, char **word)
{
    int count = 0;
    char *rest = NULL;
    word[count++] = "birkhoff";
    for (char *line = strtok_r(text, "\n", &rest); line && count < WORDS;
         line = strtok_r(NULL, "\n", &rest))
        word[count++] = line;
    return count;
}

static void train(bk_context *context)
{
    bk_value *root;
    if (!bk_fuzz_read(bk_yaml_parse(context->arena, "fuzz.yaml", base, strlen(base), &root)))
        bk_fuzz_wrong("the base is refused: %s", bk_status_text());
    for (int i = 0; i < context->overrides; i++)
        if (!bk_fuzz_read(bk_value_set(context->arena, root, context->override[i].path,
                                       context->override[i].text)))
            return;
    bk_fuzz_configuration(context->arena, root);
}

static void data_options(bk_context *context)
{
    const bk_data_kind *kind = context->argc > 0 ? bk_data_find(context->argv[0]) : NULL;
    if (!kind)
        return;
    void *config = bk_arena_zalloc(context->arena, kind->config_size + 1);
    if (bk_fuzz_read(bk_options_from_context(context, kind->options, "data", config)) &&
        kind->check)
        bk_fuzz_read(kind->check(config));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bk_arena *arena = bk_arena_new("fuzz");
    char *text = bk_arena_zalloc(arena, size + 1), *word[WORDS];
    memcpy(text, data, size);
    int count = split(text, word);
    bk_call call;
    if (bk_fuzz_read(bk_arguments_parse(arena, count, word, &call)) && call.command) {
        if (strcmp(call.command->name, "train") == 0)
            train(&call.context);
        else if (strcmp(call.command->name, "data") == 0)
            data_options(&call.context);
    }
    bk_arena_free(arena);
    return 0;
}
