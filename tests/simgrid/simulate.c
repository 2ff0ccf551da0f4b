/* Training steps of a GPT-2 layout on simulated ranks: the messages are those of dist/, the
 * arithmetic only takes its time.
 *
 *   simulate KEY=VALUE...     tokens=4096 (of a rank and step)  experts=0 (of every second block)
 *                             expert=1 (expert-parallel degree)  chunks=1 (of a rank's experts)
 *                             overlap=1  bucket_mb=4  steps=2
 *                             flops=5e12  memory=2e11  poll=2e-4
 *
 * Prints one line of JSON: seconds of the last step (with the all-gather behind the one before),
 * bytes and messages that rank 0 sent in it, the formulas of both, seconds of arithmetic, and the
 * bound from a ping-pong on the same machine. */
#include "core/log.h"
#include "core/optim.h"
#include "dist/bucket.h"
#include "dist/collective.h"
#include "dist/cost.h"
#include "dist/exchange.h"
#include "dist/shard.h"
#include "dist/step.h"
#include "tests/simgrid/machine.h"

#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* GPT-2 small; two experts for each token. */
enum { LAYERS = 12, WIDTH = 768, HIDDEN = 4 * WIDTH, VOCABULARY = 50257, LENGTH = 1024, K = 2 };

static const size_t PAYLOAD = (size_t)16 << 30; /* of addresses: all experts on one rank */

typedef struct settings {
    double tokens, experts, expert, chunks, overlap, bucket_mb, steps, flops, memory, poll;
} settings;

static const settings defaults = {.tokens = 4096,
                                  .expert = 1,
                                  .chunks = 1,
                                  .overlap = 1,
                                  .bucket_mb = 4,
                                  .steps = 2,
                                  .flops = 5e12,
                                  .memory = 2e11,
                                  .poll = 2e-4};

static settings read_settings(int argc, char **argv)
{
    static const char *const name[] = {"tokens",    "experts", "expert", "chunks", "overlap",
                                       "bucket_mb", "steps",   "flops",  "memory", "poll"};
    settings s = defaults;
    double *value[] = {&s.tokens,    &s.experts, &s.expert, &s.chunks, &s.overlap,
                       &s.bucket_mb, &s.steps,   &s.flops,  &s.memory, &s.poll};
    for (int i = 1; i < argc; i++) {
        bool known = false;
        for (size_t k = 0; k < sizeof name / sizeof *name; k++) {
            size_t length = strlen(name[k]);
            if (strncmp(argv[i], name[k], length) == 0 && argv[i][length] == '=') {
                *value[k] = atof(argv[i] + length + 1);
                known = true;
            }
        }
        BK_ASSERT(known, "unknown setting %s", argv[i]);
    }
    return s;
}

/* ---- the model: what a rank holds ---- */

typedef struct model {
    const settings *s;
    bk_arena *arena;
    bk_world *world;
    bk_slab *slab;
    bk_reduction *reduction;
    bk_shard *shard;
    bk_lanes lanes;
    bk_tape tape;                  /* its hook alone is used */
    int first[LAYERS + 1];         /* first parameter of each block, and the one behind the last */
    int64_t first_expert, experts; /* of this rank */
    float *rows, *received;        /* of one exchange */
    int64_t chunks;                /* no more than experts */
    int64_t *count, *place;        /* [chunks,EP] rows for and from each rank, and the first */
} model;

static bool is_mixture(const model *m, int block)
{
    return m->s->experts > 0 && block % 2 == 1;
}

static void declare(model *m, int64_t rows, int64_t columns, int uses, int expert)
{
    bk_slab_declare(m->slab, &(bk_parameter){.name = "parameter",
                                             .shape = {rows, columns},
                                             .dims = 2,
                                             .uses = uses,
                                             .expert = expert});
}

/* A matrix and its bias. */
static void declare_linear(model *m, int64_t rows, int64_t columns, int expert)
{
    declare(m, rows, columns, 1, expert);
    declare(m, rows, 1, 1, expert);
}

