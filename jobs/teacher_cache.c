/* The file of a teacher's logits: whether it fits, reading it, writing it. */
#include "jobs/teacher.h"

#include "core/log.h"
#include "dist/agree.h"
#include "dist/collective.h"
#include "dist/watchdog.h"
#include "jobs/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

size_t bk_teacher_keep = (size_t)256 << 20;

/* ---- which rows ---- */

/* Samples of the split, each once, in the order of the data set: its rows then follow each other.
 */
static int by_number(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static const bk_split *in_order(bk_arena *arena, const bk_split *split)
{
    bk_split *out = BK_NEW(arena, bk_split, 1);
    int64_t *index = BK_NEW(arena, int64_t, split->count), count = 0;
    if (split->count > 0)
        memcpy(index, split->index, (size_t)split->count * sizeof *index);
    qsort(index, (size_t)split->count, sizeof *index, by_number);
    for (int64_t i = 0; i < split->count; i++)
        if (i == 0 || index[i] != index[count - 1])
            index[count++] = index[i];
    *out = *split;
    out->index = index;
    out->count = count;
    return out;
}

static const int64_t *offsets_of(const bk_job *job)
{
    const bk_dataset *d = job->train;
    int64_t *at = BK_ZNEW(job->arena, int64_t, d->samples + 1);
    for (int64_t i = 0; i < job->train_split->count; i++) {
        int64_t sample = job->train_split->index[i];
        at[sample + 1] = bk_sampler_sample_rows(job->train_sampler, sample);
    }
    for (int64_t i = 0; i < d->samples; i++)
        at[i + 1] += at[i];
    return at;
}

bk_status bk_teacher_cache_plan(const bk_job *job, const char *path, bk_teacher_file *out)
{
    const bk_config *c = job->config;
    const int64_t *offsets = offsets_of(job);
    *out = (bk_teacher_file){.path = path,
                             .teacher = job->teacher->payload,
                             .data = job->train->digest,
                             .split = job->train_split->name,
                             .length = bk_job_window(job),
                             .max_length = c->data.max_length,
                             .samples = job->train->samples,
                             .rows = offsets[job->train->samples],
                             .offsets = offsets};
    return bk_teacher_form_choose(c, bk_model_outputs(&job->data), false,
                                  c->distill.cache_dtype == BK_PRECISION_BF16, &out->form);
}

int64_t bk_teacher_cache_bytes(const bk_teacher_file *f)
{
    size_t bytes[BK_TEACHER_PARTS];
    return f->rows * (int64_t)bk_teacher_row_bytes(&f->form, bytes) +
           (f->samples + 1) * (int64_t)sizeof *f->offsets;
}

/* ---- does a file that is there fit? ---- */

static bk_status refuse(const bk_teacher_file *f, const char *what, const char *there,
                        const char *here)
{
    return bk_fail(BK_INPUT,
                   "the file of the teacher's logits is of another %s: %.12s there, %.12s here "
                   "(%s): remove it, or name another with distill.cache",
                   what, there, here, f->path);
}

static bk_status refuse_number(const bk_teacher_file *f, const char *what, int64_t there,
                               int64_t here)
{
    char a[24], b[24];
    snprintf(a, sizeof a, "%lld", (long long)there);
    snprintf(b, sizeof b, "%lld", (long long)here);
    return refuse(f, what, a, b);
}

static bk_status check_texts(const bk_teacher_file *f, const bk_teacher_file *wanted)
{
    const struct {
        const char *what, *there, *here;
    } row[] = {{"teacher (distill.teacher)", f->teacher, wanted->teacher},
               {"data set (data.train)", f->data, wanted->data},
               {"split (data.split)", f->split, wanted->split}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        if (strcmp(row[i].there, row[i].here) != 0)
            return refuse(f, row[i].what, row[i].there, row[i].here);
    return BK_OK;
}

static bk_status check_numbers(const bk_teacher_file *f, const bk_teacher_file *wanted)
{
    if (f->form.vocabulary != wanted->form.vocabulary)
        return refuse_number(f, "vocabulary", f->form.vocabulary, wanted->form.vocabulary);
    if (f->length >= 0 && f->length != wanted->length)
        return refuse_number(f, "data.length", f->length, wanted->length);
    if (f->max_length >= 0 && f->max_length != wanted->max_length)
        return refuse_number(f, "data.max_length", f->max_length, wanted->max_length);
    if (f->samples != wanted->samples)
        return refuse_number(f, "number of samples", f->samples, wanted->samples);
    for (int64_t i = 0; i <= f->samples; i++)
        if (f->offsets[i] != wanted->offsets[i])
            return refuse_number(f, "number of rows", f->offsets[i], wanted->offsets[i]);
    return BK_OK;
}

/* A form that this configuration would not write is refused (top_k of all classes is dense). */
static bk_status check_form(const bk_config *c, const bk_teacher_file *f,
                            const bk_teacher_file *wanted)
{
    bool top = f->form.top_k > 0;
    if (c->distill.cache_form != BK_FORM_AUTO && top != (wanted->form.top_k > 0))
        return refuse(f, "form (distill.cache_form)", top ? "top_k" : "dense",
                      top ? "dense" : "top_k");
    return bk_teacher_form_serves(c, &f->form, f->path);
}

static bk_status check(const bk_job *job, const bk_teacher_file *f)
{
    bk_teacher_file wanted;
    BK_TRY(bk_teacher_cache_plan(job, f->path, &wanted));
    BK_TRY(check_texts(f, &wanted));
    BK_TRY(check_numbers(f, &wanted));
    return check_form(job->config, f, &wanted);
}

bk_status bk_teacher_cache_open(bk_job *job)
{
    bk_teacher *t = job->teacher;
    bk_teacher_file *f = BK_ZNEW(job->arena, bk_teacher_file, 1);
    BK_TRY(bk_teacher_file_open(job->arena, job->config->distill.cache, bk_teacher_keep, f));
    t->file = f;
    t->form = f->form;
    return check(job, f);
}

/* ---- reading ---- */

void bk_teacher_cache_teach(bk_job *job, int64_t batch, bk_bundle *bundle)
{
    bk_teacher *t = job->teacher;
    const bk_teacher_file *f = t->file;
    bk_arena *arena = job->tape.arena;
    int64_t samples = bk_lanes_samples(&job->tape.lanes);
    int64_t each = bk_sampler_rows(job->train_sampler, batch);
    double begun = bk_seconds();
    bk_row_place *place = BK_NEW(arena, bk_row_place, samples);
    bk_teacher_rows rows = bk_teacher_rows_new(arena, &t->form, samples * each);
    bk_sampler_places(job->train_sampler, batch, &job->tape.lanes, place);
    for (int64_t i = 0; i < samples; i++) {
        int64_t first = f->offsets[place[i].sample] + place[i].first;
        bk_teacher_rows to = bk_teacher_rows_at(&t->form, rows, i * each);
        bk_teacher_rows_clear(&t->form, bk_teacher_rows_at(&t->form, to, place[i].count),
                              each - place[i].count);
        bk_status status = bk_teacher_file_read(f, first, place[i].count, to);
        if (status != BK_OK)
            job->tape.status = status;
    }
    bk_teacher_hand(arena, &t->form, samples * each, rows, bundle);
    t->waited += bk_seconds() - begun;
}

/* ---- writing ---- */

/* Files that are gathered in memory are made in the order of the first epoch, batch by batch, so
 * that each row has the bits that a colocated teacher gives it then, whatever else stands in its
 * batch.  The others are made from front to back. */
typedef struct writer {
    bk_job *job;
    bk_teacher_file file;
    const bk_sampler *sampler;
    bk_arena *arena; /* of one batch */
} writer;

static const bk_sampler *sampler_for(const bk_job *job, const bk_teacher_file *f)
{
    const bk_config *c = job->config;
    bk_sampler_options o = {.batch = job->lanes.batch,
                            .length = bk_job_window(job),
                            .max_length = c->data.max_length,
                            .seed = (uint64_t)c->run.seed};
    if (bk_teacher_rows_fit(&f->form, f->rows, bk_teacher_keep))
        return job->train_sampler;
    return bk_sampler_new(job->arena, job->train, in_order(job->arena, job->train_split), &o);
}

/* Rows in the file, and as many packed rows. */
typedef struct run {
    int64_t first, count;
} run;

typedef struct packed {
    int64_t runs, count; /* runs, and rows of all of them */
    run *run;
    bk_teacher_rows rows;
} packed;

static void add_run(packed *p, int64_t first, int64_t count)
{
    run *last = p->runs > 0 ? &p->run[p->runs - 1] : NULL;
    if (last && last->first + last->count == first)
        last->count += count;
    else
        p->run[p->runs++] = (run){first, count};
    p->count += count;
}

/* The real rows of the own samples; a training's order runs on behind the epoch. */
static packed pack(writer *w, int64_t batch, const bk_tensor *logits)
{
    const bk_teacher_form *form = &w->file.form;
    const bk_lanes *lanes = &w->job->lanes;
    int64_t samples = bk_lanes_samples(lanes), each = bk_sampler_rows(w->sampler, batch);
    int64_t left =
        bk_sampler_samples(w->sampler) - batch * lanes->batch - bk_lanes_first_sample(lanes);
    bk_row_place *place = BK_NEW(w->arena, bk_row_place, samples);
    packed out = {.run = BK_NEW(w->arena, run, samples),
                  .rows = bk_teacher_rows_new(w->arena, form, samples * each)};
    bk_sampler_places(w->sampler, batch, lanes, place);
    for (int64_t i = 0; i < samples && i < left; i++) {
        bk_teacher_encode(form, place[i].count, bk_f32(logits) + i * each * form->vocabulary,
                          bk_teacher_rows_at(form, out.rows, out.count));
        add_run(&out, w->file.offsets[place[i].sample] + place[i].first, place[i].count);
    }
    return out;
}

static packed run_batch(writer *w, int64_t batch)
{
    bk_job *job = w->job;
    bk_bundle bundle = {0};
    bk_arena_reset(w->arena);
    bk_tape_begin(&job->tape);
    bk_sampler_batch(w->sampler, batch, &job->lanes, w->arena, &bundle);
    return pack(w, batch, bk_teacher_forward(job, &job->lanes, &bundle));
}

static void send_rows(const bk_comm *comm, const bk_teacher_form *form, const packed *p)
{
    size_t bytes[BK_TEACHER_PARTS];
    const int64_t head[2] = {p->runs, p->count};
    bk_teacher_row_bytes(form, bytes);
    bk_send_bytes(comm, 0, 0, head, sizeof head);
    bk_send_bytes(comm, 0, 0, p->run, p->runs * (int64_t)sizeof *p->run);
    for (int i = 0; i < BK_TEACHER_PARTS; i++)
        bk_send_bytes(comm, 0, 0, p->rows.part[i], p->count * (int64_t)bytes[i]);
}

static packed receive_rows(writer *w, const bk_comm *comm, int from)
{
    size_t bytes[BK_TEACHER_PARTS];
    int64_t head[2];
    bk_receive_bytes(comm, from, 0, head, sizeof head);
    packed p = {head[0], head[1], BK_NEW(w->arena, run, head[0]),
                bk_teacher_rows_new(w->arena, &w->file.form, head[1])};
    bk_teacher_row_bytes(&w->file.form, bytes);
    bk_receive_bytes(comm, from, 0, p.run, p.runs * (int64_t)sizeof *p.run);
    for (int i = 0; i < BK_TEACHER_PARTS; i++)
        bk_receive_bytes(comm, from, 0, p.rows.part[i], p.count * (int64_t)bytes[i]);
    return p;
}

static bk_status write_rows(writer *w, const packed *p)
{
    bk_teacher_rows rows = p->rows;
    for (int64_t i = 0; i < p->runs; i++) {
        BK_TRY(bk_teacher_file_write(&w->file, p->run[i].first, p->run[i].count, rows));
        rows = bk_teacher_rows_at(&w->file.form, rows, p->run[i].count);
    }
    return BK_OK;
}

/* Rank 0 takes the rows of all, whether or not it could write those before. */
static bk_status collect(writer *w, const packed *own)
{
    const bk_comm *comm = w->job->world->data;
    if (bk_comm_rank(comm) != 0) {
        send_rows(comm, &w->file.form, own);
        return BK_OK;
    }
    bk_status status = write_rows(w, own);
    for (int r = 1; r < bk_comm_size(comm); r++) {
        packed p = receive_rows(w, comm, r);
        if (status == BK_OK)
            status = write_rows(w, &p);
    }
    return status;
}

static bk_status stop(const writer *w, int64_t batch, int64_t batches)
{
    if (bk_job_stop_asked(w->job) == BK_GO_ON)
        return BK_OK;
    return bk_fail(BK_STOPPED,
                   "stopped after %lld of %lld batches of the teacher's logits (%s): start it "
                   "again, from the first one",
                   (long long)batch, (long long)batches, w->file.path);
}

static bk_status write_batches(writer *w)
{
    int64_t batches = bk_sampler_batches(w->sampler), every = batches / 10 + 1;
    bk_progress progress = bk_progress_start(0, batches);
    bk_status status = BK_OK;
    for (int64_t i = 0; i < batches && status == BK_OK; i++) {
        bk_watchdog_step(i + 1);
        packed own = run_batch(w, i);
        bk_status taken = collect(w, &own), passed = w->job->tape.status;
        status = bk_agree(w->job->world->ctl, passed != BK_OK ? passed : taken);
        bk_progress_show(&progress, i + 1, (i + 1) % every == 0 || i + 1 == batches,
                         "of the teacher's logits");
        if (status == BK_OK && i + 1 < batches)
            status = stop(w, i + 1, batches);
    }
    bk_progress_break(&progress);
    return status;
}

static bk_status create(writer *w)
{
    const bk_job *job = w->job;
    BK_TRY(bk_teacher_cache_plan(job, w->file.path, &w->file));
    return job->world->rank == 0 ? bk_teacher_file_create(job->arena, bk_teacher_keep, &w->file)
                                 : BK_OK;
}

static void note(const writer *w)
{
    char form[64];
    bk_note("writing the teacher's logits of split %s, %lld rows, %s, %.1f MB (%s)", w->file.split,
            (long long)w->file.rows, bk_teacher_form_text(&w->file.form, form),
            (double)bk_teacher_cache_bytes(&w->file) / 1e6, w->file.path);
}

static bk_status end(writer *w, bk_status status)
{
    const bk_job *job = w->job;
    if (job->world->rank != 0)
        return bk_agree(job->world->ctl, BK_OK);
    if (status != BK_OK)
        bk_teacher_file_drop(&w->file);
    return bk_agree(job->world->ctl, status == BK_OK ? bk_teacher_file_commit(&w->file) : BK_OK);
}

bk_status bk_teacher_cache_write(bk_job *job, const char *path)
{
    writer w = {.job = job, .file = {.path = path}};
    BK_TRY(bk_agree(job->world->ctl, create(&w)));
    note(&w);
    w.sampler = sampler_for(job, &w.file);
    w.arena = bk_arena_new("teacher's rows");
    bk_status status = write_batches(&w);
    bk_arena_free(w.arena);
    bk_status ended = end(&w, status);
    return status != BK_OK ? status : ended;
}
