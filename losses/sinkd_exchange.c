/* What SinKD sends where groups straddle ranks: rows to the ranks that hold rows of the same group,
 * sums over the columns of such groups, and the transpose of a matrix. */
#include "core/vector.h"
#include "dist/collective.h"
#include "losses/sinkd.h"

#include <math.h>
#include <string.h>

/* ---- sums of columns ---- */

/* Rank of a global row. */
static int rank_of(const bk_sinkd *s, int64_t row)
{
    int r = 0;
    for (int64_t end = s->count[0]; row >= end; end += s->count[r])
        r++;
    return r;
}

static bool straddles(const bk_sinkd *s, int64_t group)
{
    return rank_of(s, s->start[group]) != rank_of(s, s->start[group + 1] - 1);
}

/* x[columns] -> the message's entries, `absent` where other ranks alone have rows. */
static void pack(const bk_sinkd_message *m, int64_t columns, double absent, const double *x,
                 double *packed)
{
    for (int64_t j = 0; j < m->count; j++)
        packed[j] = absent;
    for (int64_t j = 0; j < columns; j++)
        if (m->place[j] >= 0)
            packed[m->place[j]] = x[j];
}

static void unpack(const bk_sinkd_message *m, int64_t columns, const double *packed, double *x)
{
    for (int64_t j = 0; j < columns; j++)
        if (m->place[j] >= 0)
            x[j] = packed[m->place[j]];
}

/* The columns of groups that are this rank's alone stay here: other lanes would add zeros. */
static void sum_columns(void *context, const bk_lanes *lanes, int64_t n, const double *local,
                        double *out)
{
    bk_sinkd_message *m = context;
    bk_arena_mark mark = bk_arena_get_mark(m->scratch);
    int64_t length = m->count + 1;
    double *packed = BK_NEW(m->scratch, double, lanes->count *length),
           *sum = BK_NEW(m->scratch, double, length);
    for (int64_t l = 0; l < lanes->count; l++) {
        pack(m, n, 0.0, local + l * n, packed + l * length);
        packed[l * length + m->count] = l == 0 ? m->vote : 0.0;
    }
    bk_sum_lanes(m->comm, lanes, length, packed, sum);
    bk_lane_tree_values(lanes->count, n, local, out, m->scratch);
    unpack(m, n, sum, out);
    m->votes = sum[m->count];
    m->sunk = false;
    for (int64_t j = 0; j < m->count; j++)
        m->sunk = m->sunk || sum[j] < BK_SINKD_LEAST;
    bk_arena_release(m->scratch, mark);
}

static void max_columns(void *context, int64_t n, double *x)
{
    const bk_sinkd_message *m = context;
    bk_arena_mark mark = bk_arena_get_mark(m->scratch);
    double *packed = BK_NEW(m->scratch, double, m->count);
    pack(m, n, -INFINITY, x, packed);
    bk_max_f64(m->comm, m->count, packed);
    unpack(m, n, packed, x);
    bk_arena_release(m->scratch, mark);
}

void bk_sinkd_plan_message(bk_tape *t, bk_sinkd *s)
{
    bk_sinkd_message *m = s->message = BK_ZNEW(t->arena, bk_sinkd_message, 1);
    *m = (bk_sinkd_message){.place = BK_NEW(t->arena, int64_t, s->columns),
                            .comm = s->args.comm,
                            .scratch = t->scratch};
    for (int64_t g = 0; g < s->groups; g++) {
        bool sent = straddles(s, g);
        for (int64_t i = s->start[g]; i < s->start[g + 1]; i++) {
            if (i >= s->column && i < s->column + s->columns)
                m->place[i - s->column] = sent ? m->count : -1;
            m->count += sent;
        }
    }
    s->reducer = BK_NEW(t->arena, bk_reducer, 1);
    *s->reducer = (bk_reducer){.context = m, .sum_vector = sum_columns, .max = max_columns};
}

/* ---- rows ---- */

