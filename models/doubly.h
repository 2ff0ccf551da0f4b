/* models/doubly.h - attention by a doubly stochastic matrix, for the kinds that have one:
 *
 *   M = scale q k'      A = DS(M)      out = A v
 *   G = dout v' (+ dA), dv = A' dout, dM = DS*(G), dq = scale dM k, dk = scale dM' q
 *
 * A kind brings DS and DS*.  Padding is left out: a problem is that of the real rows and columns of
 * a sample, so its bits do not depend on how much padding there is.  Only q, k, v are kept for
 * backward, which makes M anew.  Source: Sander, Ablin, Blondel, Peyre 2022; Born et al. 2025. */
#ifndef BK_MODELS_DOUBLY_H
#define BK_MODELS_DOUBLY_H

#include "core/slots.h"
#include "models/attention.h"

/* Matrices of the problems [0, problems) of a group, each [n,n] by itself, in the tape's dtype. */
typedef struct bk_doubly_group {
    const bk_tape *tape;
    const bk_attention_args *args;
    const void *config;  /* of the rule */
    int64_t problems, n; /* n: order of the largest */
    int64_t heads, first_unit;
    const int64_t *order;   /* [problems] order of each */
    void *const *m;         /* scores; may be overwritten */
    void *const *a;         /* to be filled */
    void *const *g;         /* NULL: forward; else dL/dA */
    void *const *dm;        /* to be filled with dL/dM; may be g */
    const bk_tensor *theta; /* the parameter of the kind, if any, and */
    void *dtheta;           /* [problems, K], to be filled where g is there; NULL: not wanted */
    int64_t *clamped;       /* [problems] what the rule counts; zero before */
    bk_arena *scratch;
} bk_doubly_group;

/* Sorts the numbers of the problems: those of order 1 to `most` into small, larger ones into large;
 * returns how many are small. */
int64_t bk_doubly_sort(const bk_doubly_group *g, int64_t most, int64_t *small, int64_t *large,
                       int64_t *larges);

/* The problems small[0 .. count) of up to BK_SLOTS, and how they go into slots: of the m, a, g or
 * dm of a group. */
typedef struct bk_doubly_slots {
    int64_t count, n; /* n: order of the largest */
    int64_t problem[BK_SLOTS], order[BK_SLOTS];
} bk_doubly_slots;
bk_doubly_slots bk_doubly_slots_of(const bk_doubly_group *g, const int64_t *small, int64_t count);
/* factor[BK_SLOTS]: of each slot, or NULL.  block[n,n][slot]. */
void bk_doubly_pack(const bk_doubly_group *g, const bk_doubly_slots *s, void *const *matrix,
                    const double *factor, void *block);
void bk_doubly_unpack(const bk_doubly_group *g, const bk_doubly_slots *s, void *const *matrix,
                      const double *factor, void *block);

/* (b,h) of problem p: unit = sample * heads + head, sample among those of this rank. */
static inline int64_t bk_doubly_unit(const bk_doubly_group *g, int64_t p)
{
    return g->first_unit + p;
}

typedef struct bk_doubly_rule {
    /* Not collective.  Fills a; where g is there, dm (and dtheta), too.  The threads are its own
     * business; a problem's bits depend on that problem alone. */
    void (*apply)(const bk_doubly_group *group);
    double (*flop)(const void *config, int64_t order); /* of DS, for one problem */
    const void *config;
    double scale;  /* of the scores */
    int64_t order; /* of every problem, zero rows of q, k, v behind the real positions of the
                      sample; 0: as many as there are real positions */
} bk_doubly_rule;

/* Not collective.  out[B,H,N,D] on the step arena; fills what `a` asks for: *a->matrix [B,H,N,N],
 * differentiable, and the attributes row_error and column_error (largest |sum - 1| over real rows
 * and columns) and flop.  counted: NULL, or the sum of what the rule counted, for each own sample
 * [B]. */
bk_tensor *bk_doubly(bk_tape *t, const bk_attention_args *a, const bk_doubly_rule *rule,
                     int64_t *counted);

/* The options that the kinds share. */
#define BK_DOUBLY_SCALE(type_)                                       \
    BK_OPTION_F64_ABOVE_OR(type_, scale, 0.0, "auto", 0.0, 0.0, 1e6, \
                           "factor of q k'; auto: 1/sqrt(D)")

/* The scale of an option: 1/sqrt(D) where it is auto. */
double bk_doubly_scale(double option, const bk_attention_args *a);

/* Why none of them can be causal. */
extern const char bk_doubly_not_causal[];

#endif
