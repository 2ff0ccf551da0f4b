/* losses/sinkd.h - the parts of the SinKD loss, for losses/sinkd*.c alone.
 *
 * One call goes through three files: sinkd_rows.c says which rows are matched with which,
 * sinkd_cost.c makes C and takes its gradient back to the logits, sinkd_plan.c makes the plan and
 * the gradient of the loss with respect to C, in the log domain by itself and in the direct domain
 * by sinkd_direct.c.  sinkd.c holds the options and the tape node. */
#ifndef BK_LOSSES_SINKD_H
#define BK_LOSSES_SINKD_H

#include "core/transport/sinkhorn.h"
#include "core/transport/transport.h"
#include "losses/row.h"

enum { BK_SINKD_UNROLLED, BK_SINKD_ENVELOPE, BK_SINKD_IMPLICIT };
enum { BK_SINKD_SINKHORN, BK_SINKD_NEWTON };
enum { BK_SINKD_AUTO, BK_SINKD_DIRECT, BK_SINKD_LOG };

typedef struct bk_sinkd_config {
    double temperature, epsilon, tolerance;
    int64_t iterations, chunk;
    int gradient, reduction, domain, solver;
    const char *group;
} bk_sinkd_config;

/* One call, kept from forward to backward; everything lives on the step arena. */
typedef struct bk_sinkd {
    bk_loss_args args;
    const bk_sinkd_config *config;
    double weight; /* 1/B for a mean, 1 for a sum */

    /* Rows: masked ones left out, numbered over all ranks in rank order. */
    int64_t rows, first;     /* own; global number of the first */
    int64_t total;           /* B, of all ranks */
    int64_t *count;          /* [size] rows of each rank */
    int64_t *place;          /* [rows] row of the logits */
    int64_t *lane_row;       /* [m+1] first own row of each own lane; the last entry is `rows` */
    int64_t groups, *start;  /* group g = global rows start[g] .. start[g+1]-1 */
    bool shared;             /* some group has rows on two ranks */
    int64_t column, columns; /* teacher rows held here: global rows column .. column+columns-1 */

    /* Logits: any part of p = softmax(student/T) and q = softmax(teacher/T) is made from them. */
    const char *teacher;          /* [.,V] in the dtype of the logits */
    const int64_t *teacher_place; /* [columns] rows of `teacher`; NULL: in order */
    bk_row_norm *p_norm, *q_norm; /* [rows], [columns] */

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

/* Collective.  Fills the part "rows" of a call. */
void bk_sinkd_match_rows(bk_tape *t, bk_sinkd *s);

/* ---- sinkd_cost.c ---- */

/* Collective.  Fills the part "cost": teacher rows are gathered where groups straddle ranks. */
void bk_sinkd_make_cost(bk_tape *t, bk_sinkd *s);
/* Adds seed[lane of i] weight dL/dlogits for G = dL/dC, one array [rows,columns] a block:
 *   h_iv = sum_j G_ij sign(p_iv - q_jv);  ds_iv = p_iv (h_iv - <p_i,h_i>) / T. */
void bk_sinkd_cost_back(bk_tape *t, const bk_sinkd *s, double *const *adjoint, const double *seed);

/* C_ij from S_ij. */
static inline double bk_sinkd_cost(const bk_sinkd *s, double scaled)
{
    return -s->config->epsilon * scaled;
}

/* ---- sinkd_newton.c ---- */

/* Problems that this rank solves: every group where groups straddle ranks, else its own blocks. */
int64_t bk_sinkd_problems(const bk_sinkd *s);
/* Collective.  The part "plan" by Newton: one problem a group, rows and columns of mass 1, to the
 * tolerance (L1 error of the marginals, for each row); N = 1. */
void bk_sinkd_newton(bk_tape *t, bk_sinkd *s);
/* Collective.  Adds dL/dC through the optimality conditions to adjoint[k][rows,columns] of each
 * block; P where the solve did not converge. */
void bk_sinkd_newton_back(bk_tape *t, const bk_sinkd *s, double *const *adjoint);

/* ---- sinkd_plan.c ---- */

/* Collective.  Fills the part "plan": N normalisations of rows, then columns; fewer when the row
 * sums of all ranks are within the tolerance. */
void bk_sinkd_make_plan(bk_tape *t, bk_sinkd *s);
/* x[columns of the block] = row i of a block of P(N,N). */
void bk_sinkd_plan_row(const bk_sinkd *s, const bk_sinkhorn_block *b, int64_t i, double *x);
/* Collective.  max_i |sum_j P_ij - 1| over the rows of all ranks. */
double bk_sinkd_row_violation(bk_tape *t, const bk_sinkd *s);
/* Collective (unrolled).  G = dL/dC before the weight, one array [rows,columns] a block, on
 * scratch. */
double *const *bk_sinkd_plan_back(bk_tape *t, const bk_sinkd *s);

/* ---- sinkd_direct.c: the same in the direct domain ---- */

/* Least epsilon of the direct domain: K >= exp(-2/epsilon) is a normal number with room to spare in
 * the arithmetic of the logits. */
static inline double bk_sinkd_direct_bound(bk_dtype dtype)
{
    return dtype == BK_F64 ? 0.003 : 0.025;
}

/* Fills s->kernel from S. */
void bk_sinkd_make_kernel(bk_tape *t, bk_sinkd *s);
/* Collective.  f[n] = 1/(K g[n-1]), g[n] = 1/(K^T f[n]). */
void bk_sinkd_direct_step(bk_tape *t, const bk_sinkd *s, int64_t n);
/* Collective.  Adds to G, one array a block, what flows through all 2N normalisations from the
 * adjoints rows[rows] of log f[N] and columns[columns] of log g[N], which are overwritten. */
void bk_sinkd_direct_unroll(bk_tape *t, const bk_sinkd *s, double *rows, double *columns,
                            double *const *adjoint);

#endif
