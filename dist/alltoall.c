#include "dist/alltoall.h"

#include "dist/collective.h"

#include <string.h>

typedef struct route {
    const bk_comm *comm;
    const int64_t *send, *receive;
} route;

static int64_t total(const bk_comm *comm, const int64_t *count)
{
    int64_t sum = 0;
    for (int r = 0; r < bk_comm_size(comm); r++)
        sum += count[r];
    return sum;
}

static void add_rows(const bk_tensor *x, void *into, const void *from)
{
    int64_t n = bk_count(x);
    for (int64_t i = 0; i < n; i++) {
        if (x->dtype == BK_F64)
            ((double *)into)[i] += ((const double *)from)[i];
        else
            ((float *)into)[i] += ((const float *)from)[i];
    }
}

static size_t row_bytes(const bk_tensor *x)
{
    return (size_t)bk_cols(x) * bk_dtype_size(x->dtype);
}

static void shape_rows(bk_node *n, int64_t rows)
{
    const bk_tensor *x = n->in[0];
    BK_ASSERT(x->dims == 2, "rows to exchange have %d axes", x->dims);
    n->out[0]->dtype = x->dtype;
    n->out[0]->dims = 2;
    n->out[0]->shape[0] = rows;
    n->out[0]->shape[1] = x->shape[1];
}

/* ---- all to all ---- */

static void alltoall_shape(bk_tape *t, bk_node *n)
{
    (void)t;
    const route *r = n->attributes;
    BK_ASSERT(total(r->comm, r->send) == bk_rows(n->in[0]), "counts do not cover the rows");
    shape_rows(n, total(r->comm, r->receive));
}

static void alltoall_forward(bk_tape *t, bk_node *n)
{
    (void)t;
    const route *r = n->attributes;
    bk_alltoallv_rows(r->comm, row_bytes(n->in[0]), n->in[0]->data, r->send, n->out[0]->data,
                      r->receive);
}

static void alltoall_backward(bk_tape *t, bk_node *n)
{
    const route *r = n->attributes;
    bk_tensor *x = n->in[0];
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    void *back = bk_arena_alloc(t->scratch, (size_t)bk_count(x) * bk_dtype_size(x->dtype));
    bk_alltoallv_rows(r->comm, row_bytes(x), n->out[0]->grad, r->receive, back, r->send);
    if (x->needs_grad)
        add_rows(x, bk_grad(t, x), back);
    bk_arena_release(t->scratch, mark);
}

static const bk_op alltoall = {.name = "alltoall_rows",
                               .shape = alltoall_shape,
                               .forward = alltoall_forward,
                               .backward = alltoall_backward,
                               .collective = true};

bk_tensor *bk_alltoall_rows(bk_tape *t, const bk_comm *comm, bk_tensor *x,
                            const int64_t *send_count, const int64_t *receive_count)
{
    route r = {comm, send_count, receive_count};
    return bk_apply(t, &alltoall, 1, &x, 1, &r, sizeof r)->out[0];
}

/* ---- all gather ---- */

static void allgather_shape(bk_tape *t, bk_node *n)
{
    (void)t;
    const route *r = n->attributes;
    BK_ASSERT(r->send[bk_comm_rank(r->comm)] == bk_rows(n->in[0]), "count of own rows");
    shape_rows(n, total(r->comm, r->send));
}

static void allgather_forward(bk_tape *t, bk_node *n)
{
    const route *r = n->attributes;
    const bk_tensor *x = n->in[0];
    int size = bk_comm_size(r->comm);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    int64_t *bytes = BK_NEW(t->scratch, int64_t, size);
    for (int i = 0; i < size; i++)
        bytes[i] = r->send[i] * (int64_t)row_bytes(x);
    bk_allgather_bytes(r->comm, x->data, bytes[bk_comm_rank(r->comm)], bytes, n->out[0]->data);
    bk_arena_release(t->scratch, mark);
}

/* Every rank sends each owner the gradient of the owner's rows; the owner adds them in rank order.
 */
static void allgather_backward(bk_tape *t, bk_node *n)
{
    const route *r = n->attributes;
    bk_tensor *x = n->in[0];
    int size = bk_comm_size(r->comm);
    int64_t mine = bk_rows(x);
    size_t bytes = (size_t)mine * row_bytes(x);
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    int64_t *receive = BK_NEW(t->scratch, int64_t, size);
    for (int i = 0; i < size; i++)
        receive[i] = mine;
    char *back = bk_arena_alloc(t->scratch, bytes * (size_t)size);
    bk_alltoallv_rows(r->comm, row_bytes(x), n->out[0]->grad, r->send, back, receive);
    for (int i = 0; i < size && x->needs_grad; i++)
        add_rows(x, bk_grad(t, x), back + bytes * (size_t)i);
    bk_arena_release(t->scratch, mark);
}

static const bk_op allgather = {.name = "allgather_rows",
                                .shape = allgather_shape,
                                .forward = allgather_forward,
                                .backward = allgather_backward,
                                .collective = true};

bk_tensor *bk_allgather_rows(bk_tape *t, const bk_comm *comm, bk_tensor *x, const int64_t *count)
{
    route r = {comm, count, NULL};
    return bk_apply(t, &allgather, 1, &x, 1, &r, sizeof r)->out[0];
}
