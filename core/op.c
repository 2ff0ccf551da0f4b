#include "core/op.h"

#include "core/rng.h"
#include "core/sample.h"

#define OP(kind) extern const bk_op bk_op_##kind;
#include "core/ops/kinds.def"
#undef OP

#define OP(kind) &bk_op_##kind,
const bk_op *const bk_ops[] = {
#include "core/ops/kinds.def"
    NULL};
#undef OP

/* The rank's share of an input: its first axis, and the place of its first element. */
static int64_t share(const bk_tape *t, bk_tensor *x)
{
    if (x->dims == 0 || x->shape[0] != BK_SAMPLE_BATCH)
        return 0;
    int64_t one = bk_count(x) / BK_SAMPLE_BATCH;
    x->shape[0] = bk_lanes_samples(&t->lanes);
    return bk_lanes_first_sample(&t->lanes) * one;
}

bk_tensor *bk_sample_input(bk_sample *s, int dims, const int64_t *shape)
{
    BK_ASSERT(s->inputs < BK_SAMPLE_INPUTS, "too many sample inputs");
    bk_tensor *x = bk_tape_variable(s->tape, dims, shape);
    int64_t first = share(s->tape, x);
    int i = s->inputs++;
    s->input[i] = x;
    for (int64_t j = 0; j < bk_count(x); j++) {
        double value = bk_fill((uint64_t)(first + j), (uint64_t)i + 1, -1.0, 1.0);
        value += i == s->perturbed && j == s->element ? s->delta : 0.0;
        if (x->dtype == BK_F64)
            ((double *)x->data)[j] = value;
        else
            ((float *)x->data)[j] = (float)value;
    }
    return x;
}

static bk_tensor *integers(bk_sample *s, int dims, const int64_t *shape, uint64_t tag,
                           int64_t bound)
{
    bk_tensor *x = bk_tape_constant(s->tape, BK_I32, dims, shape);
    int64_t first = share(s->tape, x);
    int32_t *to = x->data;
    for (int64_t j = 0; j < bk_count(x); j++)
        to[j] = (int32_t)bk_fill((uint64_t)(first + j), tag, 0.0, (double)bound);
    return x;
}

bk_tensor *bk_sample_index(bk_sample *s, int64_t bound, int dims, const int64_t *shape)
{
    return integers(s, dims, shape, 101, bound);
}

bk_tensor *bk_sample_mask(bk_sample *s, int dims, const int64_t *shape)
{
    bk_tensor *x = integers(s, dims, shape, 102, 4);
    int32_t *to = x->data;
    for (int64_t j = 0; j < bk_count(x); j++)
        to[j] = to[j] != 0;
    return x;
}
