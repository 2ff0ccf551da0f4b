/* birkhoff inspect: what a data set, a checkpoint, a run or a shard file holds. */
#include "io/checkpoint.h"
#include "io/dataset.h"
#include "io/files.h"
#include "io/teacher_file.h"
#include "jobs/command.h"
#include "jobs/json.h"
#include "jobs/load.h"

#include <stdio.h>
#include <string.h>

/* One named array of a file or checkpoint. */
typedef struct array {
    const char *name;
    bk_dtype dtype;
    int dims;
    int64_t shape[BK_MAX_DIMS];
} array;

static void print_array(const array *a)
{
    printf("  %-36s  %-3s  [", a->name, bk_dtype_name(a->dtype));
    for (int i = 0; i < a->dims; i++)
        printf("%s%lld", i > 0 ? ", " : "", (long long)a->shape[i]);
    printf("]\n");
}

static void json_array(bk_json *j, const array *a)
{
    bk_json_open(j, NULL);
    bk_json_text(j, "name", a->name);
    bk_json_text(j, "dtype", bk_dtype_name(a->dtype));
    bk_json_integers(j, "shape", a->dims, a->shape);
    bk_json_close(j);
}

/* A text of several lines, indented under its title. */
static void print_lines(const char *title, const char *text)
{
    if (!text || !*text)
        return;
    printf("%s\n", title);
    bk_arena *scratch = bk_arena_new("lines");
    char *at = bk_arena_strdup(scratch, text);
    bk_plain_lines(at);
    while (*at) {
        size_t length = strcspn(at, "\n");
        printf("  %.*s\n", (int)length, at);
        at += length + (at[length] == '\n');
    }
    bk_arena_free(scratch);
}

/* ---- one file ---- */

typedef struct file {
    const char *path;
    char *format, *version, *created;
    int64_t bytes;
    int arrays;
    array *array;
    bk_dataset *dataset; /* NULL: not a data set */
    bk_teacher_file *teacher;
    char *options; /* of its maker */
    int64_t seed;
    int32_t shard, shards; /* of a checkpoint */
    int64_t step;
    uint8_t complete;
} file;

static bk_status read_arrays(bk_arena *arena, bk_h5 *h, file *f)
{
    char **paths;
    BK_TRY(bk_h5_walk(h, arena, &paths));
    while (paths[f->arrays])
        f->arrays++;
    f->array = BK_ZNEW(arena, array, f->arrays);
    int kept = 0;
    for (int i = 0; i < f->arrays; i++) {
        array *a = &f->array[kept];
        a->name = paths[i];
        if (strcmp(paths[i], "/config") == 0) /* a text, no array */
            continue;
        BK_TRY(bk_h5_shape(h, a->name, &a->dtype, &a->dims, a->shape));
        kept++;
    }
    f->arrays = kept;
    return BK_OK;
}

static bk_status read_maker(bk_arena *arena, bk_h5 *h, file *f)
{
    if (bk_h5_has_attribute(h, "/", "options"))
        BK_TRY(bk_h5_attribute_text(h, "/", "options", arena, &f->options));
    if (bk_h5_has_attribute(h, "/", "seed"))
        BK_TRY(bk_h5_attribute(h, "/", "seed", BK_I64, 0, &f->seed));
    return BK_OK;
}

static bk_status read_shard(bk_h5 *h, file *f)
{
    BK_TRY(bk_h5_attribute(h, "/", "step", BK_I64, 0, &f->step));
    BK_TRY(bk_h5_attribute(h, "/", "shard", BK_I32, 0, &f->shard));
    BK_TRY(bk_h5_attribute(h, "/", "shards", BK_I32, 0, &f->shards));
    return bk_h5_attribute(h, "/", "complete", BK_U8, 0, &f->complete);
}

static bk_status read_content(bk_arena *arena, bk_h5 *h, file *f)
{
    if (!bk_h5_has_attribute(h, "/", "format"))
        return bk_fail(BK_INPUT,
                       "the file was not made by birkhoff (%s): it has no attribute format",
                       f->path);
    BK_TRY(bk_h5_attribute_text(h, "/", "format", arena, &f->format));
    BK_TRY(bk_h5_expect(h, f->format));
    BK_TRY(bk_h5_attribute_text(h, "/", "birkhoff_version", arena, &f->version));
    BK_TRY(bk_h5_attribute_text(h, "/", "created", arena, &f->created));
    BK_TRY(read_arrays(arena, h, f));
    if (strcmp(f->format, "birkhoff-checkpoint") == 0)
        return read_shard(h, f);
    return strcmp(f->format, "birkhoff-dataset") == 0 ? read_maker(arena, h, f) : BK_OK;
}

