/* test: labels=unit timeout=60 */
/* The configuration of a run: read, refused with file and line, written so that it reads back. */
#include "tests/support/check.h"

#include "io/yaml.h"
#include "jobs/config.h"
#include "models/model.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char file[] = "runs/a.yaml";

static bk_status read_text(bk_arena *arena, const char *text, bk_config **out)
{
    bk_value *root;
    BK_TRY(bk_yaml_parse(arena, file, text, strlen(text), &root));
    return bk_config_read(arena, root, out);
}

/* The whole of it: the model's section, too. */
static bk_status read_all(bk_arena *arena, const char *text, bk_config **config, bk_model **model)
{
    static const bk_world world = {.size = 1, .nodes = 1, .expert = 1};
    bool language = strstr(text, "decoder") != NULL;
    bk_model_data data = {.vocabulary = 16, .classes = language ? 0 : 10, .max_length = 8};
    BK_TRY(read_text(arena, text, config));
    return bk_model_new(arena, bk_value_get((*config)->root, "model"), &data, &world, model);
}

static const char least[] = "run: {dir: x}\ndata: {train: a.h5}\n";

static const char everything[] =
    "run:\n"
    "  dir: 'with \"quotes\" and \\ and: colon'\n"
    "  seed: 9007199254740992\n"
    "  steps: 1e6\n"
    "  time_limit: 3600.25\n"
    "data: {train: /data/a.h5, eval: b.h5, split: \"tab\\there\", batch: 8}\n"
    "model:\n"
    "  kind: encoder\n"
    "  layers: 2\n"
    "  width: 16\n"
    "  heads: 2\n"
    "  dropout: 0.1\n"
    "  norm_epsilon: 1.0e-6\n"
    "  attention: [{kind: softmax}, {kind: softmax, dropout: 0.25}]\n"
    "  moe: {every: 2, experts: 4, k: 1, aux: switch, router: {kind: ssr, probability: 0.3}}\n"
    "distill: {teacher: ../teacher, placement: cached, cache: logits.h5}\n"
    "loss:\n"
    "  - {kind: cross_entropy, weight: 0.2}\n"
    "  - {kind: kl, weight: 0.8, temperature: 2}\n"
    "  - {kind: kl, weight: 0.1, temperature: 4}\n"
    "  - {kind: sinkd, weight: 0.8, temperature: 2, epsilon: 0.1, iterations: 20}\n"
    "optim: {kind: sgd, lr: 0.1, momentum: 0.5}\n"
    "schedule: {kind: linear, warmup: 7}\n"
    "parallel: {lanes: 4, bucket_mb: 0.5, overlap: false}\n"
    "checkpoint: {every: 0, strict: true}\n"
    "log: {tensorboard: true}\n";

static void reads_everything(void **state)
{
    (void)state;
    bk_arena *arena = bk_arena_new("test");
    bk_config *c;
    bk_model *model;
    assert_int_equal(read_all(arena, everything, &c, &model), BK_OK);
    assert_true(c->run.seed == 9007199254740992 && c->run.steps == 1000000);
    assert_true(c->run.time_limit == 3600.25 && c->parallel.lanes == 4 && !c->parallel.overlap);
    assert_string_equal(c->data.split, "tab\there");
    assert_int_equal(c->losses, 4);
    assert_string_equal(c->loss[3].kind->name, "sinkd");
    assert_true(c->loss[1].weight == 0.8);
    assert_string_equal(c->optim.kind->name, "sgd");
    assert_string_equal(c->schedule.kind->name, "linear");
    assert_true(c->has_distill && c->checkpoint.strict && c->log.tensorboard);
    bk_arena_free(arena);
}

static void defaults(void **state)
{
    (void)state;
    bk_arena *arena = bk_arena_new("test");
    bk_config *c;
    assert_int_equal(read_text(arena, least, &c), BK_OK);
    assert_int_equal(c->losses, 1);
    assert_string_equal(c->loss[0].kind->name, "cross_entropy");
    assert_true(c->loss[0].weight == 1.0);
    assert_string_equal(c->optim.kind->name, "adamw");
    assert_string_equal(c->schedule.kind->name, "cosine");
    assert_int_equal(c->checkpoint.keep, 3);
    assert_null(c->data.eval);
    bk_arena_free(arena);
}

