/* test: labels=unit,mpi timeout=300 */
/* birkhoff op: its pages, and what it refuses: the status, one line that says what, no output. */
#include "tests/support/op.h"

#include "core/option.h"
#include "losses/loss.h"
#include "models/attention.h"
#include "models/router.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bk_test_op op;

/* ---- pages ---- */

static char *page(const char *arguments)
{
    char command[512], *text = bk_arena_zalloc(op.arena, 1 << 16);
    snprintf(command, sizeof command, "'%s' op %s 2>&1", getenv("BIRKHOFF"), arguments);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    text[fread(text, 1, (1 << 16) - 1, pipe)] = '\0';
    assert_int_equal(pclose(pipe), 0);
    return text;
}

static void page_shows(const char *text, const char *what)
{
    if (!strstr(text, what))
        fail_msg("no '%s' in the page", what);
}

/* Every kind of every table, with its options. */
static void the_list_has_every_kind(void **state)
{
    const char *text = page("--list");
    (void)state;
    for (int i = 0; bk_losses[i]; i++)
        page_shows(text, bk_arena_printf(op.arena, "%s: ", bk_losses[i]->name));
    for (int i = 0; bk_routers[i]; i++)
        if (!(bk_routers[i]->flags & BK_ROUTER_BENCHMARK))
            page_shows(text, bk_arena_printf(op.arena, "router.%s: ", bk_routers[i]->name));
    for (int i = 0; bk_attentions[i]; i++)
        page_shows(text, bk_arena_printf(op.arena, "attention.%s: ", bk_attentions[i]->name));
    page_shows(text, "moe: ");
    page_shows(text, "reduce: ");
    page_shows(text, "sum: ");
    page_shows(text,
               "student[B,V], teacher[B,V] (optional), teacher_index[B,k] integer (optional)");
    page_shows(text, "student[B,N,C], teacher[B,N,D], w[D,C] (optional)");
    page_shows(text, "grad/out, grad/matrix -> grad/q, grad/k, grad/v");
}

static void help_shows_the_options(void **state)
{
    (void)state;
    for (int i = 0; bk_losses[i]; i++) {
        const char *text = page(bk_arena_printf(op.arena, "%s --help", bk_losses[i]->name));
        for (const bk_option *o = bk_losses[i]->options; o->name; o++)
            if (strcmp(o->name, "temperature_end") != 0 && strcmp(o->name, "layers") != 0 &&
                strcmp(o->name, "projection") != 0) /* act in training only */
                page_shows(text, o->name);
    }
    page_shows(page("moe --help router=ssr"), "probability");
}

/* ---- refusals ---- */

enum { ROWS = 5, CLASSES = 4 };

/* The teacher and another array of logits, which ends in `last`. */
static void put_logits(const char *name, double last)
{
    double x[ROWS * CLASSES];
    bk_test_op_renew(&op);
    for (int i = 0; i < ROWS * CLASSES; i++)
        x[i] = i % 7 - 3.0;
    bk_test_op_reals(&op, "teacher", BK_SHAPE(ROWS, CLASSES), x);
    x[ROWS * CLASSES - 1] = last;
    bk_test_op_reals(&op, name, BK_SHAPE(ROWS, CLASSES), x);
}

static void wrong_words_name_the_nearest(void **state)
{
    (void)state;
    put_logits("student", 0.0);
    bk_test_op_refuses(&op, 2, 1, "did you mean reverse_kl", "revers_kl");
    bk_test_op_refuses(&op, 2, 1, "did you mean temperature", "kl temprature=3");
    bk_test_op_refuses(&op, 2, 1, "acts in training only", "kl temperature_end=1");
    bk_test_op_refuses(&op, 2, 1, "group=lane acts in training only", "sinkd group=lane");
    bk_test_op_refuses(&op, 2, 1, "skew", "kl skew=1.5");
    bk_test_op_refuses(&op, 2, 1, "did you mean sum", "kl reduction=sun");
    bk_test_op_refuses(&op, 2, 1, "did you mean debias", "sinkd debais=true");
    bk_test_op_refuses(&op, 2, 1, "acts in training only", "hidden layers=last");
    bk_test_op_refuses(&op, 2, 1, "domain=direct of sinkd needs epsilon >= 0.025 in f32",
                       "sinkd domain=direct epsilon=0.02");
    bk_test_op_refuses(&op, 2, 2, "needs epsilon >= 0.003 in f64",
                       "sinkd domain=direct epsilon=0.002 dtype=f64");
    bk_test_op_refuses(&op, 2, 1, "dtype", "kl dtype=f16");
    bk_test_op_refuses(&op, 2, 3, "did you mean sinkd", "sinkdd");
}

static void inputs_must_be_the_right_ones(void **state)
{
    const int64_t two[ROWS] = {0, 0, 1, 1, 0}, three[3] = {1, 1, 1};
    (void)state;
    put_logits("students", 0.0);
    bk_test_op_refuses(&op, 2, 1, "input student is missing", "kl");
    put_logits("student", 0.0);
    bk_test_op_integers(&op, "labels", BK_SHAPE(ROWS), two);
    bk_test_op_refuses(&op, 2, 1, "labels is not read by kl", "kl");
    put_logits("student", 0.0);
    bk_test_op_integers(&op, "groups", BK_SHAPE(ROWS), two);
    bk_test_op_refuses(&op, 2, 1, "groups is not read", "sinkd");
    bk_test_op_refuses(&op, 3, 3, "groups decrease at row 4", "sinkd group=sequence");
    put_logits("student", 0.0);
    bk_test_op_refuses(&op, 2, 1, "input groups is missing", "sinkd group=sequence");
    bk_test_op_refuses(&op, 2, 1, "plan=true needs group=global", "sinkd group=2 plan=true");
    put_logits("student", 0.0);
    bk_test_op_integers(&op, "mask", BK_SHAPE(3), three);
    bk_test_op_refuses(&op, 3, 2, "mask has the shape [3]", "kl");
    put_logits("student", 0.0);
    bk_test_op_reals(&op, "grad/los", 0, NULL, &(double){1.0});
    bk_test_op_refuses(&op, 2, 1, "did you mean grad/loss", "kl");
}

