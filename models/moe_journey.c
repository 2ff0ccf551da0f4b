#include "models/moe_journey.h"

#include "core/log.h"
#include "core/parallel.h"
#include "core/vector.h"

/* ---- time ---- */

void bk_moe_clock_start(bk_moe_clock *c)
{
    c->last = bk_seconds();
}

void bk_moe_clock_lap(bk_moe_clock *c, bk_moe_phase phase)
{
    double now = bk_seconds();
    c->seconds[phase] += now - c->last;
    c->last = now;
}

/* ---- room ---- */

static size_t row_bytes(const bk_journey *j, bk_dtype dtype)
{
    return (size_t)j->width * bk_dtype_size(dtype);
}

static char *rows(const bk_journey *j, bk_arena *arena, int64_t count, bk_dtype dtype)
{
    return bk_arena_alloc(arena, (size_t)count * row_bytes(j, dtype));
}

static bool alone(const bk_journey *j)
{
    return bk_comm_size(j->dispatch->ep) == 1;
}

void bk_journey_pack(bk_tape *t, bk_journey *j, bk_arena *keep)
{
    bool stays = alone(j) && j->wire_there == j->there;
    j->packed = rows(j, stays ? keep : t->scratch, j->dispatch->sent, j->wire_there);
}

/* On one rank nothing moves: what arrives is what was packed, what returns the result. */
static void open_alone(bk_tape *t, bk_journey *j, bk_arena *keep)
{
    int64_t count = j->dispatch->sent;
    j->arriving = j->packed;
    j->arrived = j->wire_there == j->there ? j->packed : rows(j, keep, count, j->there);
    j->result = j->returned = rows(j, keep, count, j->home);
    j->leaving = j->returning =
        j->wire_home == j->home ? j->result : rows(j, t->scratch, count, j->wire_home);
}

void bk_journey_open(bk_tape *t, bk_journey *j, bk_arena *keep)
{
    const bk_dispatch *d = j->dispatch;
    bool short_there = j->wire_there != j->there, short_home = j->wire_home != j->home;
    j->going = BK_ZNEW(t->scratch, bk_exchange *, d->chunks);
    if (alone(j)) {
        open_alone(t, j, keep);
        return;
    }
    j->arrived = rows(j, keep, d->received, j->there);
    j->arriving = short_there ? rows(j, t->scratch, d->received, j->wire_there) : j->arrived;
    if (!j->returned)
        j->returned = rows(j, keep, d->sent, j->home);
    j->returning = short_home ? rows(j, t->scratch, d->sent, j->wire_home) : j->returned;
    j->result = rows(j, t->scratch, d->received, j->home);
    j->leaving = short_home ? rows(j, t->scratch, d->received, j->wire_home) : j->result;
}

/* ---- the wire ---- */

typedef struct conversion {
    const bk_journey *journey;
    bool widen;
    bk_dtype dtype; /* of the long rows */
    const char *from;
    char *to;
} conversion;

static void convert_rows(void *context, int64_t first, int64_t last)
{
    const conversion *c = context;
    const bk_vector_kernels *vector = bk_vector(c->dtype);
    size_t from = row_bytes(c->journey, c->widen ? BK_BF16 : c->dtype);
    size_t to = row_bytes(c->journey, c->widen ? c->dtype : BK_BF16);
    for (int64_t i = first; i < last; i++) {
        const char *x = c->from + (size_t)i * from;
        char *y = c->to + (size_t)i * to;
        if (c->widen)
            vector->unpack_bf16(c->journey->width, (const uint16_t *)(const void *)x, y);
        else
            vector->pack_bf16(c->journey->width, x, (uint16_t *)(void *)y);
    }
}

/* `count` rows from row `first` on, between a long and a short array. */
static void convert(const conversion *c, int64_t first, int64_t count)
{
    conversion part = *c;
    part.from += (size_t)first * row_bytes(c->journey, c->widen ? BK_BF16 : c->dtype);
    part.to += (size_t)first * row_bytes(c->journey, c->widen ? c->dtype : BK_BF16);
    bk_parallel(count, 1, c->journey->width, convert_rows, &part);
}