/* ---- written and read back ---- */

static void write_model(const void *model, int indent, void *stream)
{
    bk_model_write_options(model, indent, stream);
}

static char *written(const bk_config *c, const bk_model *model)
{
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    bk_config_write(c, write_model, model, stream);
    fclose(stream);
    return text;
}

static void check_reads_back(const char *source)
{
    bk_arena *arena = bk_arena_new("test");
    bk_config *c;
    bk_model *model;
    if (read_all(arena, source, &c, &model) != BK_OK)
        fail_msg("%s\n%s", bk_status_text(), source);
    char *first = written(c, model);
    if (read_all(arena, first, &c, &model) != BK_OK)
        fail_msg("%s\n%s", bk_status_text(), first);
    char *second = written(c, model);
    assert_string_equal(first, second);
    free(first);
    free(second);
    bk_arena_free(arena);
}

static void resolved_reads_back(void **state)
{
    (void)state;
    check_reads_back(least);
    check_reads_back(everything);
    check_reads_back("run: {dir: x}\ndata: {train: a.h5}\nmodel: {kind: decoder, tied: false}\n");
}

/* ---- paths ---- */

static void assert_path(const char *path, const char *tail)
{
    char here[4096], wanted[8192];
    assert_non_null(getcwd(here, sizeof here));
    snprintf(wanted, sizeof wanted, "%s/%s", here, tail);
    assert_string_equal(path, wanted);
}

/* Relative to the file that names it; from the command line, to the current directory. */
static void paths(void **state)
{
    (void)state;
    bk_arena *arena = bk_arena_new("test");
    bk_value *root;
    bk_config *c;
    assert_int_equal(bk_yaml_parse(arena, file, everything, strlen(everything), &root), BK_OK);
    assert_int_equal(bk_value_set(arena, root, "run.dir", "out/x"), BK_OK);
    assert_int_equal(bk_config_read(arena, root, &c), BK_OK);
    assert_path(c->run.dir, "out/x");
    assert_path(c->data.eval, "runs/b.h5");
    assert_path(c->distill.teacher, "runs/../teacher");
    assert_path(c->distill.cache, "runs/logits.h5");
    assert_string_equal(c->data.train, "/data/a.h5");
    const char *text = "run: {dir: x}\ndata: {train: sub/a.h5}\n";
    assert_int_equal(bk_yaml_parse(arena, "/etc/b.yaml", text, strlen(text), &root), BK_OK);
    assert_int_equal(bk_config_read(arena, root, &c), BK_OK);
    assert_string_equal(c->data.train, "/etc/sub/a.h5");
    bk_arena_free(arena);
}

/* ---- refused ---- */

#define RUN "run: {dir: x}\ndata: {train: a.h5}\n"

