/* test: labels=unit,mpi timeout=300 */
/* birkhoff bench as a user runs it: what it prints, never how fast it was. */
#include "tests/support/check.h"

#include "jobs/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define TINY                                                                            \
    "vocabulary=97 batch=4 length=16 warmup=1 repeats=3 model.layers=2 model.width=32 " \
    "model.heads=2"

static char directory[] = "/tmp/birkhoff-bench-XXXXXX";

/* Runs `birkhoff ARGUMENTS` on some ranks; its exit status, standard output in `out`. */
static int run(int ranks, const char *arguments, char *out, size_t size)
{
    char command[4096], launcher[64] = "";
    const char *program = getenv("BIRKHOFF");
    assert_non_null(program);
    if (ranks > 1)
        snprintf(launcher, sizeof launcher, "mpirun --oversubscribe -n %d ", ranks);
    snprintf(command, sizeof command, "%s%s %s 2>%s/err </dev/null", launcher, program, arguments,
             directory);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t length = fread(out, 1, size - 1, pipe);
    out[length] = '\0';
    int status = pclose(pipe);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static json_t *run_json(int ranks, const char *arguments)
{
    static char out[1 << 16];
    json_error_t error;
    int status = run(ranks, arguments, out, sizeof out);
    json_t *root = json_loads(out, 0, &error);
    if (status != 0 || !root)
        fail_msg("status %d of birkhoff %s: %s", status, arguments, out);
    return root;
}

static double number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value))
        fail_msg("no number %s", key);
    return json_number_value(value);
}

/* The keys that every bench has. */
static void check_common(const json_t *r, const char *name, const char *unit, int ranks)
{
    assert_string_equal(json_string_value(json_object_get(r, "name")), name);
    assert_string_equal(json_string_value(json_object_get(r, "unit")), unit);
    assert_true(number(r, "seconds") > 0);
    assert_true(number(r, "rate") > 0);
    assert_true(number(r, "limit") > 0);
    bk_check_error(fabs(number(r, "fraction") * number(r, "limit") / number(r, "rate") - 1.0), 1e-9,
                   "fraction of %s", name);
    assert_int_equal((int)number(r, "ranks"), ranks);
    assert_true(number(r, "threads") >= 1);
}

static void check_step(const json_t *r, int ranks, int64_t positions)
{
    check_common(r, "step", "FLOP/s", ranks);
    bk_check_error(
        fabs(number(r, "tokens_per_second") * number(r, "seconds") / (double)positions - 1.0), 1e-9,
        "tokens per second");
    assert_true(number(r, "peak_bytes") > 1e6);
    assert_true(number(r, "cpu_seconds") >= 0);
}

static void step_of_the_layout(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks *= 2) {
        json_t *r = run_json(ranks, "bench step --json parallel.threads=1 " TINY);
        check_step(r, ranks, 64);
        assert_int_equal((int)number(r, "threads"), 1);
        /* (97 + 16 + 2) 32 of embeddings and the last norm, 12 C^2 + 13 C in each block */
        assert_int_equal((int)number(r, "parameters"), 115 * 32 + 2 * (12 * 32 * 32 + 13 * 32));
        json_decref(r);
    }
}

static void profile_names_the_ops(void **state)
{
    (void)state;
    json_t *r = run_json(1, "bench step --json profile=true " TINY);
    const char *groups[] = {"forward", "backward"};
    for (int i = 0; i < 2; i++) {
        const json_t *group = json_object_get(r, groups[i]);
        assert_true(json_is_object(group));
        assert_true(number(group, "linear") > 0);
        assert_true(number(group, "attention") > 0);
        assert_true(number(group, "cross_entropy") > 0);
    }
    json_decref(r);
}

/* A teacher of the same layout, and its losses. */
static void step_with_a_teacher(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 2; ranks++) {
        json_t *r = run_json(ranks, "bench step --json profile=true distill=sinkd " TINY);
        check_step(r, ranks, 64);
        assert_true(number(json_object_get(r, "forward"), "row_loss") > 0);
        assert_true(number(json_object_get(r, "backward"), "sinkd") > 0);
        json_decref(r);
    }
    json_t *r = run_json(1, "bench step --json profile=true distill=kl " TINY);
    assert_true(number(json_object_get(r, "backward"), "row_loss") > 0);
    assert_null(json_object_get(json_object_get(r, "forward"), "sinkd"));
    json_decref(r);
}