static void declare_norm(model *m)
{
    declare(m, WIDTH, 1, 1, -1);
    declare(m, WIDTH, 1, 1, -1);
}

static void declare_feedforward(model *m, int expert)
{
    declare_linear(m, HIDDEN, WIDTH, expert);
    declare_linear(m, WIDTH, HIDDEN, expert);
}

static void declare_block(model *m, int block)
{
    declare_norm(m);
    for (int i = 0; i < 4; i++) /* q, k, v, o */
        declare_linear(m, WIDTH, WIDTH, -1);
    declare_norm(m);
    if (!is_mixture(m, block)) {
        declare_feedforward(m, -1);
        return;
    }
    declare(m, (int64_t)m->s->experts, WIDTH, 1, -1); /* gate */
    for (int64_t e = 0; e < m->experts; e++)
        declare_feedforward(m, (int)(m->first_expert + e));
}

static void declare_model(model *m)
{
    declare(m, VOCABULARY, WIDTH, 2, -1);
    declare(m, LENGTH, WIDTH, 1, -1);
    for (int i = 0; i < LAYERS; i++) {
        m->first[i] = m->slab->parameters;
        declare_block(m, i);
    }
    m->first[LAYERS] = m->slab->parameters;
    declare_norm(m);
}

/* Every rank sends as many rows to each rank of its group, in chunks of one size. */
static void prepare_exchange(model *m)
{
    int size = bk_comm_size(m->world->ep);
    int64_t rows = (int64_t)m->s->tokens * K / size;
    m->chunks = (int64_t)m->s->chunks < m->experts ? (int64_t)m->s->chunks : m->experts;
    m->count = BK_NEW(m->arena, int64_t, m->chunks * size);
    m->place = BK_NEW(m->arena, int64_t, m->chunks * size);
    for (int64_t i = 0; i < m->chunks * size; i++) {
        int64_t chunk = i / size, first = rows * chunk / m->chunks;
        m->count[i] = rows * (chunk + 1) / m->chunks - first;
        m->place[i] = i % size * rows + first;
    }
    m->rows = BK_NEW(m->arena, float, rows *size *WIDTH);
    m->received = BK_NEW(m->arena, float, rows *size *WIDTH);
}

static void update(const void *config, const bk_update *u)
{
    (void)config;
    bk_machine_stream(7.0 * sizeof(float) * (double)u->n); /* reads x, g, m, v; writes x, m, v */
}

static const bk_optimizer_kind optimizer = {.name = "adamw", .moments = 2, .update = update};

static void open_model(model *m, const settings *s)
{
    m->s = s;
    m->arena = bk_arena_new("model");
    bk_status status = bk_world_open(m->arena, (int)s->expert, &m->world);
    BK_ASSERT(status == BK_OK, "%s", bk_status_text());
    int size = m->world->size, ep = m->world->expert;
    int64_t lanes = 1;
    while (lanes < size)
        lanes *= 2;
    m->lanes = bk_lanes_of_rank(lanes, lanes, m->world->rank, size);
    m->experts = (int64_t)s->experts / ep;
    m->first_expert = m->experts * (m->world->rank % ep);
    m->slab = bk_slab_new(m->arena);
    declare_model(m);
    bool exact = bk_lanes_exact(&m->lanes, size);
    bk_slab_layout(m->slab, (int64_t)(s->bucket_mb * (1 << 18)), 16 * (exact ? lanes : size));
    bk_slab_want_gradients(m->slab);
    m->reduction = bk_reduction_new(m->arena, m->world, m->slab, &m->lanes, s->overlap != 0.0);
    m->shard = bk_shard_new(m->arena, m->reduction, m->slab, optimizer.moments, 1);
    if (s->experts > 0)
        prepare_exchange(m);
}

/* ---- one step ---- */

/* Forward operations of one token: projections, the causal half of the scores and a dense
 * feed-forward part; and the K of a mixture. */