static const char *const refused[][2] = {
    {"", "run.dir is missing"},
    {"run: {dir: x}\n", "data.train is missing"},
    {"run: {dir: ~}\ndata: {train: a.h5}\n", "run.dir is missing"},
    {"[1, 2]", "(runs/a.yaml:1)"},
    {RUN "runn: {}\n", "unknown key runn (runs/a.yaml:3): did you mean run?"},
    {RUN "log: {intervall: 3}\n",
     "unknown key log.intervall (runs/a.yaml:3): did you mean interval?"},
    {RUN "log:\n\n  interval: x\n", "log.interval is 'x' (runs/a.yaml:5): write an integer"},
    {RUN "log: {interval: 0}\n", "log.interval=0 is out of range (runs/a.yaml:3)"},
    {RUN "log: {interval: [1]}\n", "log.interval is a list (runs/a.yaml:3)"},
    {RUN "log: {tensorboard: 1}\n", "log.tensorboard is '1' (runs/a.yaml:3): write true or false"},
    {RUN "log: {interval: '5'}\n", "log.interval is"},
    {RUN "log: [1]\n", "not a mapping (runs/a.yaml:3)"},
    {RUN "log: {interval: 1, interval: 2}\n", "'interval' is given twice (runs/a.yaml:3)"},
    {RUN "optim: {kind: adamm}\n",
     "unknown optimizer kind 'adamm' (runs/a.yaml:3): did you mean adamw?"},
    {RUN "optim: {momentum: 0.5}\n", "unknown key optim.momentum (runs/a.yaml:3)"},
    {RUN "optim: [1]\n", "(runs/a.yaml:3)"},
    {RUN "schedule: {kind: cosin}\n",
     "unknown schedule kind 'cosin' (runs/a.yaml:3): did you mean cosine?"},
    {RUN "run: {}\n", "'run' is given twice (runs/a.yaml:3)"},
    {RUN "loss: {kind: kl}\n", "section loss is not a list (runs/a.yaml:3)"},
    {RUN "loss: []\n", "section loss is not a list"},
    {RUN "loss:\n  - kl\n", "loss.0 is not a mapping (runs/a.yaml:4)"},
    {RUN "loss:\n  - {weight: 1}\n", "loss.0 has no kind (runs/a.yaml:4)"},
    {RUN "loss:\n  - {kind: kll}\n", "unknown loss kind 'kll' (runs/a.yaml:4): did you mean kl?"},
    {RUN "loss:\n  - {kind: cross_entropy, temprature: 2}\n",
     "unknown key loss.0.temprature (runs/a.yaml:4)"},
    {RUN "loss:\n  - {kind: kl}\n", "loss kl needs a teacher"},
    {RUN "distill: {teacher: t}\n", "section distill without a distillation loss"},
    {RUN "distill: {}\nloss:\n  - {kind: kl}\n", "distill.teacher is missing"},
    {RUN "distill: {teacher: t, placement: split}\nloss:\n  - {kind: kl}\n",
     "distill.placement=split without distill.teacher_ranks"},
    {RUN "distill: {teacher: t, placement: cached}\nloss:\n  - {kind: kl}\n",
     "distill.placement=cached without distill.cache"},
    {RUN "distill: {teacher: t, placement: elsewhere}\nloss:\n  - {kind: kl}\n",
     "distill.placement"},
    {RUN "parallel: {lanes: 3}\n", "parallel.lanes=3 is not a power of two"},
    {RUN "model: {kind: encodr}\n",
     "unknown model kind 'encodr' (runs/a.yaml:3): did you mean encoder?"},
    {RUN "model: {layerz: 1}\n", "unknown key model.layerz (runs/a.yaml:3): did you mean layers?"},
    {RUN "model: [1]\n", "(runs/a.yaml:3)"},
    {RUN "model: {heads: 3}\n", "model.heads=3 does not divide"},
    {RUN "model: {attention: {kind: sofmax}}\n",
     "unknown attention kind 'sofmax' (runs/a.yaml:3): did you mean softmax?"},
    {RUN "model: {attention: softmax}\n", "model.attention is"},
    {RUN "model: {layers: 2, attention: [{}]}\n", "model.attention has 1 entries for 2 layers"},
    {RUN "model: {layers: 1, attention: [{}, {}]}\n", "model.attention has 2 entries for 1 layers"},
    {RUN "model: {moe: {router: {kind: sssr}}}\n",
     "unknown router kind 'sssr' (runs/a.yaml:3): did you mean ssr?"},
    {RUN "model: {moe: {router: ssr}}\n", "(runs/a.yaml:3)"},
    {RUN "model: {moe: {experts: 2, k: 3}}\n", "model.moe.k=3 is more than model.moe.experts=2"},
    {RUN "model: {moe: {every: 9}}\n", "model.moe.every=9 leaves no block"},
    {"run: {dir: x\n", "not YAML (runs/a.yaml:"},
    {"run: &a {dir: x}\ndata: *a\n", "aliases are not read"},
};

static void refuses(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        bk_arena *arena = bk_arena_new("test");
        bk_config *c;
        bk_model *model;
        bk_status status = read_all(arena, refused[i][0], &c, &model);
        if (status != BK_USAGE || !strstr(bk_status_text(), refused[i][1]))
            fail_msg("%s--> %d %s\nwanted: %s", refused[i][0], (int)status, bk_status_text(),
                     refused[i][1]);
        bk_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_everything),
        cmocka_unit_test(defaults),
        cmocka_unit_test(resolved_reads_back),
        cmocka_unit_test(paths),
        cmocka_unit_test(refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
