/* Which rows SinKD matches with which: global row numbers and groups. */
#include "dist/collective.h"
#include "losses/sinkd.h"

#include <string.h>

static void number_rows(bk_tape *t, bk_sinkd *s)
{
    int64_t rows = bk_rows(s->args.logits);
    s->place = BK_NEW(t->arena, int64_t, rows);
    s->lane_row = BK_NEW(t->arena, int64_t, t->lanes.count + 1);
    for (int64_t l = 0; l < t->lanes.count; l++) {
        int64_t last = bk_lane_row(&t->lanes, rows, l + 1);
        s->lane_row[l] = s->rows;
        for (int64_t i = bk_lane_row(&t->lanes, rows, l); i < last; i++)
            if (bk_row_valid(&s->args, i))
                s->place[s->rows++] = i;
    }
    s->lane_row[t->lanes.count] = s->rows;
}

static void count_rows(bk_tape *t, bk_sinkd *s)
{
    int size = bk_comm_size(s->args.comm);
    s->count = BK_NEW(t->arena, int64_t, size);
    bk_gather_counts(s->args.comm, s->rows, s->count);
    for (int r = 0; r < size; r++) {
        s->first += r < bk_comm_rank(s->args.comm) ? s->count[r] : 0;
        s->total += s->count[r];
    }
}

/* ---- groups ---- */

/* identity[total] of the rows of all ranks: rows of one lane, or of one sequence, have the same. */
static const int32_t *gather_identities(bk_tape *t, const bk_sinkd *s, bool by_lane)
{
    int size = bk_comm_size(s->args.comm);
    int32_t *own = BK_NEW(t->scratch, int32_t, s->rows);
    int32_t *all = BK_NEW(t->scratch, int32_t, s->total);
    int64_t *bytes = BK_NEW(t->scratch, int64_t, size);
    for (int64_t l = 0; l < t->lanes.count; l++)
        for (int64_t i = s->lane_row[l]; i < s->lane_row[l + 1]; i++)
            own[i] = by_lane            ? (int32_t)(t->lanes.first + l)
                     : s->args.sequence ? s->args.sequence[s->place[i]]
                                        : (int32_t)(s->first + i);
    for (int r = 0; r < size; r++)
        bytes[r] = s->count[r] * (int64_t)sizeof *own;
    bk_allgather_bytes(s->args.comm, own, s->rows * (int64_t)sizeof *own, bytes, all);
    return all;
}

static void cut_by_identity(bk_tape *t, bk_sinkd *s, bool by_lane)
{
    const int32_t *identity = gather_identities(t, s, by_lane);
    for (int64_t i = 1; i <= s->total; i++)
        if (i == s->total || identity[i] != identity[i - 1])
            s->start[++s->groups] = i;
}

/* ceil(B/size) groups whose sizes differ by at most one: no tiny last group. */
static void cut_by_size(bk_sinkd *s, int64_t size)
{
    s->groups = 1 + (s->total - 1) / size;
    for (int64_t g = 1; g <= s->groups; g++)
        s->start[g] = g * s->total / s->groups;
}

static void cut_groups(bk_tape *t, bk_sinkd *s)
{
    const char *group = s->config->group;
    int64_t size = s->total;
    s->start = BK_ZNEW(t->arena, int64_t, s->total + 1);
    if (s->total == 0)
        return;
    if (strcmp(group, "lane") == 0 || strcmp(group, "sequence") == 0)
        cut_by_identity(t, s, group[0] == 'l');
    else if (strcmp(group, "global") == 0 || bk_parse_i64(group, &size))
        cut_by_size(s, size);
}

/* The border between two ranks lies inside a group. */
static bool groups_straddle(const bk_sinkd *s)
{
    int64_t border = 0, g = 0;
    for (int r = 0; r < bk_comm_size(s->args.comm); r++) {
        border += s->count[r];
        while (s->start[g] < border)
            g++;
        if (s->start[g] != border)
            return true;
    }
    return false;
}

void bk_sinkd_span(const bk_sinkd *s, int r, int64_t *first, int64_t *last)
{
    int64_t from = 0, g = 0;
    for (int i = 0; i < r; i++)
        from += s->count[i];
    *first = *last = from;
    if (s->count[r] == 0)
        return;
    while (s->start[g + 1] <= from)
        g++;
    *first = s->start[g];
    while (s->start[g + 1] < from + s->count[r])
        g++;
    *last = s->start[g + 1];
}

void bk_sinkd_match_rows(bk_tape *t, bk_sinkd *s)
{
    bk_arena_mark mark = bk_arena_get_mark(t->scratch);
    int64_t last;
    number_rows(t, s);
    count_rows(t, s);
    cut_groups(t, s);
    bk_sinkd_span(s, bk_comm_rank(s->args.comm), &s->column, &last);
    s->columns = last - s->column;
    s->shared = groups_straddle(s);
    if (s->shared)
        bk_sinkd_plan_message(t, s);
    bk_arena_release(t->scratch, mark);
}