static void values_must_be_usable(void **state)
{
    const int64_t labels[ROWS] = {0, 3, -1, 4, 0};
    (void)state;
    put_logits("student", NAN);
    bk_test_op_refuses(&op, 3, 1, "student is not finite in row 4", "kl");
    bk_test_op_refuses(&op, 3, 3, "student is not finite in row 4", "sinkd");
    bk_test_op_renew(&op);
    double x[ROWS * CLASSES] = {0};
    bk_test_op_reals(&op, "logits", BK_SHAPE(ROWS, CLASSES), x);
    bk_test_op_integers(&op, "labels", BK_SHAPE(ROWS), labels);
    bk_test_op_refuses(&op, 3, 2, "label 4 of row 3 is none of 4 classes", "cross_entropy");
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "logits", BK_SHAPE(ROWS, CLASSES), x);
    bk_test_op_reals(&op, "labels", BK_SHAPE(ROWS), x);
    bk_test_op_refuses(&op, 3, 1, "labels holds reals, integers are read", "cross_entropy");
    x[7] = 1.5;
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "x", BK_SHAPE(ROWS, CLASSES), x);
    bk_test_op_refuses(&op, 3, 2, "x has 1.5 in row 1", "sum method=fixed");
    bk_test_op_refuses(&op, 2, 1, "lanes=6 is no power of two", "sum method=lanes lanes=6");
    bk_test_op_refuses(&op, 2, 1, "x has 5 lanes", "reduce");
    bk_test_op_refuses(&op, 2, 1, "grad", "sum gradient=1");
}

static void routing_that_cannot_be(void **state)
{
    const double x[ROWS * CLASSES] = {1.0, NAN}, bias[CLASSES] = {0};
    (void)state;
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "logits", BK_SHAPE(ROWS, CLASSES), x);
    bk_test_op_run(&op, 2, "router.topk");
    assert_true(bk_test_op_attribute(&op, "nonfinite_logits") == 1.0);
    bk_test_op_refuses(&op, 2, 2, "k=5 of 4 experts", "router.topk k=5");
    bk_test_op_refuses(&op, 2, 1, "renormalize=true with k=1", "router.ssr k=1 renormalize=true");
    bk_test_op_refuses(&op, 2, 1, "probability", "router.topk probability=1");
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "logits", BK_SHAPE(ROWS, CLASSES), x);
    bk_test_op_reals(&op, "bias", BK_SHAPE(CLASSES), bias);
    bk_test_op_refuses(&op, 2, 1, "bias is not read by router.topk", "router.topk");
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "logits", BK_SHAPE(ROWS, CLASSES), x);
    bk_test_op_reals(&op, "noise", BK_SHAPE(ROWS, CLASSES), x);
    bk_test_op_refuses(&op, 2, 1, "noise is not read by router.topk with noise=none",
                       "router.topk");
    bk_test_op_refuses(&op, 2, 1, "did you mean sinkhorn", "moe router=sinkhorm");
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "x", BK_SHAPE(ROWS, CLASSES), x);
    bk_test_op_reals(&op, "gate", BK_SHAPE(2, CLASSES), x);
    bk_test_op_reals(&op, "w1", BK_SHAPE(2, 1, CLASSES), x);
    bk_test_op_reals(&op, "w2", BK_SHAPE(2, CLASSES, 1), x);
}

static void attention_that_cannot_be(void **state)
{
    const double x[24] = {0};
    (void)state;
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "q", BK_SHAPE(1, 2, 2, 3), x);
    bk_test_op_reals(&op, "k", BK_SHAPE(1, 2, 4, 3), x);
    bk_test_op_reals(&op, "v", BK_SHAPE(1, 2, 4, 3), x);
    bk_test_op_refuses(&op, 2, 1, "causal=true is not possible with cross attention",
                       "attention.softmax causal=true");
    bk_test_op_refuses(&op, 2, 1, "did you mean attention.softmax", "attention.sofmax");
    bk_test_op_renew(&op);
    bk_test_op_reals(&op, "q", BK_SHAPE(1, 2, 2, 3), x);
    bk_test_op_reals(&op, "k", BK_SHAPE(1, 2, 4, 3), x);
    bk_test_op_reals(&op, "v", BK_SHAPE(1, 2, 3, 3), x);
    bk_test_op_refuses(&op, 3, 2, "v has the shape [1, 2, 3, 3]", "attention.softmax");
}

static void files_must_be_there(void **state)
{
    (void)state;
    bk_test_op_renew(&op);
    bk_test_op_refuses(&op, 3, 2, "does not exist", "kl");
    FILE *file = fopen(op.in, "w");
    assert_non_null(file);
    fputs("no HDF5", file);
    fclose(file);
    bk_test_op_refuses(&op, 3, 1, "in.h5", "kl");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_list_has_every_kind),
        cmocka_unit_test(help_shows_the_options),
        cmocka_unit_test(wrong_words_name_the_nearest),
        cmocka_unit_test(inputs_must_be_the_right_ones),
        cmocka_unit_test(values_must_be_usable),
        cmocka_unit_test(routing_that_cannot_be),
        cmocka_unit_test(attention_that_cannot_be),
        cmocka_unit_test(files_must_be_there),
    };
    return bk_test_op_tests(&op, NULL, tests, sizeof tests / sizeof *tests);
}