static double block_flops(const model *m, int block)
{
    double flops = 2.0 * 4.0 * WIDTH * WIDTH + 2.0 * LENGTH * WIDTH;
    return is_mixture(m, block) ? flops : flops + 2.0 * 2.0 * WIDTH * HIDDEN;
}

static double expert_flops(const model *m, int block)
{
    return is_mixture(m, block) ? K * 2.0 * 2.0 * WIDTH * HIDDEN : 0.0;
}

static double head_flops(void)
{
    return 2.0 * WIDTH * VOCABULARY;
}

static double step_flops(const model *m)
{
    double flops = head_flops();
    for (int i = 0; i < LAYERS; i++)
        flops += block_flops(m, i) + expert_flops(m, i);
    return 3.0 * m->s->tokens * flops;
}

static void send_counts(const model *m)
{
    const bk_comm *ep = m->world->ep;
    int64_t lanes = 1, each = m->experts * m->lanes.count;
    if (bk_comm_size(ep) == 1)
        return;
    bk_max_i64(ep, 1, &lanes);
    int32_t *list = calloc((size_t)(2 * each * bk_comm_size(ep)), sizeof *list);
    bk_alltoall_counts(ep, each, list, list + each * bk_comm_size(ep));
    free(list);
}

static bk_exchange *start(const model *m, bool back, int64_t chunk)
{
    int64_t at = chunk * bk_comm_size(m->world->ep);
    return bk_exchange_begin(m->world->ep, m->arena,
                             &(bk_exchange_rows){.bytes = WIDTH * sizeof(float),
                                                 .send = back ? m->received : m->rows,
                                                 .send_count = m->count + at,
                                                 .send_place = m->place + at,
                                                 .receive = back ? m->rows : m->received,
                                                 .receive_count = m->count + at,
                                                 .receive_place = m->place + at});
}

/* As in the layer: a chunk is at work while the next is on its way there and others on their way
 * back; backward the weights' gradients, half of the work, do not hold it up. */
static void run_experts(const model *m, int block, bool forward)
{
    bk_arena_mark mark = bk_arena_get_mark(m->arena);
    bk_exchange **leaving = BK_NEW(m->arena, bk_exchange *, m->chunks);
    double flops = m->s->tokens * expert_flops(m, block) / (double)m->chunks;
    bk_exchange *coming = start(m, false, 0);
    for (int64_t chunk = 0; chunk < m->chunks; chunk++) {
        bk_exchange_finish(coming);
        if (chunk + 1 < m->chunks)
            coming = start(m, false, chunk + 1);
        bk_machine_multiply(flops, true);
        leaving[chunk] = start(m, true, chunk);
        if (!forward)
            bk_machine_multiply(flops, true);
    }
    for (int64_t chunk = 0; chunk < m->chunks; chunk++)
        bk_exchange_finish(leaving[chunk]);
    bk_arena_release(m->arena, mark);
}

static void ready(model *m, int parameter, int use)
{
    m->tape.grad_ready(m->tape.grad_ready_context, m->slab->parameter[parameter], use);
}

/* Waits for the parameters first .. last-1 where they are still under way. */
static void need(model *m, int first, int last)
{
    for (int p = first; p < last && m->tape.parameter_needed; p++)
        m->tape.parameter_needed(m->tape.parameter_context, m->slab->parameter[p]);
}

static void forward(model *m)
{
    bool polls = m->tape.parameter_needed;
    need(m, 0, m->first[0]);
    for (int i = 0; i < LAYERS; i++) {
        need(m, m->first[i], m->first[i + 1]);
        bk_machine_multiply(m->s->tokens * block_flops(m, i), polls);
        if (is_mixture(m, i)) {
            send_counts(m);
            run_experts(m, i, true);
        }
    }
    need(m, m->first[LAYERS], m->slab->parameters);
    bk_machine_multiply(m->s->tokens * head_flops(), false);
}

/* Nothing is polled before the first gradient of all.
 * Gradients become ready from the last block to the first, each block's in the course of its
 * products. */
