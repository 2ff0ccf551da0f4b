/* losses/sinkd.h - the parts of the SinKD loss, for the files losses/sinkd_<part>.c alone.
 *
 * One matching goes through these files: sinkd_rows.c says which rows are matched with which,
 * sinkd_exchange.c brings them to the ranks that need them, sinkd_cost.c (sinkd_top.c for a teacher
 * of k classes) makes C and takes its gradient back to the logits, sinkd_plan.c makes the plan and
 * the gradient of <P,C> with respect to C: in the log domain by itself, in the direct domain by
 * sinkd_direct.c, by Newton in sinkd_newton.c, the implicit gradient in sinkd_implicit.c.  sinkd.c
 * holds the options and the tape node; with `debias` it has three matchings. */
#ifndef BK_LOSSES_SINKD_H
#define BK_LOSSES_SINKD_H

#include "core/transport/sinkhorn.h"
#include "core/transport/transport.h"
#include "losses/row.h"

enum { BK_SINKD_UNROLLED, BK_SINKD_ENVELOPE, BK_SINKD_IMPLICIT };
enum { BK_SINKD_SINKHORN, BK_SINKD_NEWTON };
enum { BK_SINKD_AUTO, BK_SINKD_DIRECT, BK_SINKD_LOG };

/* A column sum below this is made again with a maximum. */
#define BK_SINKD_LEAST 1e-280

typedef struct bk_sinkd_config {
    double temperature, epsilon, tolerance;
    int64_t iterations, chunk, top_k;
    int gradient, reduction, domain, solver;
    bool debias;
    const char *group;
} bk_sinkd_config;

/* Rows of logits of which any part of softmax(x/T) can be made. */
typedef struct bk_sinkd_side {
    const char *logits; /* [.,V] of this rank, in the dtype of the student's */
    bk_row_norm *own;   /* [rows] */
    bk_row_norm *held;  /* [columns]; NULL: never a matching's columns */
    char *kept;         /* shared: chunk after chunk [columns,chunk]; NULL: sent when needed */
    int64_t known;      /* classes that `kept` has so far */
} bk_sinkd_side;

/* The same rows everywhere: a sum over ranks where groups straddle. */
typedef struct bk_sinkd_message {
    int64_t count;  /* columns of all straddling groups */
    int64_t *place; /* [columns] of the own ones among them; -1: the group is this rank's alone */
    const bk_comm *comm;
    bk_arena *scratch;
    bool sunk;    /* the last sum had an entry that underflowed: the same on all ranks */
    double vote;  /* travels with each sum, */
    double votes; /* and is summed over the ranks by the last one */
} bk_sinkd_message;

/* One matching, kept from forward to backward; everything lives on the step arena. */
typedef struct bk_sinkd {
    bk_loss_args args;
    const bk_sinkd_config *config;
    double weight; /* 1/B for a mean, 1 for a sum */

    /* Rows: masked ones left out, numbered over all ranks in rank order. */
    int64_t rows, first;       /* own; global number of the first */
    int64_t total;             /* B, of all ranks */
    int64_t *count;            /* [size] rows of each rank */
    int64_t *place;            /* [rows] row of the logits */
    int64_t *lane_row;         /* [m+1] first own row of each own lane; the last entry is `rows` */
    int64_t groups, *start;    /* group g = global rows start[g] .. start[g+1]-1 */
    bool shared;               /* some group has rows on two ranks */
    int64_t column, columns;   /* held here: the rows of the groups that own rows are of, global
                                  rows column .. column+columns-1 */
    bk_sinkd_message *message; /* s->shared */
    bk_reducer *reducer;       /* sums columns over the ranks by the message; NULL: not shared */

    /* Logits: p = softmax(left/T) of own rows, q = softmax(right/T) of rows held. */
    bk_sinkd_side *left, *right;
    int64_t k;            /* > 0: instead of `right` so many classes and a rest of rows held, */
    const int32_t *index; /* [columns,k] */
    const void *q;        /* [columns,k+1] probabilities, the rest last */

    /* Cost: one block of S = -C/epsilon for the own rows of each group. */
    bk_sinkhorn_block *block;
    int64_t blocks;
    bk_sinkhorn problem;

    /* Plan: P(n,k) = exp(S + f[n] + g[k]).  In the direct domain f and g hold exp f and exp g. */
    bool direct;
    double **kernel;               /* direct: K = exp(S), one array [rows,columns] a block */
    int64_t iterations;            /* N */
    double **f, **g;               /* f[1..N] [rows], g[0..N] [columns]; Newton: f[1], g[1] */
    bk_transport_result *solution; /* Newton: one a problem; else NULL */
} bk_sinkd;

/* ---- sinkd_rows.c ---- */

/* Collective.  Fills the part "rows" of a matching. */
void bk_sinkd_match_rows(bk_tape *t, bk_sinkd *s);
/* Row numbers of the groups that rank r has rows of: [*first, *last). */
void bk_sinkd_span(const bk_sinkd *s, int r, int64_t *first, int64_t *last);

/* ---- sinkd_exchange.c ---- */

/* Makes message and reducer; s->shared. */
void bk_sinkd_plan_message(bk_tape *t, bk_sinkd *s);
/* Collective, s->shared.  own[rows] of `bytes` bytes each -> held[columns]. */
void bk_sinkd_exchange(bk_tape *t, const bk_sinkd *s, size_t bytes, const void *own, void *held);
/* Collective if s->shared.  y = x^T over the ranks, one array [rows,columns] a block. */
void bk_sinkd_transpose(bk_tape *t, const bk_sinkd *s, double *const *x, double *const *y);

/* ---- sinkd_cost.c ---- */

