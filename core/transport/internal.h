/* core/transport/internal.h - the parts of the transport engine, for core/transport/ alone.
 *
 * A solve goes through: prepare.c (what has mass, marginals, range, refusals), solve_sinkhorn.c
 * with the sweeps of sweep.c, or solve_newton.c and solve_sns.c with the second-order system of
 * newton.c, and finish.c (gauge, residuals, values).  transport.c strings them together.
 *
 * Inside, everything is in exponents: S = -factor C, u = f/eps, v = g/eps, P = exp(S + u 1' + 1
 * v'). Rows and columns without mass are left out. */
#ifndef BK_CORE_TRANSPORT_INTERNAL_H
#define BK_CORE_TRANSPORT_INTERNAL_H

#include "core/transport/transport.h"
#include "core/vector.h"

struct bk_transport_working {
    bk_transport problem;       /* as given */
    bk_transport_config config; /* iterations and tolerance resolved */
    const bk_transport_kernels *kernel;
    const bk_vector_kernels *vector;

    /* ---- what has mass ---- */
    int64_t rows, columns;       /* own rows, columns */
    int64_t total;               /* rows of all ranks */
    const int64_t *row, *column; /* [rows], [columns] places in the problem */
    int64_t *lane_row;           /* [lanes->count + 1] first row of each own row block */
    const void *cost;            /* [rows,columns], or NULL: x[rows,width], y[width,columns] */
    const void *x, *y;
    bool dense; /* cost is the problem's own array: rows by `row` */
    double *a, *log_a, *b, *log_b;
    double mass;        /* sum b */
    double a_most;      /* greatest a of all ranks */
    double divisor;     /* cost_scale */
    double least, most; /* of the finite costs, divided */

    /* ---- the state ---- */
    double epsilon;            /* the one asked for, in units of the divided cost */
    double eta;                /* of the stage: 1/eps */
    double factor;             /* eta / divisor */
    double rho[2];             /* in units of the divided cost; INFINITY = hard */
    double *u, *v;             /* [rows], [columns] */
    double *next_u, *next_v;   /* where a sweep writes */
    void *kernel_matrix;       /* absorbed: [rows,columns] in the problem's dtype */
    double *scale_u, *scale_v; /* absorbed: x, y */
    bool kernel_stale;
    double omega;
    bk_transport_result *result;

    /* ---- what the unrolled gradient goes back through: potentials behind each sweep ---- */
    bool record;
    struct bk_transport_record *last;
    int64_t step_room;
};

/* Potentials behind a sweep: a chain from the last one back to the start, u = v = 0. */
typedef struct bk_transport_record {
    struct bk_transport_record *before;
    double *u, *v; /* [rows] behind its row step, [columns] behind its column step */
} bk_transport_record;

/* rho of side 0 (rows) or 1 (columns) as configured; INFINITY = hard. */
double bk_transport_rho(const bk_transport_config *config, int side);
/* rho / (rho + eps) at the stage's eps; 1 = hard. */
double bk_transport_kappa(const bk_transport_working *w, int side);
bool bk_transport_balanced(const bk_transport_working *w);
bool bk_transport_unrollable(const bk_transport_config *config);
/* Both sides soft: each sweep ends in the best common shift, which cannot be unrolled. */
bool bk_transport_translates(const bk_transport_config *config);

/* ---- rows and sums ---- */

/* The cost of row i in the problem's dtype: in place, or made in `buffer` [columns]. */
const void *bk_transport_row(const bk_transport_working *w, int64_t i, void *buffer);
/* The same in double. */
const double *bk_transport_row_f64(const bk_transport_working *w, int64_t i, double *buffer);

/* Works on rows first .. last-1 of one row block, adds to sum[width]; buffer[3 columns],
 * of which the first two are for bk_transport_row_f64. */
typedef void bk_transport_body(const bk_transport_working *w, void *context, int64_t first,
                               int64_t last, double *sum, double *buffer);
/* Collective.  out[width] = sum over all row blocks, on threads; out NULL: nothing is summed and no
 * message is sent. */
void bk_transport_sum(bk_transport_working *w, int64_t width, bk_transport_body *body,
                      void *context, double *out);
/* Collective.  Sum over the ranks of what one rank has already summed in the order of the tree. */
void bk_transport_sum_ranks(const bk_transport *problem, int64_t n, const double *own, double *out);

