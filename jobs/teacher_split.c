/* A teacher on ranks of its own: rank 0 of the students asks for batches, up to two ahead of the
 * one that is needed, and each rank of the teacher sends each student the rows of the samples that
 * both have.  Nothing is sent that was not asked for, so the end is one more message: nothing more
 * is. */
#include "jobs/teacher.h"

#include "core/log.h"
#include "dist/collective.h"
#include "dist/messages.h"
#include "dist/signal.h"
#include "dist/watchdog.h"

#include <stdio.h>

enum { AHEAD = 2 };
enum { TAG_REQUEST, TAG_ROWS, TAG_SEEN, TAG_OUTCOME };

/* What is asked for. */
enum { TRAINING, EVALUATION, NOTHING_MORE };

/* Of a pass of the teacher, the same on all its ranks: the first one tells all students. */
typedef struct outcome {
    int64_t status;
    char text[504];
} outcome;

typedef struct request {
    int64_t subject, batch;
} request;

/* ---- who has which samples ---- */

static int students(const bk_job *job)
{
    return bk_comm_size(job->world->between) - (int)job->config->distill.teacher_ranks;
}

static int teachers(const bk_job *job)
{
    return (int)job->config->distill.teacher_ranks;
}

/* Samples of the global batch, [first, last). */
typedef struct range {
    int64_t first, last;
} range;

static range range_of(const bk_job *job, int rank, int size)
{
    bk_lanes l = bk_lanes_of_rank(job->lanes.total, job->lanes.batch, rank, size);
    int64_t first = bk_lanes_first_sample(&l);
    return (range){first, first + bk_lanes_samples(&l)};
}

static range common(range a, range b)
{
    range both = {a.first > b.first ? a.first : b.first, a.last < b.last ? a.last : b.last};
    return both.first < both.last ? both : (range){0, 0};
}

/* Rows of one batch between a student and a rank of the teacher, either way: `move` begins the
 * message of each part of the form. */
typedef struct parcel {
    const bk_job *job;
    const bk_teacher_form *form;
    bk_teacher_rows rows; /* of the own samples */
    range own;
    int64_t each; /* rows of a sample */
    bk_messages *messages;
} parcel;

typedef void move_part(bk_messages *x, int rank, void *data, int64_t bytes);

static void send_part(bk_messages *x, int rank, void *data, int64_t bytes)
{
    bk_messages_send(x, rank, TAG_ROWS, data, bytes);
}

static void receive_part(bk_messages *x, int rank, void *data, int64_t bytes)
{
    bk_messages_receive(x, rank, TAG_ROWS, data, bytes);
}

static void move_rows(const parcel *p, range theirs, int rank, move_part *move)
{
    size_t bytes[BK_TEACHER_PARTS];
    range both = common(p->own, theirs);
    bk_teacher_row_bytes(p->form, bytes);
    bk_teacher_rows at =
        bk_teacher_rows_at(p->form, p->rows, (both.first - p->own.first) * p->each);
    for (int i = 0; i < BK_TEACHER_PARTS && both.last > both.first; i++)
        move(p->messages, rank, at.part[i], (both.last - both.first) * p->each * (int64_t)bytes[i]);
}

static const bk_sampler *sampler_of(const bk_job *job, int64_t subject)
{
    return subject == EVALUATION ? job->eval_sampler : job->train_sampler;
}

/* Evaluations compare whole rows; those of a step have the form that the losses read. */
static bk_teacher_form form_of(const bk_job *job, int64_t subject)
{
    return subject == TRAINING ? job->teacher->form
                               : (bk_teacher_form){.vocabulary = bk_model_outputs(&job->data)};
}

/* ---- the students' side ---- */

/* A batch that was asked for. */
typedef struct delivery {
    bool open, taken;
    request what;
    bk_arena *arena;
    bk_teacher_form form;
    bk_teacher_rows rows; /* of this rank's samples */
    int64_t each;         /* rows of a sample */
    int64_t *seen;        /* rank 0: what each of the teacher's ranks has seen */
    outcome *outcome;
    bk_messages *messages;
} delivery;

/* Of a training and of an evaluation in its midst. */
enum { DELIVERIES = 2 * (1 + AHEAD) };

struct bk_stream {
    delivery delivery[DELIVERIES];
    bool released;
};