/* The rows at the experts of one chunk. */
static void convert_chunk(const conversion *c, int64_t chunk)
{
    const bk_dispatch *d = c->journey->dispatch;
    int size = bk_comm_size(d->ep);
    for (int64_t i = chunk * size; i < (chunk + 1) * size; i++)
        convert(c, d->from_place[i], d->from[i]);
}

static void widen_arrived(const bk_journey *j, int64_t chunk)
{
    if (j->arriving != j->arrived)
        convert_chunk(&(conversion){j, true, j->there, j->arriving, j->arrived}, chunk);
}

static void narrow_result(const bk_journey *j, int64_t chunk)
{
    if (j->leaving != j->result)
        convert_chunk(&(conversion){j, false, j->home, j->result, j->leaving}, chunk);
}

/* ---- the way ---- */

static void finish(bk_journey *j, bk_exchange *x)
{
    if (x)
        bk_exchange_finish(x);
    bk_moe_clock_lap(j->clock, BK_MOE_EXCHANGE);
}

static int64_t bytes_to_others(const bk_journey *j, bool home, int64_t chunk)
{
    const bk_dispatch *d = j->dispatch;
    int size = bk_comm_size(d->ep), rank = bk_comm_rank(d->ep);
    const int64_t *list = (home ? d->from : d->to) + chunk * size;
    int64_t count = -list[rank];
    for (int r = 0; r < size; r++)
        count += list[r];
    return count * (int64_t)row_bytes(j, home ? j->wire_home : j->wire_there);
}

/* Starts a chunk of rows to their experts, or (home) from them; on one rank they are there. */
static bk_exchange *start(bk_tape *t, bk_journey *j, bool home, int64_t chunk)
{
    const bk_dispatch *d = j->dispatch;
    if (alone(j))
        return NULL;
    bk_exchange *x =
        home ? bk_dispatch_return(t, d, chunk, row_bytes(j, j->wire_home), j->leaving, j->returning)
             : bk_dispatch_send(t, d, chunk, row_bytes(j, j->wire_there), j->packed, j->arriving);
    j->clock->bytes += bytes_to_others(j, home, chunk);
    bk_moe_clock_lap(j->clock, BK_MOE_EXCHANGE);
    return x;
}

void bk_journey_depart(bk_tape *t, bk_journey *j)
{
    j->coming = start(t, j, false, 0);
}

void bk_journey_travel(bk_tape *t, bk_journey *j, const bk_experts *experts)
{
    int64_t chunks = j->dispatch->chunks;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        finish(j, j->coming);
        if (chunk + 1 < chunks)
            j->coming = start(t, j, false, chunk + 1);
        widen_arrived(j, chunk);
        bk_moe_clock_lap(j->clock, BK_MOE_PACK);
        if (j->back)
            bk_experts_inputs_back(t, j->back, chunk);
        else
            bk_experts_forward(t, experts, chunk, j->result);
        bk_moe_clock_lap(j->clock, BK_MOE_GEMM);
        narrow_result(j, chunk);
        bk_moe_clock_lap(j->clock, BK_MOE_PACK);
        j->going[chunk] = start(t, j, true, chunk);
        if (j->back)
            bk_experts_weights_back(t, j->back, chunk);
        bk_moe_clock_lap(j->clock, BK_MOE_GEMM);
    }
}

void bk_journey_arrive(bk_journey *j)
{
    for (int64_t chunk = 0; chunk < j->dispatch->chunks; chunk++)
        finish(j, j->going[chunk]);
    if (j->returning != j->returned)
        convert(&(conversion){j, true, j->home, j->returning, j->returned}, 0, j->dispatch->sent);
    bk_moe_clock_lap(j->clock, BK_MOE_PACK);
}