static bk_status read_teacher(bk_arena *arena, file *f)
{
    f->teacher = BK_ZNEW(arena, bk_teacher_file, 1);
    BK_TRY(bk_teacher_file_open(arena, f->path, 0, f->teacher));
    return bk_teacher_file_close(f->teacher);
}

static bk_status read_file(bk_arena *arena, file *f)
{
    bk_h5 *h;
    f->bytes = bk_file_size(f->path);
    BK_TRY(bk_h5_open(arena, f->path, &h));
    bk_status status = read_content(arena, h, f);
    const char *text = bk_arena_strdup(arena, bk_status_text());
    bk_status closed = bk_h5_close(h);
    if (status != BK_OK)
        return bk_fail(status, "%s", text);
    BK_TRY(closed);
    if (strcmp(f->format, "birkhoff-teacher") == 0)
        return read_teacher(arena, f);
    return strcmp(f->format, "birkhoff-dataset") == 0 ? bk_dataset_read(arena, f->path, &f->dataset)
                                                      : BK_OK;
}

static void print_dataset(const file *f)
{
    const bk_dataset *d = f->dataset;
    printf("task         %s\nsamples      %lld\nclasses      %lld\n", d->task,
           (long long)d->samples, (long long)d->classes);
    if (d->features)
        printf("features     %lld positions x %lld channels\n", (long long)d->positions,
               (long long)d->channels);
    else
        printf("vocabulary   %lld\nlength       at most %lld, mean %.1f\n",
               (long long)d->vocabulary, (long long)d->max_length, bk_mean_length(d));
    if (d->subwords)
        printf("subwords     sha256 %s\n", d->vocabulary_digest);
    if (d->metric)
        printf("metric       %s\n", d->metric);
    printf("seed         %lld\nsha256       %s\n", (long long)f->seed, d->digest);
    print_lines("source", d->source);
    print_lines("options", f->options);
    printf("splits\n");
    for (int i = 0; i < d->splits; i++) {
        printf("  ");
        bk_split_print(&d->split[i]);
    }
}

static void print_teacher(const bk_teacher_file *t)
{
    char form[64];
    printf("teacher      %s\ndata         %s\nsplit        %s\nrows         %lld of %lld classes, "
           "%s\n",
           t->teacher, t->data, t->split, (long long)t->rows, (long long)t->form.vocabulary,
           bk_teacher_form_text(&t->form, form));
    for (int64_t i = 0; i < t->form.temperatures; i++)
        printf("%s%g", i == 0 ? "temperatures " : ", ", t->form.temperature[i]);
    printf("%ssha256       %s\n", t->form.temperatures > 0 ? "\n" : "", t->digest);
}

static void print_file(const file *f)
{
    printf("%s\nformat       %s, birkhoff %s, created %s\nbytes        %lld\n", f->path, f->format,
           f->version, f->created, (long long)f->bytes);
    if (f->dataset)
        print_dataset(f);
    if (f->teacher)
        print_teacher(f->teacher);
    if (f->shards > 0)
        printf("step         %lld\nshard        %d of %d, %s\n", (long long)f->step, f->shard,
               f->shards, f->complete ? "complete" : "not complete");
    printf("arrays\n");
    for (int i = 0; i < f->arrays; i++)
        print_array(&f->array[i]);
}

static void json_split(bk_json *j, const bk_split *s)
{
    bk_json_open(j, NULL);
    bk_json_text(j, "name", s->name);
    bk_json_integer(j, "samples", s->count);
    bk_json_number(j, "majority", s->majority);
    bk_json_numbers(j, "ladder", s->ladder_count, s->ladder);
    bk_json_close(j);
}

static void json_dataset(bk_json *j, const file *f)
{
    const bk_dataset *d = f->dataset;
    bk_json_text(j, "task", d->task);
    bk_json_integer(j, "samples", d->samples);
    bk_json_integer(j, "classes", d->classes);
    bk_json_integer(j, "vocabulary", d->vocabulary);
    bk_json_integer(j, "positions", d->positions);
    bk_json_integer(j, "channels", d->channels);
    bk_json_integer(j, "max_length", d->max_length);
    bk_json_number(j, "mean_length", bk_mean_length(d));
    bk_json_text(j, "metric", d->metric);
    bk_json_text(j, "vocabulary_sha256", *d->vocabulary_digest ? d->vocabulary_digest : NULL);
    bk_json_integer(j, "seed", f->seed);
    bk_json_text(j, "source", d->source);
    bk_json_text(j, "options", f->options);
    bk_json_text(j, "sha256", d->digest);
    bk_json_open_list(j, "splits");
    for (int i = 0; i < d->splits; i++)
        json_split(j, &d->split[i]);
    bk_json_close_list(j);
}