static void write_file(const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* A configuration of the user's, on its own data; nothing is written to its run directory. */
static void step_of_a_configuration(void **state)
{
    char arguments[1024], path[256], out[4096];
    (void)state;
    snprintf(arguments, sizeof arguments,
             "data listops %s/d.h5 preset=small train=40 validation=20 test=20", directory);
    assert_int_equal(run(1, arguments, out, sizeof out), 0);
    write_file("c.yaml", "run: {dir: never}\ndata: {train: d.h5, batch: 8}\n"
                         "model: {layers: 1, width: 16, heads: 2}\n");
    for (int ranks = 1; ranks <= 2; ranks++) {
        snprintf(arguments, sizeof arguments,
                 "bench step --json config=%s/c.yaml batch=4 warmup=0 repeats=2", directory);
        json_t *r = run_json(ranks, arguments);
        check_common(r, "step", "FLOP/s", ranks);
        assert_int_equal((int)number(r, "batch"), 4);
        json_decref(r);
    }
    snprintf(path, sizeof path, "%s/never", directory);
    assert_int_not_equal(access(path, F_OK), 0);
}

static void libraries_are_chosen(void **state)
{
    char out[4096];
    (void)state;
    json_t *r = run_json(1, "bench step --json gemm=cblas " TINY);
    assert_null(strstr(json_string_value(json_object_get(r, "library")), "oneDNN"));
    json_decref(r);
    int status = run(1, "bench step --json gemm=onednn " TINY, out, sizeof out);
    assert_true(status == 0 ? strstr(out, "oneDNN") != NULL : status == BK_USAGE);
}

static void kernels_and_machine(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 2; ranks++) {
        json_t *r = run_json(ranks, "bench gemm --json m=33 n=17 k=9 threads=2 repeats=3");
        check_common(r, "gemm", "FLOP/s", ranks);
        assert_int_equal((int)number(r, "threads"), 2);
        json_decref(r);
        r = run_json(ranks, "bench machine --json megabytes=1 repeats=3 threads=1");
        check_common(r, "machine", "FLOP/s", ranks);
        assert_true(number(r, "bytes_per_second") > 0);
        assert_true(number(r, "disk_write") > 0 && number(r, "disk_read") > 0);
        assert_true(number(r, "gamma") > 0 && (number(r, "alpha") > 0) == (ranks > 1));
        json_decref(r);
    }
}

/* Every algorithm on every number of ranks: 1,000 bytes are padded to 16 floats a rank. */
static void allreduce_by_each_algorithm(void **state)
{
    static const char *const algorithm[] = {"own", "ring", "mpi"};
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks++)
        for (int i = 0; i < 3; i++) {
            char arguments[128];
            snprintf(arguments, sizeof arguments,
                     "bench allreduce --json bytes=1000 repeats=3 algorithm=%s", algorithm[i]);
            json_t *r = run_json(ranks, arguments);
            check_common(r, "allreduce", "B/s", ranks);
            double padded = ceil(1000.0 / (64.0 * ranks)) * 64.0 * ranks;
            assert_true(number(r, "bytes") == padded);
            if (i < 2) /* n (P-1)/P each way */
                assert_true(number(r, "bytes_sent") == 2.0 * padded * (ranks - 1) / ranks);
            json_decref(r);
        }
}

static void checkpoint_on_a_disk(void **state)
{
    char arguments[256], path[256];
    (void)state;
    for (int ranks = 1; ranks <= 2; ranks++) {
        snprintf(arguments, sizeof arguments,
                 "bench checkpoint --json bytes=300000 repeats=2 path=%s", directory);
        json_t *r = run_json(ranks, arguments);
        check_common(r, "checkpoint", "B/s", ranks);
        assert_true(number(r, "bytes") >= 300000);
        assert_true(number(r, "verify_rate") > 0 && number(r, "read_rate") > 0);
        json_decref(r);
    }
    snprintf(path, sizeof path, "ls -A %s | grep -q birkhoff-", directory);
    assert_int_not_equal(system(path), 0); /* nothing is left */
}

/* The group that reports messages: formulas of bytes, parts that add up. */
static void step_counts_its_messages(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks *= 2) {
        json_t *r = run_json(ranks, "bench step --json parallel.threads=1 " TINY);
        const json_t *c = json_object_get(r, "communication");
        double sent = 4.0 * number(r, "parameters") * (ranks - 1) / ranks;
        assert_true(number(c, "gather_bytes") >= sent && number(c, "gather_bytes") <= 1.1 * sent);
        double parts = number(c, "reduce_bytes") + number(c, "gather_bytes") +
                       number(c, "agree_bytes") + number(c, "loss_bytes");
        assert_true(number(c, "bytes") == parts);
        assert_true((number(c, "messages") > 0) == (ranks > 1));
        assert_true(number(c, "exposed") <= number(c, "blocked"));
        assert_true((number(c, "exposed_bound") > 0) == (ranks > 1));
        json_decref(r);
    }
}

#define TINY_MOE "bench moe --json tokens=37 width=16 experts=6 threads=1 warmup=1 repeats=3 "