static void backward(model *m)
{
    bk_machine_multiply(2.0 * m->s->tokens * head_flops(), false);
    ready(m, 0, 1);
    for (int p = m->slab->parameters - 1; p >= m->first[LAYERS]; p--)
        ready(m, p, 0);
    for (int i = LAYERS - 1; i >= 0; i--) {
        int p = m->first[i + 1] - 1;
        if (is_mixture(m, i))
            run_experts(m, i, false);
        for (; m->slab->parameter[p]->expert >= 0; p--)
            ready(m, p, 0);
        for (int count = p - m->first[i] + 1; p >= m->first[i]; p--) {
            bk_machine_multiply(2.0 * m->s->tokens * block_flops(m, i) / count, true);
            ready(m, p, 0);
        }
    }
    ready(m, 1, 0);
    ready(m, 0, 0);
}

static void agree(model *m)
{
    int64_t blocks = bk_reduction_norm_records(m->reduction);
    int64_t records = m->lanes.count > 0 ? m->lanes.count : 1;
    double *record = calloc((size_t)records, sizeof *record), sum;
    double *block = calloc((size_t)(blocks * (m->world->size + 1)), sizeof *block);
    bk_step_message message = {.terms = 1,
                               .record = record,
                               .sum = &sum,
                               .blocks = blocks,
                               .block = block,
                               .all_blocks = block + blocks};
    for (int64_t i = 0; i < m->shard->owned; i++) /* squares of the own gradients */
        bk_machine_stream(sizeof(float) * (double)m->shard->own[i].count);
    bk_machine_flush();
    bk_step_agree(m->world->ctl, &m->lanes, &message);
    BK_ASSERT(message.status == BK_OK, "status %d", message.status);
    bk_reduction_norm(m->reduction, message.all_blocks);
    free(record);
    free(block);
}

static void step(model *m)
{
    bk_reduction_begin(m->reduction, &m->tape);
    forward(m);
    backward(m);
    bk_reduction_finish(m->reduction);
    bk_machine_flush();
    agree(m);
    bk_shard_update(m->shard, m->slab, &optimizer, NULL, &(bk_update){.step = 1});
    bk_machine_flush();
    bk_reduction_gather_begin(m->reduction, &m->tape);
}

/* ---- the report ---- */

/* Squares of the gradients and the update, as in `agree` and `update`; the sum of the two uses of
 * the embedding. */
static double optimizer_seconds(const model *m)
{
    double owned = 0.0;
    for (int64_t i = 0; i < m->shard->owned; i++)
        owned += (double)m->shard->own[i].count;
    double tied = (double)VOCABULARY * WIDTH / m->world->size;
    return sizeof(float) * (8.0 * owned + 3.0 * tied) / m->s->memory;
}

static double above(double x, double least)
{
    return x > least ? x : least;
}

/* What the experts' work does not hide.  One chunk takes x = (P-1) alpha + bytes beta each way;
 * forward the first arrives and the last leaves beside nothing, backward half of the last chunk's
 * work stands beside its return. */
static double exchange_seconds(const model *m, const bk_cost *c)
{
    int ep = m->world->expert, mixtures = m->s->experts > 0 ? LAYERS / 2 : 0;
    if (mixtures == 0 || ep == 1)
        return 0.0;
    double chunks = (double)m->chunks;
    double bytes = m->s->tokens * K * WIDTH * sizeof(float) * (ep - 1) / ep;
    double work = m->s->tokens * expert_flops(m, 1) / m->s->flops;
    double x = (ep - 1) * c->alpha + bytes * c->beta / chunks;
    double forward = 2.0 * x + above(2.0 * (chunks - 1.0) * x - work, 0.0);
    double backward =
        x + above((2.0 * chunks - 1.0) * x - 2.0 * work, above(x - work / chunks, 0.0));
    return mixtures * (forward + backward);
}

