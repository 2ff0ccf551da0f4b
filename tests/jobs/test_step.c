/* test: labels=unit,mpi ranks=1,2,3,4 timeout=120 */
/* What one training step sends, part by part, against the formulas worked out from the layout. */
#include "tests/support/check.h"
#include "tests/support/ranks.h"

#include "core/ops.h"
#include "dist/collective.h"
#include "dist/step.h"
#include "jobs/job.h"
#include "jobs/load.h"

#include <math.h>
#include <string.h>

enum { LANES = 4, BATCH = 8, LENGTH = 6, WIDTH = 16, EXPERTS = 12, LAYERS = 2 };

static const char dense[] = "run: {dir: none}\n"
                            "data: {train: generated, eval_split: train, batch: 8, length: 6}\n"
                            "model: {kind: decoder, layers: 2, width: 16, heads: 2, tied: true}\n"
                            "parallel: {lanes: 4, threads: 1}\n";
/* Every token goes to every expert, so that the load is even. */
#define MIXTURE(chunks)                                                                \
    "run: {dir: none}\n"                                                               \
    "data: {train: generated, eval_split: train, batch: 8, length: 6}\n"               \
    "model: {kind: decoder, layers: 2, width: 16, heads: 2, tied: true, moe: {every: " \
    "1, experts: 12, k: 12, chunks: " chunks ", router: {kind: topk}}}\n"              \
    "parallel: {lanes: 4, threads: 1}\n"
static const char *const mixture[] = {MIXTURE("1"), MIXTURE("2"), MIXTURE("3")};

static bk_dataset *generate(bk_arena *arena)
{
    int64_t count = 2 * BATCH * LENGTH + 1;
    int32_t *tokens = BK_NEW(arena, int32_t, count);
    int64_t *offsets = BK_ZNEW(arena, int64_t, 2), *index = BK_ZNEW(arena, int64_t, 1);
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (int32_t)(1 + i * i % 16);
    offsets[1] = count;
    bk_dataset *d = BK_ZNEW(arena, bk_dataset, 1);
    *d = (bk_dataset){.path = "generated",
                      .task = "language_model",
                      .source = "squares",
                      .samples = 1,
                      .vocabulary = 17,
                      .tokens = tokens,
                      .offsets = offsets,
                      .max_length = count,
                      .split = {{.name = "train", .index = index, .count = 1}},
                      .splits = 1};
    return d;
}

/* An open job and what its second step sent: with the all-gather behind the first one. */
typedef struct trial {
    bk_arena *arena;
    bk_job *job;
    bk_traffic sent[BK_TRAFFIC_PARTS];
} trial;

static trial run_with(const char *text, int overrides, bk_override *override)
{
    trial t = {.arena = bk_arena_new("trial")};
    bk_context context = {.arena = t.arena, .overrides = overrides, .override = override};
    bk_config *config;
    assert_int_equal(bk_load_config_text(&context, "test", text, &config), BK_OK);
    assert_int_equal(
        bk_job_open(t.arena, config, BK_MEASURE, (bk_given){.data = generate(t.arena)}, &t.job),
        BK_OK);
    bk_slab_initialise(t.job->slab, 1);
    bk_step_result r = bk_job_step(t.job);
    assert_int_equal(r.status, BK_OK);
    r = bk_job_step(t.job);
    assert_int_equal(r.status, BK_OK);
    memcpy(t.sent, r.sent, sizeof t.sent);
    return t;
}

static trial run(const char *text, const char *key, const char *value)
{
    bk_override override = {.path = key, .text = value};
    return run_with(text, 1, &override);
}

static void finish(trial *t)
{
    bk_job_close(t->job);
    bk_arena_free(t->arena);
}

static int log2_of(int ranks)
{
    return ranks == 4 ? 2 : 1; /* 3 ranks: one call of MPI a bucket */
}

/* n (P-1)/P of each bucket, P the ranks that hold it; second uses are reduced, not gathered. */
static void check_buckets(const trial *t)
{
    int64_t bytes[2] = {0}, messages[2] = {0}, floats = 0;
    for (int i = 0; i < t->job->slab->buckets; i++) {
        const bk_bucket *b = &t->job->slab->bucket[i];
        int ranks = t->job->world->size / (b->expert < 0 ? 1 : t->job->world->expert);
        for (int way = 0; way < (b->use == 0 ? 2 : 1) && ranks > 1; way++) {
            bytes[way] += 4 * b->length * (ranks - 1) / ranks;
            messages[way] += log2_of(ranks);
        }
        floats += b->length;
    }
    assert_true(floats > 1000);
    for (int way = 0; way < 2; way++) {
        const bk_traffic *sent = &t->sent[way == 0 ? BK_TRAFFIC_REDUCE : BK_TRAFFIC_GATHER];
        assert_int_equal(sent->bytes, bytes[way]);
        assert_int_equal(sent->messages, messages[way]);
    }
}

/* One all-gather of status, flags, number and hash of calls, a loss of each lane, and a sum of
 * squares of each block: of the dense buckets, and of each expert of this rank. */