static void json_teacher(bk_json *j, const bk_teacher_file *t)
{
    bk_json_text(j, "teacher", t->teacher);
    bk_json_text(j, "data", t->data);
    bk_json_text(j, "split", t->split);
    bk_json_integer(j, "rows", t->rows);
    bk_json_integer(j, "vocabulary", t->form.vocabulary);
    bk_json_integer(j, "top_k", t->form.top_k);
    bk_json_text(j, "dtype", t->form.bf16 ? "bf16" : "fp32");
    bk_json_numbers(j, "temperatures", t->form.temperatures, t->form.temperature);
    bk_json_text(j, "sha256", t->digest);
}

static void json_file(bk_json *j, const file *f)
{
    bk_json_open(j, NULL);
    bk_json_text(j, "path", f->path);
    bk_json_text(j, "format", f->format);
    bk_json_text(j, "birkhoff_version", f->version);
    bk_json_text(j, "created", f->created);
    bk_json_integer(j, "bytes", f->bytes);
    if (f->dataset)
        json_dataset(j, f);
    if (f->teacher)
        json_teacher(j, f->teacher);
    if (f->shards > 0) {
        bk_json_integer(j, "step", f->step);
        bk_json_integer(j, "shard", f->shard);
        bk_json_integer(j, "shards", f->shards);
        bk_json_bool(j, "complete", f->complete != 0);
    }
    bk_json_open_list(j, "arrays");
    for (int i = 0; i < f->arrays; i++)
        json_array(j, &f->array[i]);
    bk_json_close_list(j);
    bk_json_close(j);
}

/* ---- a checkpoint or a run ---- */

typedef struct directory {
    const char *path;
    const bk_checkpoint *checkpoint; /* the one named, or the newest valid one */
    int64_t steps, *step;            /* of a run: all it has, newest first */
} directory;

static array tensor_at(const bk_checkpoint *c, int64_t i)
{
    array a;
    bk_checkpoint_tensor(c, i, &a.name, &a.dtype, &a.dims, a.shape);
    return a;
}

/* What is no moment: the model, and what a training keeps beside it. */
static bool in_model(const char *name)
{
    return strncmp(name, "optim/", 6) != 0;
}

/* The state of a router is in the model, too, but nobody trains it. */
static bool is_parameter(const char *name)
{
    return in_model(name) && !strstr(name, "/router_");
}

static int64_t parameters(const bk_checkpoint *c)
{
    int64_t total = 0;
    for (int64_t i = 0; i < bk_checkpoint_tensors(c); i++) {
        array a = tensor_at(c, i);
        int64_t count = is_parameter(a.name);
        for (int k = 0; k < a.dims; k++)
            count *= a.shape[k];
        total += count;
    }
    return total;
}

static void print_tensors(const bk_checkpoint *c)
{
    int64_t moments = 0;
    printf("tensors\n");
    for (int64_t i = 0; i < bk_checkpoint_tensors(c); i++) {
        array a = tensor_at(c, i);
        if (in_model(a.name))
            print_array(&a);
        else
            moments++;
    }
    printf("  and %lld of the optimizer, under optim/\n", (long long)moments);
}

static void print_directory(const directory *d)
{
    const bk_run_state *s = bk_checkpoint_state(d->checkpoint);
    bk_checkpoint_files f = bk_checkpoint_describe(d->checkpoint);
    printf("%s\n", d->path);
    if (d->steps > 0) {
        printf("checkpoints ");
        for (int64_t i = d->steps - 1; i >= 0; i--)
            printf(" %lld", (long long)d->step[i]);
        printf("\nbelow: %s\n", bk_checkpoint_path(d->checkpoint));
    }
    printf("step         %lld\ncreated      %s by birkhoff %s, run %s\n", (long long)s->step,
           f.created, f.version, f.run_id);
    printf("files        %d, %lld bytes\nparameters   %lld\n", f.shards, (long long)f.bytes,
           (long long)parameters(d->checkpoint));
    printf("seen         %lld samples, %lld tokens; epoch %lld, next sample %lld\n",
           (long long)s->samples_seen, (long long)s->tokens_seen, (long long)s->epoch,
           (long long)s->cursor);
    printf("skipped      %lld updates\n", (long long)s->updates_skipped);
    printf("written by   %lld ranks, %lld lanes, seed %llu\n", (long long)s->world_size,
           (long long)s->lanes, (unsigned long long)s->seed);
    printf("data         %s\nsha256       %s of the data\n             %s of the payload\n",
           s->data_path, s->data_digest, bk_checkpoint_payload(d->checkpoint));
    if (*s->vocabulary_digest)
        printf("subwords     sha256 %s\n", s->vocabulary_digest);
    print_lines("machine", s->machine);
    print_tensors(d->checkpoint);
    print_lines("config", s->config);
}