/* Four ranks: six experts divide over two of them only. */
static void mixture_of_experts(void **state)
{
    static const char *const phases[] = {"route", "pack", "exchange", "gemm", "combine"};
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks *= 2) {
        json_t *r = run_json(ranks, ranks < 4 ? TINY_MOE : TINY_MOE "chunks=3");
        check_common(r, "moe", "FLOP/s", ranks);
        bk_check_error(fabs(number(r, "tokens_per_second") * number(r, "seconds") / 37.0 - 1.0),
                       1e-9, "tokens per second");
        /* 2 (2 k F + E) C T products, and twice as many backward */
        bk_check_error(fabs(number(r, "rate") * number(r, "seconds") /
                                (6.0 * (2.0 * 2.0 * 64.0 + 6.0) * 16.0 * 37.0) -
                            1.0),
                       1e-9, "rate");
        assert_int_equal((int)number(r, "expert_parallel"), ranks == 1 ? 1 : 2);
        assert_true(number(r, "cpu_seconds") >= 0);
        for (size_t i = 0; i < sizeof phases / sizeof *phases; i++)
            assert_true(number(json_object_get(r, "phase"), phases[i]) >= 0);
        assert_true(number(json_object_get(r, "phase"), "gemm") > 0);
        assert_null(json_object_get(r, "transport"));
        json_decref(r);
    }
}

static void transport_of_a_router(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 2; ranks++) {
        json_t *r = run_json(ranks, TINY_MOE "router=ssr");
        const json_t *transport = json_object_get(r, "transport");
        check_common(r, "moe", "FLOP/s", ranks);
        assert_true(number(transport, "probability") == 0.01);
        assert_true(number(transport, "iterations") > 0);
        bk_check_error(fabs(number(transport, "share") * number(r, "seconds") -
                            0.01 * number(transport, "seconds")),
                       1e-9, "share");
        json_decref(r);
    }
    json_t *r = run_json(1, TINY_MOE "router=ssr probability=1");
    assert_true(number(json_object_get(r, "transport"), "probability") == 1.0);
    json_decref(r);
}

/* Six columns and a count of bad terms in a message, or the columns and their second moments. */
static void solvers_of_a_router(void **state)
{
    const struct {
        const char *call;
        double numbers;
    } list[] = {{TINY_MOE "router=ssr solver=sinkhorn", 7.0},
                {TINY_MOE "router=ssr solver=newton", 27.0}};
    (void)state;
    for (int i = 0; i < 2; i++) {
        json_t *r = run_json(2, list[i].call);
        const json_t *transport = json_object_get(r, "transport");
        double messages = number(transport, "messages");
        assert_true(messages == number(transport, "iterations") + 1.0);
        assert_true(number(transport, "bytes") == 8.0 * list[i].numbers * messages);
        json_decref(r);
    }
}

static void sinkd_in_its_modes(void **state)
{
    static const struct {
        const char *options;
        double elements;
    } modes[] = {{"gradient=implicit", 2.0 * 12 * 12 * 97},
                 {"debias=true gradient=envelope", 5.0 * 12 * 12 * 97},
                 {"top_k=7", 2.0 * 12 * 12 * 7}};
    (void)state;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        char arguments[256];
        snprintf(arguments, sizeof arguments,
                 "bench sinkd --json rows=12 vocabulary=97 repeats=2 threads=1 %s",
                 modes[i].options);
        json_t *r = run_json(1, arguments);
        bk_check_error(fabs(number(r, "rate") * number(r, "seconds") / modes[i].elements - 1.0),
                       1e-9, "elements of sinkd %s", modes[i].options);
        json_decref(r);
    }
}

/* The loss of the same logits on one rank and on two. */
static void sinkd_and_sinkhorn(void **state)
{
    double loss[3] = {0};
    (void)state;
    for (int ranks = 1; ranks <= 2; ranks++) {
        json_t *r = run_json(ranks, "bench sinkd --json rows=12 vocabulary=97 repeats=2 threads=1");
        check_common(r, "sinkd", "elements/s", ranks);
        double elements = 2.0 * 12 * 12 * 97;
        bk_check_error(fabs(number(r, "rate") * number(r, "seconds") / elements - 1.0), 1e-9,
                       "elements of sinkd");
        assert_true(number(r, "cpu_seconds") >= 0);
        assert_true(number(r, "forward_seconds") > 0 && number(r, "backward_seconds") > 0);
        loss[ranks] = number(r, "loss");
        assert_true(loss[ranks] > 0 && loss[ranks] < 2);
        json_decref(r);
        r = run_json(ranks,
                     "bench sinkhorn --json n=9 m=5 epsilon=0.1 iterations=3 repeats=2 threads=2");
        check_common(r, "sinkhorn", "elements/s", ranks);
        bk_check_error(fabs(number(r, "rate") * number(r, "seconds") / (9 * 5 * 3) - 1.0), 1e-9,
                       "elements of sinkhorn");
        json_decref(r);
    }
    bk_check_error(fabs(loss[2] / loss[1] - 1.0), 1e-6, "loss on two ranks");
}