/* The formula of one step. */
static double step_seconds(const model *m, const bk_cost *c)
{
    double compute = step_flops(m) / m->s->flops;
    double beside = m->s->overlap != 0.0 ? compute : 0.0;
    return compute + optimizer_seconds(m) + exchange_seconds(m, c) +
           bk_cost_exposed(c, m->reduction, beside / 3.0, 2.0 / 3.0 * beside);
}

static void report(const model *m, const bk_traffic *sent, double seconds, const bk_cost *cost)
{
    bk_traffic reduce = bk_reduction_formula(m->reduction, BK_TRAFFIC_REDUCE);
    bk_traffic gather = bk_reduction_formula(m->reduction, BK_TRAFFIC_GATHER);
    printf("{\"ranks\": %d, \"expert\": %d, \"experts\": %g, \"tokens\": %g, \"buckets\": %d, "
           "\"parameters\": %lld, \"seconds\": %.6f, \"bound\": %.6f, \"compute\": %.6f, ",
           m->world->size, m->world->expert, m->s->experts, m->s->tokens, m->slab->buckets,
           (long long)m->slab->values, seconds, step_seconds(m, cost), step_flops(m) / m->s->flops);
    for (int i = 0; i < BK_TRAFFIC_PARTS; i++)
        printf("\"%s_bytes\": %lld, \"%s_messages\": %lld, \"%s_blocked\": %.6f, ",
               bk_traffic_name(i), (long long)sent[i].bytes, bk_traffic_name(i),
               (long long)sent[i].messages, bk_traffic_name(i), sent[i].blocked);
    printf("\"reduce_formula\": %lld, \"gather_formula\": %lld, \"reduce_bound\": %.6f, "
           "\"gather_bound\": %.6f, \"exchange_bound\": %.6f, \"alpha\": %.4g, \"beta\": %.4g, "
           "\"gamma\": %.4g}\n",
           (long long)reduce.bytes, (long long)gather.bytes,
           bk_cost_messages(cost, m->reduction, BK_TRAFFIC_REDUCE),
           bk_cost_messages(cost, m->reduction, BK_TRAFFIC_GATHER), exchange_seconds(m, cost),
           cost->alpha, cost->beta, cost->gamma);
}

/* Collective.  All ranks live in one process: one allocation serves them all. */
static void *make_payload(void)
{
    void *payload = bk_mpi_rank() == 0 ? SMPI_SHARED_MALLOC(PAYLOAD) : NULL;
    BK_ASSERT(MPI_Bcast(&payload, sizeof payload, MPI_BYTE, 0, MPI_COMM_WORLD) == MPI_SUCCESS,
              "no payload");
    return payload;
}

int main(int argc, char **argv)
{
    static model m;
    bk_traffic before[BK_TRAFFIC_PARTS], sent[BK_TRAFFIC_PARTS];
    bk_status status = bk_mpi_start(&argc, &argv);
    BK_ASSERT(status == BK_OK, "%s", bk_status_text());
    settings s = read_settings(argc, argv);
    bk_machine_set(&(bk_machine){.flops = s.flops,
                                 .memory = s.memory,
                                 .poll = s.poll,
                                 .payload = make_payload(),
                                 .bytes = PAYLOAD});
    open_model(&m, &s);
    bk_cost cost = bk_cost_measure(m.world->ctl, 3);
    double seconds = 0.0;
    for (int i = 0; i < (int)s.steps; i++) {
        for (int k = 0; k < BK_TRAFFIC_PARTS; k++)
            before[k] = bk_traffic_of(k);
        double start = bk_seconds();
        step(&m);
        seconds = bk_seconds() - start;
        for (int k = 0; k < BK_TRAFFIC_PARTS; k++)
            sent[k] = bk_traffic_minus(bk_traffic_of(k), before[k]);
    }
    bk_reduction_gather_finish(m.reduction);
    bk_max_f64(m.world->ctl, 1, &seconds);
    if (m.world->rank == 0)
        report(&m, sent, seconds, &cost);
    bk_mpi_stop();
    return 0;
}
