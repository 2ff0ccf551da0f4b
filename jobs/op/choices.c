/* What experts chose, as arrays token[E,cap] and weight[E,cap] over all ranks. */
#include "jobs/op/routing.h"

#include <stdlib.h>
#include <string.h>

typedef struct choice {
    int64_t block, token;
    double weight;
} choice;

static int before(const void *a_, const void *b_)
{
    const choice *a = a_, *b = b_;
    if (a->block != b->block)
        return a->block < b->block ? -1 : 1;
    if (a->weight != b->weight)
        return a->weight > b->weight ? -1 : 1;
    return a->token < b->token ? -1 : a->token > b->token;
}

/* The block of scope=local that a token lies in; one for scope=global. */
static int64_t block_of(int64_t tokens, int64_t blocks, int64_t token)
{
    int64_t block = 0;
    while (block + 1 < blocks && token >= tokens * (block + 1) / blocks)
        block++;
    return block;
}

/* The choices of one expert out of index[T,E] and weight[T,E]; returns their number. */
static int64_t list_choices(const routing_choices *x, int64_t expert, const bk_tensor *index,
                            const bk_tensor *weight, choice *list)
{
    int64_t count = 0, tokens = bk_rows(index), experts = x->experts;
    for (int64_t t = 0; t < tokens; t++)
        if (bk_i32(index)[t * experts + expert] >= 0)
            list[count++] =
                (choice){block_of(tokens, x->blocks, t), t, bk_f64(weight)[t * experts + expert]};
    qsort(list, (size_t)count, sizeof *list, before);
    return count;
}

routing_choices routing_gather_choices(bk_operator_call *c, int64_t blocks, const bk_route *r)
{
    int64_t experts = c->axis['E'], own = bk_operator_rows(c), tokens = c->axis['T'];
    routing_choices x = {.experts = experts, .blocks = blocks};
    bk_tensor *index =
        bk_operator_gather(c->world->data, c->arena,
                           bk_tensor_wrap(c->arena, BK_I32, BK_SHAPE(own, experts), r->index));
    bk_tensor *weight =
        bk_operator_gather(c->world->data, c->arena,
                           bk_tensor_wrap(c->arena, BK_F64, BK_SHAPE(own, experts), r->weight));
    choice *list = BK_NEW(c->arena, choice, tokens);
    for (int64_t e = 0; e < experts; e++) {
        int64_t count = list_choices(&x, e, index, weight, list);
        if (e == 0) {
            x.capacity = count;
            x.token = bk_tensor_new(c->arena, BK_I32, BK_SHAPE(experts, count));
            x.weight = bk_tensor_new(c->arena, BK_F64, BK_SHAPE(experts, count));
        }
        BK_ASSERT(count == x.capacity, "experts took %lld and %lld tokens", (long long)x.capacity,
                  (long long)count);
        for (int64_t i = 0; i < count; i++) {
            ((int32_t *)x.token->data)[e * count + i] = (int32_t)list[i].token;
            ((double *)x.weight->data)[e * count + i] = list[i].weight;
        }
    }
    return x;
}

double *routing_spread_seed(const bk_operator_call *c, const routing_choices *x, const double *seed)
{
    int64_t first = bk_operator_first_row(c), own = bk_operator_rows(c);
    double *gw = BK_ZNEW(c->arena, double, own * x->experts);
    for (int64_t i = 0; i < x->experts * x->capacity; i++) {
        int64_t token = bk_i32(x->token)[i] - first;
        if (token >= 0 && token < own)
            gw[token * x->experts + i / x->capacity] = seed[i];
    }
    return gw;
}
