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

/* Instead of `teacher`: its k largest logits. */
static const char *const top_inputs[] = {"teacher_index", "teacher_value", "teacher_lse"};
enum { TOP_INPUTS = 3 };

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

static bool distils(const bk_loss_kind *kind)
{
    return (kind->flags & BK_LOSS_TEACHER) != 0;
}

/* Where the value of an option of the kind stands. */
static const void *option_of(const bk_operator_call *c, const char *name)
{
    const bk_option *o = c->op.options;
    while (strcmp(o->name, name) != 0)
        o++;
    return (const char *)c->config + o->offset;
}

static bk_status check_groups(bk_operator_call *c)
{
    const char *group = *(const char *const *)option_of(c, "group");
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

static int64_t top_k_of(const bk_operator_call *c)
{
    return *(const int64_t *)option_of(c, "top_k");
}

/* The teacher comes whole, or as its largest logits. */
static bk_status check_teacher(bk_operator_call *c)
{
    int given = 0;
    for (int i = 0; i < TOP_INPUTS; i++)
        given += bk_operator_given(c, top_inputs[i]);
    if (given == 0 && !bk_operator_given(c, "teacher"))
        return bk_fail(BK_USAGE,
                       "input teacher is missing (%s): give it, or teacher_index, teacher_value "
                       "and teacher_lse",
                       c->in);
    for (int i = 0; i < TOP_INPUTS && given > 0; i++) {
        if (bk_operator_given(c, "teacher") && bk_operator_given(c, top_inputs[i]))
            return bk_operator_refuse_input(c, top_inputs[i], "beside teacher");
        if (!bk_operator_given(c, top_inputs[i]))
            return bk_fail(BK_USAGE,
                           "input %s is missing (%s): teacher_index, teacher_value and teacher_lse "
                           "go together",
                           top_inputs[i], c->in);
    }
    const char *option = kind_of(c)->whole ? kind_of(c)->whole(c->config) : NULL;
    if (given > 0 && option)
        return bk_operator_refuse_input(c, top_inputs[0],
                                        bk_arena_printf(c->arena, "with %s", option));
    int64_t known = c->axis['k'], wanted = top_k_of(c);
    if (given > 0 && wanted > known && known < c->axis['V'])
        return bk_fail(BK_USAGE,
                       "top_k=%lld, but %lld classes of each teacher row are given (%s): lower it",
                       (long long)wanted, (long long)known, c->in);
    return BK_OK;
}

static bk_status check(bk_operator_call *c)
{
    const bk_loss_kind *kind = kind_of(c);
    bool wide = ((const loss_settings *)c->own)->base.dtype == BK_OPERATOR_F64;
    if (kind->check)
        BK_TRY(kind->check(c->config, wide ? BK_F64 : BK_F32));
    if (distils(kind))
        BK_TRY(check_teacher(c));
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

/* One row of teacher_index: classes, each once; seen[V] holds 1 + the last row that had it. */
static bk_status examine_index(const bk_operator_call *c, int64_t i, int64_t *seen)
{
    const int32_t *index = bk_i32(bk_operator_input(c, "teacher_index")) + i * c->axis['k'];
    long long row = (long long)(bk_operator_first_row(c) + i);
    for (int64_t j = 0; j < c->axis['k']; j++) {
        if (index[j] < 0 || index[j] >= c->axis['V'])
            return bk_fail(
                BK_INPUT,
                "teacher_index %d of row %lld is none of %lld classes (%s): use 0 to %lld",
                index[j], row, (long long)c->axis['V'], c->in, (long long)c->axis['V'] - 1);
        if (seen[index[j]] == i + 1)
            return bk_fail(BK_INPUT, "teacher_index has class %d twice in row %lld (%s)", index[j],
                           row, c->in);
        seen[index[j]] = i + 1;
    }
    return BK_OK;
}

/* A part of the given classes are the likeliest only where they are in order. */
static bk_status examine_order(const bk_operator_call *c, int64_t i)
{
    const bk_tensor *value = bk_operator_input(c, "teacher_value");
    int64_t k = c->axis['k'], wanted = top_k_of(c);
    for (int64_t j = i * k + 1; wanted > 0 && wanted < k && j < (i + 1) * k; j++)
        if (bk_real_get(value->dtype, value->data, j) >
            bk_real_get(value->dtype, value->data, j - 1))
            return bk_fail(BK_INPUT,
                           "teacher_value rises in row %lld (%s): top_k=%lld takes the first of "
                           "them, so sort the largest first",
                           (long long)(bk_operator_first_row(c) + i), c->in, (long long)wanted);
    return BK_OK;
}

static bk_status examine_top(const bk_operator_call *c)
{
    if (!bk_operator_input(c, "teacher_index"))
        return BK_OK;
    int64_t *seen = BK_ZNEW(c->arena, int64_t, c->axis['V']);
    for (int64_t i = 0; i < bk_operator_rows(c); i++) {
        BK_TRY(examine_index(c, i, seen));
        BK_TRY(examine_order(c, i));
    }
    BK_TRY(bk_operator_examine_finite(c, "teacher_value"));
    return bk_operator_examine_finite(c, "teacher_lse");
}

static bk_status examine(const bk_operator_call *c)
{
    BK_TRY(bk_operator_examine_finite(c, "logits"));
    BK_TRY(bk_operator_examine_finite(c, "student"));
    BK_TRY(bk_operator_examine_finite(c, "teacher"));
    BK_TRY(examine_top(c));
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

/* The teacher's largest logits as a loss takes them; NULL: not given. */
static const bk_teacher_top *teacher_top(bk_operator_call *c)
{
    const bk_tensor *index = bk_operator_input(c, "teacher_index");
    if (!index)
        return NULL;
    bk_teacher_top *top = BK_NEW(c->arena, bk_teacher_top, 1);
    const bk_tensor *value = bk_operator_input(c, "teacher_value");
    *top = (bk_teacher_top){.k = c->axis['k'],
                            .index = bk_i32(index),
                            .value = value->data,
                            .temperatures = 1,
                            .temperature = option_of(c, "temperature"),
                            .lse = bk_operator_input(c, "teacher_lse")->data,
                            .dtype = value->dtype};
    return top;
}

/* Collective.  Figures that travel as terms of weight 0. */
static void report_terms(bk_operator_call *c)
{
    for (int i = 0; i < c->tape.terms; i++) {
        double sum;
        bk_sum_lanes(c->world->loss, &c->tape.lanes, 1, c->tape.term[i].value->data, &sum);
        bk_attribute_set(&c->attributes, c->tape.term[i].name, sum);
    }
}

static bk_status run(bk_operator_call *c)
{
    bk_tensor *plan = NULL, *cost = NULL, *logits = bk_operator_input(c, "logits");
    bk_loss_args args = {.logits = logits ? logits : bk_operator_input(c, "student"),
                         .teacher = bk_operator_input(c, "teacher"),
                         .teacher_top = distils(kind_of(c)) ? teacher_top(c) : NULL,
                         .labels = integers(c, "labels"),
                         .valid = integers(c, "mask"),
                         .sequence = integers(c, "groups"),
                         .comm = c->world->loss,
                         .config = c->config,
                         .plan = wants_plan(c) ? &plan : NULL,
                         .cost = wants_plan(c) ? &cost : NULL,
                         .attributes = &c->attributes};
    BK_TRY(check_order(c));
    args.rows = count_rows(c, &args);
    bk_attribute_set_integer(&c->attributes, "rows", args.rows);
    bk_operator_output_lanes(c, "loss", kind_of(c)->apply(&c->tape, &args));
    report_terms(c);
    if (plan) {
        bk_operator_output(c, "plan", plan);
        bk_operator_output(c, "cost", cost);
    }
    if (c->backward)
        bk_tape_backward_seeded(&c->tape);
    return BK_OK;
}

/* ---- the table ---- */

static void add_input(bk_operator *op, const char *name, const char *axes, bk_operator_type type,
                      bool optional)
{
    bk_operator_add(op->input, (bk_operator_array){
                                   .name = name, .axes = axes, .type = type, .optional = optional});
}

static void add_arrays(const bk_loss_kind *kind, bk_operator *op)
{
    bk_operator_add(op->input, (bk_operator_array){.name = distils(kind) ? "student" : "logits",
                                                   .axes = "BV",
                                                   .type = BK_OPERATOR_REAL,
                                                   .differentiable = true});
    if (distils(kind)) {
        add_input(op, "teacher", "BV", BK_OPERATOR_REAL, true);
        add_input(op, "teacher_index", "Bk", BK_OPERATOR_INTEGER, true);
        add_input(op, "teacher_value", "Bk", BK_OPERATOR_REAL, true);
        add_input(op, "teacher_lse", "B", BK_OPERATOR_REAL, true);
    }
    if (kind->flags & BK_LOSS_LABELS)
        add_input(op, "labels", "B", BK_OPERATOR_INTEGER, false);
    add_input(op, "mask", "B", BK_OPERATOR_INTEGER, true);
    bk_operator_add(op->output, (bk_operator_array){.name = "loss",
                                                    .axes = "",
                                                    .type = BK_OPERATOR_DOUBLE,
                                                    .differentiable = true,
                                                    .seed = 1.0});
    if (!has_groups(kind))
        return;
    add_input(op, "groups", "B", BK_OPERATOR_INTEGER, true);
    const char *const square[] = {"plan", "cost"};
    for (int i = 0; i < 2; i++)
        bk_operator_add(op->output, (bk_operator_array){.name = square[i],
                                                        .axes = "BB",
                                                        .type = BK_OPERATOR_DOUBLE,
                                                        .optional = true});
}

bool bk_operator_losses(int index, bk_arena *arena, bk_operator *op)
{
    int i = -1;
    (void)arena;
    do /* kinds that look at layers have other arrays: transfers.c */
        i++;
    while (bk_losses[i] && (bk_losses[i]->flags & BK_LOSS_LAYERS || index-- > 0));
    const bk_loss_kind *kind = bk_losses[i];
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