static bk_stream *open_stream(bk_arena *arena)
{
    bk_stream *s = BK_ZNEW(arena, bk_stream, 1);
    for (int i = 0; i < DELIVERIES; i++)
        s->delivery[i].arena = bk_arena_new("teacher's rows");
    return s;
}

bk_status bk_teacher_split_open(bk_job *job)
{
    bk_teacher *t = job->teacher;
    if (!job->teaches)
        t->stream = open_stream(job->arena);
    return bk_teacher_form_choose(job->config, bk_model_outputs(&job->data), true,
                                  job->config->run.precision == BK_PRECISION_BF16, &t->form);
}

int64_t bk_teacher_split_bytes(const bk_job *job)
{
    size_t bytes[BK_TEACHER_PARTS];
    return job->lanes.batch * bk_sampler_rows(job->train_sampler, 0) *
           (int64_t)bk_teacher_row_bytes(&job->teacher->form, bytes);
}

static delivery *find(bk_stream *s, request what)
{
    for (int i = 0; i < DELIVERIES; i++) {
        delivery *d = &s->delivery[i];
        if (d->open && d->what.subject == what.subject && d->what.batch == what.batch)
            return d;
    }
    return NULL;
}

static delivery *find_free(bk_stream *s)
{
    for (int i = 0; i < DELIVERIES; i++)
        if (!s->delivery[i].open)
            return &s->delivery[i];
    BK_ASSERT(false, "more than %d batches of a teacher under way", DELIVERIES);
}

static void tell_teachers(const bk_job *job, request what)
{
    const bk_comm *between = job->world->between;
    for (int t = 0; job->world->rank == 0 && t < teachers(job); t++)
        bk_send_bytes(between, students(job) + t, TAG_REQUEST, &what, sizeof what);
}

static void expect(bk_job *job, delivery *d)
{
    const bk_comm *between = job->world->between;
    int ranks = teachers(job), size = students(job);
    d->messages = bk_messages_new(d->arena, between, BK_TEACHER_PARTS + 1);
    d->seen = BK_ZNEW(d->arena, int64_t, ranks);
    d->outcome = BK_ZNEW(d->arena, outcome, 1);
    bk_messages_receive(d->messages, size, TAG_OUTCOME, d->outcome, sizeof *d->outcome);
    parcel p = {job,     &d->form,   d->rows, range_of(job, job->world->rank, size),
                d->each, d->messages};
    for (int t = 0; t < ranks; t++) {
        move_rows(&p, range_of(job, t, ranks), size + t, receive_part);
        if (job->world->rank == 0)
            bk_messages_receive(d->messages, size + t, TAG_SEEN, &d->seen[t], sizeof *d->seen);
    }
}

static delivery *ask(bk_job *job, request what)
{
    bk_stream *s = job->teacher->stream;
    delivery *d = find(s, what);
    if (d)
        return d;
    d = find_free(s);
    bk_arena *arena = d->arena;
    bk_arena_reset(arena);
    *d = (delivery){.open = true, .what = what, .arena = arena, .form = form_of(job, what.subject)};
    d->each = bk_sampler_rows(sampler_of(job, what.subject), what.batch);
    d->rows = bk_teacher_rows_new(arena, &d->form, bk_lanes_samples(&job->lanes) * d->each);
    expect(job, d);
    tell_teachers(job, what);
    return d;
}

/* What was taken before is needed no more. */
static void forget_others(bk_stream *s, request what)
{
    for (int i = 0; i < DELIVERIES; i++) {
        delivery *d = &s->delivery[i];
        if (d->taken && d->what.subject == what.subject && d->what.batch != what.batch)
            d->open = d->taken = false;
    }
}

static void receive(bk_job *job, delivery *d)
{
    double begun = bk_seconds();
    bk_messages_finish(d->messages);
    job->teacher->waited += bk_seconds() - begun;
    for (int t = 0; t < teachers(job); t++)
        job->teacher->seen |= d->seen[t];
    if (d->outcome->status != BK_OK)
        job->tape.status = bk_fail((bk_status)d->outcome->status, "%s", d->outcome->text);
    d->taken = true;
}