static void check_agreement(const trial *t, int64_t experts)
{
    int64_t ranks = t->job->world->size, replicas = ranks / t->job->world->expert;
    bool exact = LANES % ranks == 0;
    int64_t lanes = exact ? LANES / ranks : 1;
    int64_t words =
        1 + BK_STEP_FLAGS + 2 + lanes + lanes + experts * (exact ? LANES / replicas : 1);
    assert_int_equal(t->sent[BK_TRAFFIC_AGREE].bytes, 8 * words * (ranks - 1));
    assert_int_equal(t->sent[BK_TRAFFIC_AGREE].messages, ranks > 1);
}

static void check_silent(const trial *t, int first, int last)
{
    for (int i = first; i <= last; i++) {
        assert_int_equal(t->sent[i].bytes, 0);
        assert_int_equal(t->sent[i].messages, 0);
    }
}

static void dense_model(void **state)
{
    static const char *const bucket[] = {"0.25", "4"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        trial t = run(dense, "parallel.bucket_mb", bucket[i]);
        check_buckets(&t);
        check_agreement(&t, 0);
        check_silent(&t, BK_TRAFFIC_LOSS, BK_TRAFFIC_REST);
        finish(&t);
    }
}

/* Without ZeRO gradients are gathered in place of parameters: the same bytes. */
static void without_zero(void **state)
{
    (void)state;
    trial one = run(dense, "parallel.zero", "1"), none = run(dense, "parallel.zero", "0");
    check_buckets(&none);
    check_agreement(&none, 0);
    for (int i = 0; i < BK_TRAFFIC_PARTS; i++) {
        assert_int_equal(none.sent[i].bytes, one.sent[i].bytes);
        assert_int_equal(none.sent[i].messages, one.sent[i].messages);
    }
    finish(&one);
    finish(&none);
}

/* Rows of C floats to each expert and back, forward and backward, the first way in the type of
 * operands: (3 s + s') k T C (P-1)/P bytes over all ranks, k = E.  Before them the rows of each
 * (expert, lane), for each peer as many as the fullest has.  Chunks of experts move the same bytes
 * in more messages. */
static void check_exchange(const trial *t, int64_t chunks)
{
    int64_t operand = (int64_t)bk_dtype_size(bk_operand_dtype(&t->job->tape, BK_F32));
    int64_t ep = t->job->world->expert, ranks = t->job->world->size, most = 0;
    for (int r = 0; r < ranks; r++) {
        int64_t count = bk_lanes_of_rank(LANES, BATCH, r, (int)ranks).count;
        most = count > most ? count : most;
    }
    bk_traffic sum = t->sent[BK_TRAFFIC_EXPERT];
    int64_t each = sum.messages;
    bk_sum_i64(t->job->world->data, 1, &sum.bytes);
    int64_t rows = (int64_t)EXPERTS * BATCH * LENGTH * (ep - 1) / ep;
    int64_t counts = ep > 1 ? 4 * EXPERTS / ep * most * (ep - 1) : 0;
    assert_int_equal(sum.bytes, LAYERS * (rows * WIDTH * (3 * 4 + operand) + ranks * counts));
    assert_int_equal(each, ep > 1 ? LAYERS * (1 + 4 * chunks) : 0);
}

static void experts_over_ranks(void **state)
{
    static const char *const degree[] = {"1", "2", "3", "4"};
    (void)state;
    for (int ep = 1; ep <= bk_mpi_size(); ep++)
        for (int chunks = 1; chunks <= 3 && bk_mpi_size() % ep == 0; chunks++) {
            trial t = run(mixture[chunks - 1], "parallel.expert", degree[ep - 1]);
            check_buckets(&t);
            check_agreement(&t, EXPERTS / ep);
            check_exchange(&t, chunks);
            check_silent(&t, BK_TRAFFIC_LOSS, BK_TRAFFIC_ROUTE);
            check_silent(&t, BK_TRAFFIC_REST, BK_TRAFFIC_REST);
            finish(&t);
        }
}

static void experts_in_bf16(void **state)
{
    (void)state;
    bk_override override[] = {{.path = "parallel.expert", .text = bk_mpi_size() == 4 ? "2" : "1"},
                              {.path = "run.precision", .text = "bf16"}};
    trial t = run_with(mixture[1], 2, override);
    check_buckets(&t);
    check_exchange(&t, bk_mpi_size() == 4 ? 2 : 1);
    finish(&t);
}

/* Operands in bf16 keep a mixture of experts on the way that it takes in fp32. */
static void losses_in_bf16_are_near(void **state)
{
    enum { STEPS = 50 }; /* later the loss of so small a model jumps */
    (void)state;
    bk_override override[] = {{.path = "optim.lr", .text = "0.004"},
                              {.path = "run.precision", .text = "fp32"}};
    trial whole = run_with(mixture[0], 2, override);
    override[1].text = "bf16";
    trial rounded = run_with(mixture[0], 2, override);
    double first = 0.0, last = 0.0, apart = 0.0;
    for (int i = 0; i < STEPS; i++) {
        last = bk_job_step(whole.job).loss;
        first = i == 0 ? last : first;
        double other = bk_job_step(rounded.job).loss;
        apart = fmax(apart, fabs(other / last - 1.0));
    }
    assert_true(last < 0.5 * first);
    assert_true(apart > 0.0);
    bk_check_error(apart, 0.02, "loss in bf16");
    finish(&whole);
    finish(&rounded);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_model),
        cmocka_unit_test(without_zero),
        cmocka_unit_test(experts_over_ranks),
        cmocka_unit_test(experts_in_bf16),
        cmocka_unit_test(losses_in_bf16_are_near),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
