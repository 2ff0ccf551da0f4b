/* Operators <loss> of kinds that look at layers: one pair, samples split over the ranks. */
#include "losses/layers.h"

#include "dist/collective.h"
#include "jobs/op/op.h"

typedef struct transfer_settings {
    bk_operator_settings base;
} transfer_settings;

static const bk_option settings[] = {
    BK_OPERATOR_DTYPE(transfer_settings),
    BK_OPTION_END,
};

static const char *const training[] = {"layers", "projection", NULL};

static const bk_loss_kind *kind_of(const bk_operator_call *c)
{
    return c->op.plug_in;
}

/* The kind itself says what goes together: as two models of one layer. */
static bk_status check(bk_operator_call *c)
{
    bk_layer_plan plan;
    bk_layer_shape student = {.layers = 1, .width = c->axis['C'], .heads = c->axis['H']},
                   teacher = {.layers = 1, .width = c->axis['D'], .heads = c->axis['G']};
    bk_status status = kind_of(c)->plan(c->config, &student, &teacher, &plan);
    if (status != BK_OK)
        return bk_fail(BK_INPUT, "%s (%s)", bk_arena_strdup(c->arena, bk_status_text()), c->in);
    if (plan.project && !bk_operator_given(c, "w"))
        return bk_fail(BK_INPUT,
                       "the student is %lld wide, the teacher %lld (%s): give the map w[D,C]",
                       (long long)student.width, (long long)teacher.width, c->in);
    return BK_OK;
}

static bk_status examine(const bk_operator_call *c)
{
    BK_TRY(bk_operator_examine_finite(c, "student"));
    BK_TRY(bk_operator_examine_finite(c, "teacher"));
    return bk_operator_examine_finite(c, "w");
}

/* Real positions over all ranks. */
static int64_t count_positions(const bk_operator_call *c, const bk_tensor *mask)
{
    int64_t count = bk_operator_rows(c) * c->axis['N'];
    if (mask) {
        count = 0;
        for (int64_t i = 0; i < bk_count(mask); i++)
            count += bk_i32(mask)[i] != 0;
    }
    bk_sum_i64(c->world->loss, 1, &count);
    return count;
}

static bk_status run(bk_operator_call *c)
{
    bk_tensor *mask = bk_operator_input(c, "mask");
    bk_loss_layers layers = {.pairs = 1,
                             .student = {bk_operator_input(c, "student")},
                             .teacher = {bk_operator_input(c, "teacher")},
                             .weight = {bk_operator_input(c, "w")},
                             .mask = mask,
                             .positions = count_positions(c, mask)};
    bk_loss_args args = {.layers = &layers, .config = c->config, .comm = c->world->loss};
    bk_operator_output_lanes(c, "loss", kind_of(c)->apply(&c->tape, &args));
    bk_attribute_set_integer(&c->attributes, "rows", layers.positions);
    if (c->backward)
        bk_tape_backward_seeded(&c->tape);
    return BK_OK;
}

/* ---- the table ---- */

static void add_arrays(const bk_loss_kind *kind, bk_operator *op)
{
    bool matrices = (kind->flags & BK_LOSS_MATRICES) != 0;
    bk_operator_add(op->input, (bk_operator_array){.name = "student",
                                                   .axes = matrices ? "BHNN" : "BNC",
                                                   .type = BK_OPERATOR_REAL,
                                                   .differentiable = true});
    bk_operator_add(op->input, (bk_operator_array){.name = "teacher",
                                                   .axes = matrices ? "BGNN" : "BND",
                                                   .type = BK_OPERATOR_REAL});
    if (!matrices)
        bk_operator_add(op->input, (bk_operator_array){.name = "w",
                                                       .axes = "DC",
                                                       .type = BK_OPERATOR_REAL,
                                                       .optional = true,
                                                       .differentiable = true});
    bk_operator_add(op->input, (bk_operator_array){.name = "mask",
                                                   .axes = "BN",
                                                   .type = BK_OPERATOR_INTEGER,
                                                   .optional = true});
    bk_operator_add(op->output, (bk_operator_array){.name = "loss",
                                                    .axes = "",
                                                    .type = BK_OPERATOR_DOUBLE,
                                                    .differentiable = true,
                                                    .seed = 1.0});
}

bool bk_operator_transfers(int index, bk_arena *arena, bk_operator *op)
{
    int i = -1;
    (void)arena;
    do
        i++;
    while (bk_losses[i] && (!(bk_losses[i]->flags & BK_LOSS_LAYERS) || index-- > 0));
    const bk_loss_kind *kind = bk_losses[i];
    if (!kind)
        return false;
    *op = (bk_operator){.name = kind->name,
                        .summary = kind->summary,
                        .kind = kind->name,
                        .rows = 'B',
                        .own_options = settings,
                        .own_size = sizeof(transfer_settings),
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
