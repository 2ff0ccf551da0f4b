/* Operators <loss>: the scalar loss of rows of logits, rows split over the ranks. */
#include "losses/loss.h"

#include "dist/collective.h"
#include "jobs/op/op.h"

#include <string.h>

typedef struct loss_settings {
    bk_operator_settings base;
} loss_settings;

typedef struct group_settings {
    bk_operator_settings base;
    bool plan;
} group_settings;

static const bk_option settings[] = {
    BK_OPERATOR_DTYPE(loss_settings),
    BK_OPTION_END,
};

static const bk_option settings_with_groups[] = {
    BK_OPERATOR_DTYPE(group_settings),
    BK_OPTION_BOOL(group_settings, plan, false, "group=global: write plan and cost, too"),
    BK_OPTION_END,
};

static const char *const training[] = {"temperature_end", NULL};

/* ---- checks ---- */

static const bk_loss_kind *kind_of(const bk_operator_call *c)
{
    return c->op.plug_in;
}

static bool has_groups(const bk_loss_kind *kind)
{
    return (kind->flags & BK_LOSS_GROUPS) != 0;
}

static bool wants_plan(const bk_operator_call *c)
{
    return has_groups(kind_of(c)) && ((const group_settings *)c->own)->plan;
}

/* The value of the kind's option `group`. */
static const char *group_of(const bk_operator_call *c)
{
    const bk_option *o = c->op.options;
    while (strcmp(o->name, "group") != 0)
        o++;
    return *(const char *const *)(const void *)((const char *)c->config + o->offset);
}

static bk_status check_groups(bk_operator_call *c)
{
    const char *group = group_of(c);
    bool sequence = strcmp(group, "sequence") == 0;
    if (strcmp(group, "lane") == 0)
        return bk_fail(BK_USAGE,
                       "group=lane acts in training only (birkhoff op %s): use global, "
                       "sequence or a number of rows",
                       c->op.name);
    if (wants_plan(c) && strcmp(group, "global") != 0)
        return bk_fail(BK_USAGE, "plan=true needs group=global (group=%s): remove one", group);
    if (sequence && !bk_operator_given(c, "groups"))
        return bk_fail(BK_USAGE, "input groups is missing (%s): group=sequence reads it", c->in);
    if (!sequence && bk_operator_given(c, "groups"))
        return bk_operator_refuse_input(c, "groups", "without group=sequence");
    return BK_OK;
}

static bk_status check(bk_operator_call *c)
{
    const bk_loss_kind *kind = kind_of(c);
    bool wide = ((const loss_settings *)c->own)->base.dtype == BK_OPERATOR_F64;
    if (kind->check)
        BK_TRY(kind->check(c->config, wide ? BK_F64 : BK_F32));
    return has_groups(kind) ? check_groups(c) : BK_OK;
}

static bk_status examine_labels(const bk_operator_call *c)
{
    const bk_tensor *labels = bk_operator_input(c, "labels"), *mask = bk_operator_input(c, "mask");
    int64_t classes = c->axis['V'];
    for (int64_t i = 0; labels && i < bk_operator_rows(c); i++) {
        int32_t label = bk_i32(labels)[i];
        if ((label < -1 || label >= classes) && (!mask || bk_i32(mask)[i] != 0))
            return bk_fail(BK_INPUT,
                           "label %d of row %lld is none of %lld classes (%s): use 0 to %lld, or "
                           "-1 for ignored",
                           label, (long long)(bk_operator_first_row(c) + i), (long long)classes,
                           c->in, (long long)classes - 1);
    }
    return BK_OK;
}

static bk_status examine(const bk_operator_call *c)
{
    BK_TRY(bk_operator_examine_finite(c, "logits"));
    BK_TRY(bk_operator_examine_finite(c, "student"));
    BK_TRY(bk_operator_examine_finite(c, "teacher"));
    return examine_labels(c);
}

/* ---- run ---- */

/* Rows that count, over all ranks. */
static int64_t count_rows(const bk_operator_call *c, const bk_loss_args *a)
{
    int64_t rows = 0;
    for (int64_t i = 0; i < bk_operator_rows(c); i++)
        rows += (!a->valid || a->valid[i] != 0) && (!a->labels || a->labels[i] >= 0);
    bk_sum_i64(c->world->loss, 1, &rows);
    return rows;
}

static const int32_t *integers(const bk_operator_call *c, const char *name)
{
    const bk_tensor *x = bk_operator_input(c, name);
    return x ? bk_i32(x) : NULL;
}