static void json_state(bk_json *j, const bk_run_state *s)
{
    bk_json_integer(j, "step", s->step);
    bk_json_integer(j, "samples_seen", s->samples_seen);
    bk_json_integer(j, "tokens_seen", s->tokens_seen);
    bk_json_integer(j, "updates_skipped", s->updates_skipped);
    bk_json_integer(j, "epoch", s->epoch);
    bk_json_integer(j, "cursor", s->cursor);
    bk_json_integer(j, "seed", (int64_t)s->seed);
    bk_json_integer(j, "world_size", s->world_size);
    bk_json_integer(j, "lanes", s->lanes);
    bk_json_text(j, "data_path", s->data_path);
    bk_json_text(j, "data_sha256", s->data_digest);
    bk_json_text(j, "vocabulary_sha256", *s->vocabulary_digest ? s->vocabulary_digest : NULL);
    bk_json_text(j, "machine", s->machine);
    bk_json_text(j, "config", s->config);
}

static void json_directory(bk_json *j, const directory *d)
{
    const bk_checkpoint *c = d->checkpoint;
    bk_checkpoint_files f = bk_checkpoint_describe(c);
    bk_json_open(j, NULL);
    bk_json_text(j, "path", d->path);
    if (d->steps > 0)
        bk_json_integers(j, "checkpoints", d->steps, d->step);
    bk_json_text(j, "checkpoint", bk_checkpoint_path(c));
    bk_json_text(j, "format", "birkhoff-checkpoint");
    bk_json_text(j, "birkhoff_version", f.version);
    bk_json_text(j, "created", f.created);
    bk_json_text(j, "run_id", f.run_id);
    bk_json_integer(j, "shards", f.shards);
    bk_json_integer(j, "bytes", f.bytes);
    bk_json_integer(j, "parameters", parameters(c));
    bk_json_text(j, "payload_sha256", bk_checkpoint_payload(c));
    json_state(j, bk_checkpoint_state(c));
    bk_json_open_list(j, "tensors");
    for (int64_t i = 0; i < bk_checkpoint_tensors(c); i++) {
        array a = tensor_at(c, i);
        json_array(j, &a);
    }
    bk_json_close_list(j);
    bk_json_close(j);
}

/* ---- the command ---- */

static bk_status inspect_file(bk_arena *arena, const char *path, bk_json *j)
{
    file f = {.path = path};
    BK_TRY(read_file(arena, &f));
    if (j)
        json_file(j, &f);
    else
        print_file(&f);
    return BK_OK;
}

static bk_status inspect_directory(bk_arena *arena, const char *path, bk_json *j)
{
    directory d = {.path = path};
    bk_checkpoint *c;
    const char *below = bk_arena_printf(arena, "%s/checkpoints", path);
    BK_TRY(bk_checkpoint_open(NULL, arena, path, BK_CHECK_SHA256, &c));
    d.checkpoint = c;
    d.steps = bk_list_steps(arena, bk_is_directory(below) ? below : path, &d.step);
    if (j)
        json_directory(j, &d);
    else
        print_directory(&d);
    return BK_OK;
}

static bk_status run(bk_context *context)
{
    bk_json document = {.file = stdout}, *j = context->json ? &document : NULL;
    if (context->argc != 1)
        return bk_fail(BK_USAGE,
                       "inspect takes one file or directory (%d given): birkhoff inspect "
                       "FILE|DIR",
                       context->argc);
    const char *path = context->argv[0];
    if (bk_is_directory(path))
        BK_TRY(inspect_directory(context->arena, path, j));
    else
        BK_TRY(inspect_file(context->arena, path, j));
    if (j)
        bk_json_end(j);
    return BK_OK;
}

const bk_command bk_command_inspect = {
    .name = "inspect",
    .summary = "what a data set, checkpoint or run holds",
    .usage = "inspect FILE|DIR [--json]",
    .help = "FILE: a data set, a teacher's logits or a shard of a checkpoint.  DIR: a checkpoint, "
            "or a run directory, of "
            "which the newest\nvalid checkpoint is shown.\n",
    .local = true,
    .run = run,
};