/* ---- prepare.c ---- */

/* A working problem on the problem's arena, and an empty result. */
bk_transport_working *bk_transport_open(const bk_transport *problem,
                                        const bk_transport_config *config,
                                        bk_transport_result *result);

/* Collective.  Fills the part "what has mass" and the start of the state.  The status of the result
 * is BAD_INPUT or INFEASIBLE where it returns BK_USAGE or BK_INPUT. */
BK_CHECKED bk_status bk_transport_prepare(bk_transport_working *w);
/* Sets eta and what follows from it; u and v are multiplied so that f and g stay. */
void bk_transport_set_eta(bk_transport_working *w, double eta);

/* ---- sweep.c ---- */

/* Not collective.  Row i at v, buffer[3 columns]: LSE_j(S_ij + v_j); behind the first two columns
 * of the buffer stand the exponentials, max-shifted, in the problem's dtype, and *sum is their sum.
 */
double bk_transport_row_lse(const bk_transport_working *w, int64_t i, double *buffer, double *sum);

/* Collective.  One sweep from u, v to next_u, next_v in a mode; *error as in bk_transport_step.
 * False: something was not finite. */
bool bk_transport_sweep(bk_transport_working *w, bk_transport_mode mode, double *error);
/* Takes next_u, next_v. */
void bk_transport_accept(bk_transport_working *w);
/* absorbed: writes log x and log y into u, v. */
void bk_transport_absorb(bk_transport_working *w);

/* ---- solve_sinkhorn.c, solve_newton.c, solve_sns.c ---- */

/* Collective.  Sweeps at the stage's eta until the error is within `tolerance` (0: never) or the
 * result counts `most` sweeps. */
bk_transport_status bk_transport_stage(bk_transport_working *w, double tolerance, int64_t most);
/* Collective. */
bk_transport_status bk_transport_solve_sinkhorn(bk_transport_working *w);
bk_transport_status bk_transport_solve_newton(bk_transport_working *w);
bk_transport_status bk_transport_solve_sns(bk_transport_working *w);
/* The first eta of eta doubling, and the next one. */
double bk_transport_first_eta(const bk_transport_working *w);
double bk_transport_next_eta(const bk_transport_working *w);
void bk_transport_note(bk_transport_working *w, double error, bool newton);

/* ---- newton.c: the second-order system ---- */

/* The plan at u, v and what Newton needs of it. */
typedef struct bk_transport_point {
    double *plan; /* [rows,columns] P, each row divided by sqrt(diagonal) when `scaled` */
    bool scaled;
    double *u, *v;    /* [rows], [columns] */
    double *r, *c;    /* row sums [rows], column sums [columns] */
    double *target;   /* [rows] t: a, or what the penalty makes of it */
    double *target_b; /* [columns] */
    double *diagonal; /* [rows] r + (eps/rho_a) t + shift */
    double psi;       /* the concave objective */
    double error;     /* sum |t - r| + sum |t_b - c| */
} bk_transport_point;

bk_transport_point *bk_transport_point_new(bk_transport_working *w, bool scaled);
/* Collective, one message.  Fills a point from its u, v. */
void bk_transport_evaluate(bk_transport_working *w, bk_transport_point *p);
/* Collective.  Solves [diag P; P' diag] [p;q] = [gr;gc] at a scaled point by eliminating the rows:
 * Cholesky of the Schur complement, or conjugate gradients on it.  gr, p [rows]; gc, q [columns].
 * False: not positive definite in spite of every shift. */
bool bk_transport_newton_solve(bk_transport_working *w, const bk_transport_point *point,
                               const double *gr, const double *gc, double *p, double *q);
/* What solves for a direction, such as bk_transport_newton_solve. */
typedef bool bk_transport_direction(bk_transport_working *w, const bk_transport_point *point,
                                    const double *gr, const double *gc, double *p, double *q);
/* Collective.  Damped Newton steps from u, v until the error of both marginals is within the
 * tolerance; `scaled`: how `solve` wants its points. */
bk_transport_status bk_transport_newton(bk_transport_working *w, double tolerance, bool scaled,
                                        bk_transport_direction *solve);

/* ---- finish.c ---- */

/* Collective.  Gauge, residuals, values, f and g. */
void bk_transport_finish(bk_transport_working *w);

#endif