static int64_t overlap(int64_t a, int64_t b, int64_t c, int64_t d)
{
    int64_t from = a > c ? a : c, to = b < d ? b : d;
    return to > from ? to - from : 0;
}

void bk_sinkd_exchange(bk_tape *t, const bk_sinkd *s, size_t bytes, const void *own, void *held)
{
    int size = bk_comm_size(s->args.comm);
    int64_t *send = BK_NEW(t->scratch, int64_t, size), *receive = BK_NEW(t->scratch, int64_t, size);
    int64_t rows = 0, from = 0;
    for (int r = 0; r < size; from += s->count[r++]) {
        int64_t first, last;
        bk_sinkd_span(s, r, &first, &last);
        send[r] = overlap(first, last, s->first, s->first + s->rows);
        receive[r] = overlap(s->column, s->column + s->columns, from, from + s->count[r]);
        rows += send[r];
    }
    char *packed = bk_arena_alloc(t->scratch, (size_t)rows * bytes), *to = packed;
    for (int r = 0; r < size; r++) {
        int64_t first, last;
        bk_sinkd_span(s, r, &first, &last);
        first = first > s->first ? first - s->first : 0;
        memcpy(to, (const char *)own + (size_t)(send[r] > 0 ? first : 0) * bytes,
               (size_t)send[r] * bytes);
        to += (size_t)send[r] * bytes;
    }
    bk_alltoallv_rows(s->args.comm, bytes, packed, send, held, receive);
}

/* ---- transpose ---- */

/* Entries of x that rank r needs, rows of r's by own rows, appended to `out` (NULL: counted). */
static int64_t transposed_part(const bk_sinkd *s, double *const *x, int64_t from, int64_t to,
                               double *out)
{
    int64_t count = 0;
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
        int64_t first = s->column + b->column, last = first + b->columns;
        for (int64_t j = from > first ? from : first; j < (to < last ? to : last); j++)
            for (int64_t i = 0; i < b->rows; i++, count++)
                if (out)
                    out[count] = x[k][i * b->columns + j - first];
    }
    return count;
}

/* The same entries as they come from rank r: own rows by rows of r's. */
static int64_t take_part(const bk_sinkd *s, int64_t from, int64_t to, const double *in,
                         double *const *y)
{
    int64_t count = 0;
    for (int64_t k = 0; k < s->blocks; k++) {
        const bk_sinkhorn_block *b = &s->block[k];
        int64_t first = s->column + b->column, last = first + b->columns;
        for (int64_t i = 0; i < b->rows; i++)
            for (int64_t j = from > first ? from : first; j < (to < last ? to : last); j++)
                y[k][i * b->columns + j - first] = in[count++];
    }
    return count;
}

/* Ranks that take part, and the first row of each, ended by the end: one without messages. */
static int borders(bk_tape *t, const bk_sinkd *s, int64_t **border)
{
    int size = s->shared ? bk_comm_size(s->args.comm) : 1;
    int64_t *at = *border = BK_NEW(t->scratch, int64_t, size + 1);
    at[0] = s->shared ? 0 : s->first;
    for (int r = 0; r < size; r++)
        at[r + 1] = at[r] + (s->shared ? s->count[r] : s->rows);
    return size;
}

void bk_sinkd_transpose(bk_tape *t, const bk_sinkd *s, double *const *x, double *const *y)
{
    int64_t *border, all = 0;
    int size = borders(t, s, &border);
    int64_t *count = BK_NEW(t->scratch, int64_t, size); /* as many come from a rank as go to it */
    for (int r = 0; r < size; r++)
        all += count[r] = transposed_part(s, x, border[r], border[r + 1], NULL);
    double *send = BK_NEW(t->scratch, double, all), *to = send, *from = send;
    for (int r = 0; r < size; r++)
        to += transposed_part(s, x, border[r], border[r + 1], to);
    if (s->shared) {
        from = BK_NEW(t->scratch, double, all);
        bk_alltoallv_rows(s->args.comm, sizeof *send, send, count, from, count);
    }
    for (int r = 0; r < size; r++)
        from += take_part(s, border[r], border[r + 1], from, y);
}