/* Bytes of gathered logits that a rank keeps at most of a side; where one has more, all are sent
 * again for the way back.  Tests set it. */
extern size_t bk_sinkd_kept;

/* Own rows of logits as a side that may stand left. */
bk_sinkd_side *bk_sinkd_side_new(bk_tape *t, const bk_sinkd *s, const bk_tensor *logits);
/* Collective if s->shared.  So that the side may stand right. */
void bk_sinkd_side_hold(bk_tape *t, const bk_sinkd *s, bk_sinkd_side *side);
/* The own part of every group becomes a block of the transport problem.  Returns the arrays s of
 * the blocks, zero so far. */
double *const *bk_sinkd_make_blocks(bk_tape *t, bk_sinkd *s);
/* S = -C/epsilon of what the blocks hold as C; what rounding left below 0 is 0, and NaN stays. */
void bk_sinkd_scale_cost(const bk_sinkd *s, double *const *cost);
/* Collective.  Fills the part "cost" from both sides. */
void bk_sinkd_make_cost(bk_tape *t, bk_sinkd *s);
/* Collective.  Adds seed[lane of i] weight dL/dlogits for G = dL/dC, one array [rows,columns] a
 * block: h_iv = sum_j G_ij sign(p_iv - q_jv);  ds_iv = p_iv (h_iv - <p_i,h_i>) / T. */
void bk_sinkd_cost_back(bk_tape *t, const bk_sinkd *s, double *const *adjoint, const double *seed);

/* C_ij from S_ij. */
static inline double bk_sinkd_cost(const bk_sinkd *s, double scaled)
{
    return -s->config->epsilon * scaled;
}

/* ---- sinkd_top.c: the same for a teacher of k classes and a rest ---- */

/* C_ij = sum_{v in S_j} |p_iv - q_jv| + |p_i(rest_j) - q_j(rest_j)|,
 *   p_i(rest_j) = max(0, 1 - sum_{S_j} p_iv).
 * Collective if s->shared.  top: of the rows of the logits. */
void bk_sinkd_top_cost(bk_tape *t, bk_sinkd *s, const bk_top *top);
/* Not collective.  h_iv = sum over j with v in S_j of
 *   G_ij (sign(p_iv - q_jv) - sign(p_i(rest_j) - q_j(rest_j))),  0 outside all S_j. */
void bk_sinkd_top_cost_back(bk_tape *t, const bk_sinkd *s, double *const *adjoint,
                            const double *seed);

/* ---- sinkd_newton.c ---- */

/* Problems that this rank solves: every group where groups straddle ranks, else its own blocks. */
int64_t bk_sinkd_problems(const bk_sinkd *s);
/* Collective.  The part "plan" by Newton: one problem a group, rows and columns of mass 1, to the
 * tolerance (L1 error of the marginals, for each row); N = 1. */
void bk_sinkd_newton(bk_tape *t, bk_sinkd *s);
/* Collective.  Adds dL/dC through the optimality conditions to adjoint[k][rows,columns] of each
 * block; P where the solve did not converge. */
void bk_sinkd_newton_back(bk_tape *t, const bk_sinkd *s, double *const *adjoint);

/* ---- sinkd_implicit.c ---- */

/* Collective.  adjoint = P becomes G = dL/dC where the plan's own marginals stay fixed, one array
 * [rows,columns] a block. */
void bk_sinkd_implicit(bk_tape *t, const bk_sinkd *s, double *const *adjoint);

/* ---- sinkd_plan.c ---- */

/* Collective.  Fills the part "plan": N normalisations of rows, then columns; fewer when the row
 * sums of all ranks are within the tolerance. */
void bk_sinkd_make_plan(bk_tape *t, bk_sinkd *s);
/* x[columns of the block] = row i of a block of P(N,N). */
void bk_sinkd_plan_row(const bk_sinkd *s, const bk_sinkhorn_block *b, int64_t i, double *x);
/* Collective.  max_i |sum_j P_ij - 1| over the rows of all ranks. */
double bk_sinkd_row_violation(bk_tape *t, const bk_sinkd *s);
/* Collective.  G = dL/dC before the weight, one array [rows,columns] a block, on
 * scratch. */
double *const *bk_sinkd_plan_back(bk_tape *t, const bk_sinkd *s);

/* ---- sinkd_direct.c: the same in the direct domain ---- */

/* Least epsilon of the direct domain: K >= exp(-2/epsilon) is a normal number with room to spare in
 * the arithmetic of the logits. */
static inline double bk_sinkd_direct_bound(bk_dtype dtype)
{
    return dtype == BK_F64 ? 0.003 : 0.025;
}

/* y[rows] = M x for x[columns], M one array [rows,columns] a block. */
void bk_sinkd_multiply(const bk_sinkd *s, double *const *matrix, const double *x, double *y);
/* Collective.  y[columns] = M^T x for x[rows], by the lane tree; local: [m,columns] of scratch. */
void bk_sinkd_multiply_transposed(const bk_sinkd *s, double *const *matrix, const double *x,
                                  double *local, double *y);

/* Fills s->kernel from S. */
void bk_sinkd_make_kernel(bk_tape *t, bk_sinkd *s);
/* Collective.  f[n] = 1/(K g[n-1]), g[n] = 1/(K^T f[n]). */
void bk_sinkd_direct_step(bk_tape *t, const bk_sinkd *s, int64_t n);
/* Collective.  Adds to G, one array a block, what flows through all 2N normalisations from the
 * adjoints rows[rows] of log f[N] and columns[columns] of log g[N], which are overwritten. */
void bk_sinkd_direct_unroll(bk_tape *t, const bk_sinkd *s, double *rows, double *columns,
                            double *const *adjoint);

#endif
