#include "dist/stall.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- the file: lines of "key value", filled up with blanks so that no write leaves an old end
 * ---- */

enum { BYTES = 512, FIELDS = 12 };

bool bk_stall_write(int file, const bk_stall_state *s)
{
    char text[BYTES + 1];
    int length = snprintf(text, sizeof text,
                          "rank %d\nhost %s\nbeat %" PRId64 "\nidle %.2f\nphase %s\nsegment %s\n"
                          "step %" PRId64 "\nwaits %d\ncall %s\ncomm %s\nbytes %" PRId64
                          "\nsequence %" PRId64 "\n",
                          s->rank, s->host, s->beat, s->idle, s->phase, s->segment, s->step,
                          s->waits, s->call, s->comm, s->bytes, s->sequence);
    memset(text + length, ' ', (size_t)(BYTES - length));
    text[BYTES - 1] = '\n';
    return pwrite(file, text, BYTES, 0) == BYTES;
}

static bool parse(const char *text, bk_stall_state *s)
{
    int waits = 0;
    int fields =
        sscanf(text,
               "rank %d\nhost %63[^\n]\nbeat %" SCNd64
               "\nidle %lf\nphase %15[^\n]\nsegment %63[^\n]\nstep %" SCNd64
               "\nwaits %d\ncall %31[^\n]\ncomm %15[^\n]\nbytes %" SCNd64 "\nsequence %" SCNd64,
               &s->rank, s->host, &s->beat, &s->idle, s->phase, s->segment, &s->step, &waits,
               s->call, s->comm, &s->bytes, &s->sequence);
    s->waits = waits != 0;
    return fields == FIELDS;
}

void bk_stall_read(const char *directory, int rank, bk_stall_state *out)
{
    char path[4096], text[BYTES + 1] = "";
    *out = (bk_stall_state){0};
    snprintf(path, sizeof path, "%s/rank-%d.state", directory, rank);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file >= 0 && read(file, text, BYTES) == BYTES)
        out->known = parse(text, out) && out->rank == rank;
    if (file >= 0)
        close(file);
    out->rank = rank;
}

/* ---- the line ---- */

typedef struct line {
    char *text;
    size_t room, used;
} line;

static void say(line *l, const char *format, ...) __attribute__((__format__(__printf__, 2, 3)));
static void say(line *l, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(l->text + l->used, l->room - l->used, format, arguments);
    va_end(arguments);
    l->used += (size_t)length;
    if (l->used >= l->room)
        l->used = l->room - 1;
}

static void say_bytes(line *l, int64_t bytes)
{
    if (bytes < 1000)
        say(l, " (%" PRId64 " B)", bytes);
    else if (bytes < 1000000)
        say(l, " (%.1f kB)", 1e-3 * (double)bytes);
    else
        say(l, " (%.1f MB)", 1e-6 * (double)bytes);
}

static void say_call(line *l, const bk_stall_state *s)
{
    say(l, "%s %" PRId64 " on %s", s->call, s->sequence, s->comm);
    say_bytes(l, s->bytes);
}

static bool same_call(const bk_stall_state *a, const bk_stall_state *b)
{
    return strcmp(a->call, b->call) == 0 && strcmp(a->comm, b->comm) == 0 &&
           a->sequence == b->sequence;
}

static bool is_waiting(const bk_stall_state *s)
{
    return s->known && !s->stale && s->waits;
}

/* The ranks that wait in the same call as `first`; 0: a rank before it does too, and was named. */
static int say_group(line *l, const bk_stall_state *all, int size, int first)
{
    enum { MOST = 16 };
    int count = 0;
    for (int r = 0; r < first; r++)
        if (is_waiting(&all[r]) && same_call(&all[r], &all[first]))
            return 0;
    for (int r = first; r < size; r++)
        count += is_waiting(&all[r]) && same_call(&all[r], &all[first]);
    say(l, count > 1 ? "; ranks" : "; rank");
    for (int r = first, named = 0; r < size && named < MOST; r++)
        if (is_waiting(&all[r]) && same_call(&all[r], &all[first])) {
            say(l, " %d", r);
            named++;
        }
    if (count > MOST)
        say(l, " and %d more", count - MOST);
    say(l, count > 1 ? " wait in " : " waits in ");
    say_call(l, &all[first]);
    return count;
}

/* At most a few groups: a long line helps nobody. */
static void say_waiting(line *l, const bk_stall_state *all, int size)
{
    enum { GROUPS = 4 };
    for (int r = 0, groups = 0; r < size && groups < GROUPS; r++)
        if (is_waiting(&all[r]))
            groups += say_group(l, all, size, r) > 0;
}

static void say_unknown(line *l, const bk_stall_state *all, int size)
{
    int count = 0;
    for (int r = 0; r < size; r++)
        count += !all[r].known;
    if (count > 0)
        say(l, "; %d of %d ranks left no state", count, size);
}

static int culprit(const bk_stall_state *all, int size)
{
    for (int r = 0; r < size; r++)
        if (all[r].known && all[r].stale)
            return r;
    for (int r = 0; r < size; r++)
        if (all[r].known && !all[r].waits)
            return r;
    return -1;
}

static void say_culprit(line *l, const bk_stall_state *s, double seconds)
{
    say(l, "rank %d on node %s stands in %s", s->rank, s->host, s->phase);
    if (strcmp(s->segment, "-") != 0)
        say(l, " of %s", s->segment);
    say(l, ", step %" PRId64 ", for %.0f s", s->step, s->stale ? seconds : s->idle);
    if (s->waits) {
        say(l, ", in ");
        say_call(l, s);
    }
    if (s->stale)
        say(l, " (its process does not run)");
}

void bk_stall_text(const bk_stall_state *all, int size, double seconds, char *text, size_t room)
{
    line l = {text, room, 0};
    int rank = culprit(all, size);
    if (rank >= 0)
        say_culprit(&l, &all[rank], seconds);
    else
        say(&l, "no rank goes on for %.0f s", seconds);
    say_waiting(&l, all, size);
    say_unknown(&l, all, size);
}