/* Collective: the order runs over the ranks. */
static bk_status check_order(const bk_operator_call *c)
{
    const bk_tensor *own = bk_operator_input(c, "groups");
    if (!own)
        return BK_OK;
    const bk_tensor *all = bk_operator_gather(c->world->loss, c->arena, own);
    for (int64_t i = 1; i < bk_count(all); i++)
        if (bk_i32(all)[i] < bk_i32(all)[i - 1])
            return bk_fail(BK_INPUT, "groups decrease at row %lld (%s): sort the rows by group",
                           (long long)i, c->in);
    return BK_OK;
}

static void backward(bk_operator_call *c, bk_tensor *value)
{
    if (!c->backward)
        return;
    double *seed = bk_grad(&c->tape, value);
    for (int64_t l = 0; l < bk_count(value); l++)
        seed[l] = bk_operator_seed(c, "loss");
    bk_tape_backward_seeded(&c->tape);
}

static bk_status run(bk_operator_call *c)
{
    bk_tensor *plan = NULL, *cost = NULL, *logits = bk_operator_input(c, "logits");
    bk_loss_args args = {.logits = logits ? logits : bk_operator_input(c, "student"),
                         .teacher = bk_operator_input(c, "teacher"),
                         .labels = integers(c, "labels"),
                         .valid = integers(c, "mask"),
                         .sequence = integers(c, "groups"),
                         .comm = c->world->loss,
                         .config = c->config,
                         .plan = wants_plan(c) ? &plan : NULL,
                         .cost = wants_plan(c) ? &cost : NULL,
                         .attributes = &c->attributes};
    double loss;
    BK_TRY(check_order(c));
    args.rows = count_rows(c, &args);
    bk_attribute_set_integer(&c->attributes, "rows", args.rows);
    bk_tensor *value = kind_of(c)->apply(&c->tape, &args);
    bk_sum_lanes(c->world->loss, &c->tape.lanes, 1, value->data, &loss);
    bk_operator_output_scalar(c, "loss", loss);
    if (plan) {
        bk_operator_output(c, "plan", plan);
        bk_operator_output(c, "cost", cost);
    }
    backward(c, value);
    return BK_OK;
}

/* ---- the table ---- */

static void add_real(bk_operator_array *list, const char *name, bool differentiable)
{
    bk_operator_add(list, (bk_operator_array){.name = name,
                                              .axes = "BV",
                                              .type = BK_OPERATOR_REAL,
                                              .differentiable = differentiable});
}

static void add_integers(bk_operator_array *list, const char *name, bool optional)
{
    bk_operator_add(
        list, (bk_operator_array){
                  .name = name, .axes = "B", .type = BK_OPERATOR_INTEGER, .optional = optional});
}

static void add_arrays(const bk_loss_kind *kind, bk_operator *op)
{
    bool distils = (kind->flags & BK_LOSS_TEACHER) != 0;
    add_real(op->input, distils ? "student" : "logits", true);
    if (distils)
        add_real(op->input, "teacher", false);
    if (kind->flags & BK_LOSS_LABELS)
        add_integers(op->input, "labels", false);
    add_integers(op->input, "mask", true);
    bk_operator_add(op->output, (bk_operator_array){.name = "loss",
                                                    .axes = "",
                                                    .type = BK_OPERATOR_DOUBLE,
                                                    .differentiable = true,
                                                    .seed = 1.0});
    if (!has_groups(kind))
        return;
    add_integers(op->input, "groups", true);
    const char *const square[] = {"plan", "cost"};
    for (int i = 0; i < 2; i++)
        bk_operator_add(op->output, (bk_operator_array){.name = square[i],
                                                        .axes = "BB",
                                                        .type = BK_OPERATOR_DOUBLE,
                                                        .optional = true});
}

bool bk_operator_losses(int index, bk_arena *arena, bk_operator *op)
{
    const bk_loss_kind *kind = bk_losses[index];
    (void)arena;
    if (!kind)
        return false;
    *op =
        (bk_operator){.name = kind->name,
                      .summary = kind->summary,
                      .kind = kind->name,
                      .rows = 'B',
                      .own_options = has_groups(kind) ? settings_with_groups : settings,
                      .own_size = has_groups(kind) ? sizeof(group_settings) : sizeof(loss_settings),
                      .options = kind->options,
                      .size = kind->config_size,
                      .plug_in = kind,
                      .training = training,
                      .check = check,
                      .examine = examine,
                      .run = run};
    add_arrays(kind, op);
    return true;
}
