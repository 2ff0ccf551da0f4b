/* models/moe_journey.h - rows on their way to their experts and back.  A chunk of experts is at
 * work while the rows of the next are on their way there and those of the ones before on their way
 * back.  On the way rows may be shorter than at both ends (wire). */
#ifndef BK_MODELS_MOE_JOURNEY_H
#define BK_MODELS_MOE_JOURNEY_H

#include "models/moe_experts.h"
#include "models/moe_figures.h"

/* Where the time of a layer goes, and bytes of rows that left this rank. */
typedef struct bk_moe_clock {
    double last, seconds[BK_MOE_PHASES];
    int64_t bytes;
} bk_moe_clock;

/* Not collective.  Books the time since the last call, or since the clock was started. */
void bk_moe_clock_start(bk_moe_clock *c);
void bk_moe_clock_lap(bk_moe_clock *c, bk_moe_phase phase);

/* One way there and back.  With a wire of BK_BF16 rows are rounded to it, to nearest, ties to even,
 * even where they stay on their rank, so that bits depend on no grid of ranks. */
typedef struct bk_journey {
    const bk_dispatch *dispatch;
    bk_moe_clock *clock;
    int64_t width;                  /* C */
    bk_dtype there, home;           /* of rows at their experts, and of those that come back */
    bk_dtype wire_there, wire_home; /* the same on the way */
    char *packed;                   /* [n,C] wire_there, in the order of dispatch */
    char *arrived;                  /* [R,C] there: at the experts */
    char *result;                   /* [R,C] home: of the experts */
    char *returned;                 /* [n,C] home, in the order of dispatch */
    char *arriving, *leaving, *returning; /* arrived, result, returned as they travel */
    bk_experts_back *back;                /* NULL: forward */
    bk_exchange *coming, **going;         /* the next chunk; [chunks] results */
} bk_journey;

/* The type on the way of rows that have `dtype` at both ends. */
static inline bk_dtype bk_wire_of(bk_dtype dtype, bool bf16)
{
    return bf16 ? BK_BF16 : dtype;
}

/* Not collective.  Room for j->packed, with dispatch, width and all types in place: on `keep` where
 * it is what arrives, else on the scratch arena. */
void bk_journey_pack(bk_tape *t, bk_journey *j, bk_arena *keep);
/* Not collective.  All other arrays, where they are not the same as others: arrived and returned on
 * `keep`, the rest on the scratch arena.  What is there already stays. */
void bk_journey_open(bk_tape *t, bk_journey *j, bk_arena *keep);

/* Collective.  Starts the first chunk of rows[n,C] in j->packed on its way. */
void bk_journey_depart(bk_tape *t, bk_journey *j);
/* Collective.  Chunk by chunk: waits for its rows, lets the experts work, sends the results. */
void bk_journey_travel(bk_tape *t, bk_journey *j, const bk_experts *experts);
/* Collective.  Waits for the last result. */
void bk_journey_arrive(bk_journey *j);

#endif