/* 4 B H D FLOP for each pair that is seen, 3.5 times that with backward. */
static void attention_counts_its_pairs(void **state)
{
    (void)state;
    for (int causal = 0; causal < 2; causal++)
        for (int backward = 0; backward < 2; backward++) {
            char arguments[256];
            snprintf(arguments, sizeof arguments,
                     "bench attention --json batch=2 heads=3 length=5 width=4 causal=%s "
                     "backward=%s threads=2 repeats=3",
                     causal ? "true" : "false", backward ? "true" : "false");
            json_t *r = run_json(1, arguments);
            double flops = 4.0 * 2 * 3 * 4 * (causal ? 15 : 25) * (backward ? 3.5 : 1.0);
            check_common(r, "attention", "FLOP/s", 1);
            bk_check_error(fabs(number(r, "rate") * number(r, "seconds") / flops - 1.0), 1e-9,
                           "FLOP");
            assert_true(number(r, "peak_bytes") > 1e6);
            json_decref(r);
        }
}

static void lists_and_helps(void **state)
{
    char out[1 << 14];
    (void)state;
    json_t *list = run_json(1, "bench --json");
    for (int i = 0; bk_benches[i]; i++) {
        const json_t *entry = json_array_get(list, (size_t)i);
        assert_string_equal(json_string_value(json_object_get(entry, "name")), bk_benches[i]->name);
        assert_true(json_is_array(json_object_get(entry, "options")));
    }
    json_decref(list);
    assert_int_equal(run(1, "bench", out, sizeof out), 0);
    assert_non_null(strstr(out, "step"));
    assert_int_equal(run(1, "bench step --help", out, sizeof out), 0);
    assert_non_null(strstr(out, "vocabulary"));
}

static void wrong_usage(void **state)
{
    static const char *const wrong[] = {
        "bench stop",
        "bench step batches=4",
        "bench step layout=gpt3",
        "bench step batch=-1",
        "bench step gemm=mkl",
        "bench step model.layer=2",
        "bench step config=none.yaml",
        "bench step layout=gpt2 config=none.yaml",
        "bench step vocabulary=5 config=none.yaml",
        "bench step parallel.lanes=3",
        "bench step distill=tv",
        "bench step distill=kl config=none.yaml",
        "bench step distill=kl loss.0.kind=hidden",
        "bench step distill=kl distill.teacher=runs/teacher",
        "bench step distill=kl distill.placement=split distill.teacher_ranks=1",
        "bench gemm model.layers=2",
        "bench gemm m=0",
        "bench moe k=9",
        "bench moe router=ssrr",
        "bench moe router=topk probability=0.5",
        "bench moe router=bias solver=newton",
        "bench moe router=ssr probability=2",
        "bench moe model.moe.experts=4",
        "bench sinkd rows=0",
        "bench sinkd epsilon=0",
        "bench sinkd temperature=1",
        "bench sinkd gradient=none",
        "bench sinkd debias=true top_k=3",
        "bench sinkhorn iterations=0",
        "bench sinkhorn rows=4",
        "bench attention kind=sofmax",
        "bench attention batch=0",
        "bench allreduce algorithm=tree",
        "bench allreduce bytes=0",
        "bench checkpoint path=/proc/none",
        "bench machine path=/proc/none megabytes=1 repeats=1",
        "bench step gemm",
        "bench batch=4",
        "bench step --out x",
    };
    char out[4096];
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int status = run(1, wrong[i], out, sizeof out);
        if (status != BK_USAGE || out[0])
            fail_msg("status %d of birkhoff %s: %s", status, wrong[i], out);
    }
}

static int make_directory(void **state)
{
    (void)state;
    return mkdtemp(directory) ? 0 : -1;
}

static int remove_directory(void **state)
{
    char command[256];
    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", directory);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(step_of_the_layout),
        cmocka_unit_test(profile_names_the_ops),
        cmocka_unit_test(step_with_a_teacher),
        cmocka_unit_test(step_of_a_configuration),
        cmocka_unit_test(libraries_are_chosen),
        cmocka_unit_test(kernels_and_machine),
        cmocka_unit_test(mixture_of_experts),
        cmocka_unit_test(transport_of_a_router),
        cmocka_unit_test(solvers_of_a_router),
        cmocka_unit_test(sinkd_in_its_modes),
        cmocka_unit_test(sinkd_and_sinkhorn),
        cmocka_unit_test(attention_counts_its_pairs),
        cmocka_unit_test(lists_and_helps),
        cmocka_unit_test(wrong_usage),
        cmocka_unit_test(allreduce_by_each_algorithm),
        cmocka_unit_test(checkpoint_on_a_disk),
        cmocka_unit_test(step_counts_its_messages),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
