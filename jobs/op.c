/* birkhoff op: one operator forward and backward, from file to file. */
#include "jobs/op/op.h"

#include "core/blas.h"
#include "core/log.h"
#include "dist/agree.h"
#include "dist/topology.h"
#include "io/files.h"
#include "jobs/options.h"

#include <stdio.h>
#include <string.h>

enum { OPERATORS_MAX = 127, OPTIONS_MAX = 127 };

static bk_operator_family *const families[] = {
    bk_operator_losses,     bk_operator_transfers,  bk_operator_routers,    bk_operator_moe,
    bk_operator_attentions, bk_operator_reductions, bk_operator_transports, NULL};

/* Operator number `index` over all families. */
static bool operator_at(int index, bk_arena *arena, bk_operator *op)
{
    for (int f = 0; families[f]; f++)
        for (int i = 0;; i++) {
            *op = (bk_operator){0};
            if (!families[f](i, arena, op))
                break;
            if (index-- == 0)
                return true;
        }
    return false;
}

static bk_status find_operator(bk_arena *arena, const char *name, bk_operator *op)
{
    const char *names[OPERATORS_MAX + 1] = {0};
    for (int i = 0; i < OPERATORS_MAX && operator_at(i, arena, op); i++) {
        if (strcmp(op->name, name) == 0)
            return BK_OK;
        names[i] = op->name;
    }
    const char *near = bk_nearest(name, names);
    return bk_fail(BK_USAGE, "unknown operator '%s'%s%s%s: birkhoff op --list shows them", name,
                   near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

/* ---- pages ---- */

static void print_array(const bk_operator_array *a)
{
    printf("%s", a->name);
    for (const char *axis = a->axes; *axis; axis++)
        printf("%c%c", axis == a->axes ? '[' : ',', *axis);
    printf("%s%s%s", *a->axes ? "]" : "", a->type == BK_OPERATOR_INTEGER ? " integer" : "",
           a->optional ? " (optional)" : "");
}

static void print_arrays(const char *head, const bk_operator_array *list)
{
    printf("  %-8s ", head);
    for (const bk_operator_array *a = list; a->type; a++) {
        print_array(a);
        printf("%s", a[1].type ? ", " : "\n");
    }
}

static void print_gradients(const bk_operator *op)
{
    const char *between = "";
    printf("  %-8s ", "gradient");
    for (const bk_operator_array *a = op->output; a->type; a++)
        if (a->differentiable) {
            printf("%sgrad/%s", between, a->name);
            between = ", ";
        }
    between = *between ? " -> " : "none";
    for (const bk_operator_array *a = op->input; a->type; a++)
        if (a->differentiable) {
            printf("%sgrad/%s", between, a->name);
            between = ", ";
        }
    printf("%s\n", strcmp(between, "none") == 0 ? between : "");
}

static bool in_training_only(const bk_operator *op, const char *option)
{
    for (int i = 0; op->training && op->training[i]; i++)
        if (strcmp(op->training[i], option) == 0)
            return true;
    return false;
}

/* Both tables as one, without what acts in training only. */
static const bk_option *all_options(bk_arena *arena, const bk_operator *op)
{
    const bk_option *tables[] = {op->own_options, op->options};
    bk_option *all = BK_ZNEW(arena, bk_option, OPTIONS_MAX + 1), *next = all;
    for (int i = 0; i < 2; i++)
        for (const bk_option *o = tables[i]; o && o->name; o++) {
            BK_ASSERT(next < all + OPTIONS_MAX, "%s has too many options", op->name);
            if (!in_training_only(op, o->name))
                *next++ = *o;
        }
    return all;
}

static void print_operator(bk_arena *arena, const bk_operator *op)
{
    printf("%s: %s\n", op->name, op->summary);
    print_arrays("inputs", op->input);
    print_arrays("outputs", op->output);
    print_gradients(op);
    bk_options_print(stdout, all_options(arena, op));
}

static void print_list(bk_arena *arena)
{
    bk_operator op;
    for (int i = 0; operator_at(i, arena, &op); i++) {
        printf("%s", i > 0 ? "\n" : "");
        print_operator(arena, &op);
    }
}

static void print_help(bk_arena *arena, const bk_operator *op)
{
    printf("usage: birkhoff op %s --in IN.h5 --out OUT.h5 [key=value ...]\n\n", op->name);
    print_operator(arena, op);
}

/* ---- options ---- */

/* The key=value arguments as a map; with them `choose` completes the operator. */
static bk_status take_options(bk_context *context, bk_operator *op, bk_value **given)
{
    *given = bk_value_new(context->arena, BK_MAP, "command line", 0);
    for (int i = 0; i < context->overrides; i++) {
        bk_override *o = &context->override[i];
        if (in_training_only(op, o->path))
            return bk_fail(BK_USAGE, "%s acts in training only (birkhoff op %s): remove it",
                           o->path, op->name);
        BK_TRY(bk_value_set(context->arena, *given, o->path, o->text));
        o->used = true;
    }
    return op->choose ? op->choose(*given, op) : BK_OK;
}

static bk_status read_options(bk_operator_call *c, bk_value *given)
{
    static const bk_option none[] = {BK_OPTION_END};
    const bk_operator *op = &c->op;
    void *own = bk_arena_zalloc(c->arena, op->own_size),
         *config = bk_arena_zalloc(c->arena, op->size + 1);
    const bk_option *tables[] = {op->own_options, op->options ? op->options : none, NULL};
    BK_TRY(bk_options_read(tables[0], own, given, op->name, c->arena));
    BK_TRY(bk_options_read(tables[1], config, given, op->name, c->arena));
    BK_TRY(bk_options_unknown(given, op->name, tables, NULL));
    c->own = own;
    c->config = config;
    return BK_OK;
}

/* ---- the call ---- */

static void open_tape(bk_operator_call *c)
{
    const bk_operator_settings *settings = c->own;
    bool wide = c->op.always_double || settings->dtype == BK_OPERATOR_F64;
    c->tape = (bk_tape){.arena = bk_arena_new("step"),
                        .scratch = bk_arena_new("scratch"),
                        .dtype = wide ? BK_F64 : BK_F32,
                        .recording = true};
}

static bk_status check_files(const char *in, const char *out)
{
    if (bk_same_file(in, out))
        return bk_fail(BK_USAGE, "input and output are one file (%s): name another output", in);
    return bk_check_output(out);
}

static bk_status work(bk_operator_call *c, const char *out)
{
    const bk_comm *ctl = c->world->ctl;
    BK_TRY(bk_agree(ctl, c->world->rank == 0 ? check_files(c->in, out) : BK_OK));
    BK_TRY(bk_agree(ctl, bk_operator_read(c)));
    c->tape.recording = c->backward;
    BK_TRY(bk_agree(ctl, c->op.run(c)));
    return bk_operator_write(c, out);
}

static bk_status call(bk_context *context, bk_operator_call *c)
{
    bk_world *world;
    BK_TRY(bk_blas_setup(bk_topology_threads(), BK_GEMM_AUTO));
    BK_TRY(bk_world_open(context->arena, 1, &world));
    c->world = world;
    open_tape(c);
    bk_status status = work(c, context->out);
    bk_arena_free(c->tape.arena);
    bk_arena_free(c->tape.scratch);
    bk_world_close(world);
    return status;
}

static bk_status run_operator(bk_context *context)
{
    bk_operator_call *c = BK_ZNEW(context->arena, bk_operator_call, 1);
    bk_value *given;
    c->arena = context->arena;
    c->in = context->in;
    memset(c->axis, -1, sizeof c->axis); /* every axis -1 */
    BK_TRY(find_operator(context->arena, context->argv[0], &c->op));
    BK_TRY(take_options(context, &c->op, &given));
    if (context->help) {
        if (bk_log_speaks())
            print_help(context->arena, &c->op);
        return BK_OK;
    }
    if (!context->in || !context->out)
        return bk_fail(BK_USAGE, "op %s names no %s: birkhoff op %s --in IN.h5 --out OUT.h5",
                       c->op.name, context->in ? "output (--out)" : "input (--in)", c->op.name);
    BK_TRY(read_options(c, given));
    return call(context, c);
}

static bk_status run(bk_context *context)
{
    if (context->list && context->argc == 0) {
        if (bk_log_speaks())
            print_list(context->arena);
        return BK_OK;
    }
    if (context->list || context->argc != 1)
        return bk_fail(BK_USAGE, "op takes one operator (%d given): birkhoff op --list shows them",
                       context->argc);
    return run_operator(context);
}

const bk_command bk_command_op = {
    .name = "op",
    .summary = "run one operator forward and backward on arrays in a file",
    .usage = "op NAME --in IN.h5 --out OUT.h5 [--help] [--list] [key=value ...]",
    .help =
        "IN.h5 holds one dataset for each input, named as the operator names it; grad/<output> is\n"
        "an incoming gradient.  OUT.h5 receives one dataset for each output, grad/<input> for "
        "each\n"
        "differentiable input, and root attributes.  Under mpirun the first axis is split over "
        "the\n"
        "ranks.  birkhoff op --list shows all operators, birkhoff op NAME --help one.\n",
    .run = run,
};