void bk_teacher_split_teach(bk_job *job, bk_lesson lesson, bk_bundle *bundle)
{
    request what = {lesson.evaluation ? EVALUATION : TRAINING, lesson.batch};
    const bk_lanes *lanes = &job->tape.lanes;
    forget_others(job->teacher->stream, what);
    delivery *d = ask(job, what);
    for (int64_t i = 1; i <= AHEAD && lesson.batch + i < lesson.batches; i++)
        ask(job, (request){what.subject, lesson.batch + i});
    receive(job, d);
    int64_t before = bk_lanes_first_sample(lanes) - bk_lanes_first_sample(&job->lanes);
    bk_teacher_hand(job->tape.arena, &d->form, bk_lanes_samples(lanes) * d->each,
                    bk_teacher_rows_at(&d->form, d->rows, before * d->each), bundle);
}

void bk_teacher_split_release(bk_job *job)
{
    bk_stream *s = job->teacher ? job->teacher->stream : NULL;
    if (!s || s->released)
        return;
    s->released = true;
    tell_teachers(job, (request){.subject = NOTHING_MORE});
    for (int i = 0; i < DELIVERIES; i++) {
        if (s->delivery[i].open)
            bk_messages_finish(s->delivery[i].messages);
        bk_arena_free(s->delivery[i].arena);
    }
}

/* ---- the teacher's side ---- */

/* Rows on their way. */
typedef struct shipment {
    bk_arena *arena;
    bk_messages *messages;
    int64_t seen;
    outcome outcome;
} shipment;

static void ship(bk_job *job, shipment *s, const parcel *p)
{
    int size = students(job);
    s->seen = bk_signals_any();
    s->outcome = (outcome){.status = job->tape.status};
    if (job->tape.status != BK_OK)
        snprintf(s->outcome.text, sizeof s->outcome.text, "%s", bk_status_text());
    for (int r = 0; r < size; r++) {
        move_rows(p, range_of(job, r, size), r, send_part);
        if (job->world->rank == 0)
            bk_messages_send(s->messages, r, TAG_OUTCOME, &s->outcome, sizeof s->outcome);
    }
    bk_messages_send(s->messages, 0, TAG_SEEN, &s->seen, sizeof s->seen);
}

static void answer(bk_job *job, request what, shipment *s)
{
    bk_bundle bundle = {0};
    bk_teacher_form form = form_of(job, what.subject);
    const bk_sampler *sampler = sampler_of(job, what.subject);
    bk_messages_finish(s->messages);
    bk_arena_reset(s->arena);
    bk_tape_begin(&job->tape);
    bk_sampler_batch(sampler, what.batch, &job->lanes, job->tape.arena, &bundle);
    const bk_tensor *logits = bk_teacher_forward(job, &job->lanes, &bundle);
    parcel p = {job,
                &form,
                bk_teacher_rows_new(s->arena, &form, bk_rows(logits)),
                range_of(job, job->world->rank, job->world->size),
                bk_sampler_rows(sampler, what.batch),
                s->messages = bk_messages_new(s->arena, job->world->between, BK_TEACHER_PARTS + 1)};
    bk_teacher_encode(&form, bk_rows(logits), bk_f32(logits), p.rows);
    ship(job, s, &p);
}

static request next_request(const bk_job *job)
{
    request what;
    bk_watchdog_phase(BK_PHASE_WAIT);
    bk_receive_bytes(job->world->between, 0, TAG_REQUEST, &what, sizeof what);
    bk_watchdog_phase(BK_PHASE_FORWARD);
    return what;
}

/* The run directory is there once something is asked. */
static void start_watchdog(const bk_job *job)
{
    const bk_config_run *c = &job->config->run;
    if (job->purpose == BK_TRAIN)
        bk_watchdog_start(
            &(bk_watchdog_options){.directory = bk_arena_printf(job->arena, "%s/stall", c->dir),
                                   .run_id = job->run_id,
                                   .seconds = c->stall_seconds});
}

void bk_teacher_serve(bk_job *job)
{
    shipment sent[1 + AHEAD] = {{0}};
    int64_t n = 0;
    for (int i = 0; i <= AHEAD; i++)
        sent[i].arena = bk_arena_new("teacher's rows");
    for (request what = next_request(job); what.subject != NOTHING_MORE;
         what = next_request(job), n++) {
        if (n == 0)
            start_watchdog(job);
        bk_watchdog_step(what.batch + 1);
        answer(job, what, &sent[n % (1 + AHEAD)]);
    }
    for (int i = 0; i <= AHEAD; i++) {
        bk_messages_finish(sent[i].messages);
        bk_arena_free(sent[i].arena);
    }
    bk_watchdog_stop();
}
