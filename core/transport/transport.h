/* core/transport/transport.h - entropic optimal transport: one call, one result.
 *
 *   balanced:    min_P <C,P> + eps KL(P | a b')                      P 1 = a, P' 1 = b
 *   unbalanced:  the same + rho_a KL(P 1 | a) + rho_b KL(P' 1 | b)
 *   P = exp((f_i + g_j - C_ij) / eps);  KL(x|y) = sum x log(x/y) - x + y
 *
 * Rows are sharded over the ranks, columns, b and g are replicated.  Sums over rows follow rule F3
 * over row blocks (bk_transport_blocks), so every rank takes the same branch and any power of two
 * of ranks gives the same bits.
 *
 * Methods: Sinkhorn (Cuturi 2013) in three forms, sparse Newton (SNS: Tang et al., ICLR 2024) and
 * Newton with eta doubling, the one for high accuracy. */
#ifndef BK_CORE_TRANSPORT_TRANSPORT_H
#define BK_CORE_TRANSPORT_TRANSPORT_H

#include "core/attributes.h"
#include "core/hooks.h"
#include "core/option.h"
#include "core/transport/transport_kernel.h"

typedef enum bk_transport_method {
    BK_TRANSPORT_SINKHORN,
    BK_TRANSPORT_NEWTON,
    BK_TRANSPORT_SNS
} bk_transport_method;

/* In the order of growing safety behind AUTO. */
typedef enum bk_transport_mode {
    BK_TRANSPORT_AUTO,
    BK_TRANSPORT_ABSORBED, /* the kernel exp(S + u + v) is kept; products instead of exponentials */
    BK_TRANSPORT_PFORM,    /* rows with a maximum, columns from the exact rows without one */
    BK_TRANSPORT_LOG       /* both sides with a maximum */
} bk_transport_mode;

enum {
    BK_MARGINALS_AUTO,
    BK_MARGINALS_GIVEN,
    BK_MARGINALS_NORMALIZE,
    BK_MARGINALS_UNIFORM,
    BK_MARGINALS_ONES
};
enum { BK_COST_SCALE_NONE, BK_COST_SCALE_MAX, BK_COST_SCALE_MEAN };
enum { BK_SCALING_AUTO, BK_SCALING_NONE, BK_SCALING_DOUBLING };
enum { BK_SOLVER_AUTO, BK_SOLVER_DENSE, BK_SOLVER_CG };
enum { BK_VALUE_COST, BK_VALUE_KL, BK_VALUE_ENTROPY };
enum { BK_GRADIENT_AUTO, BK_GRADIENT_ENVELOPE, BK_GRADIENT_IMPLICIT, BK_GRADIENT_UNROLLED };

typedef struct bk_transport_config {
    int method, mode, marginals, cost_scale, scaling, solver, value, gradient, metric;
    double epsilon;
    int64_t iterations;                            /* 0 = by method */
    double tolerance;                              /* < 0 = by dtype */
    double unbalanced, unbalanced_a, unbalanced_b; /* rho; INFINITY = hard; the sides: < 0 = both */
    double omega;                                  /* 0 = auto */
    double scaling_start, scaling_factor, stage_tolerance;
    int64_t stage_sweeps, warm_sweeps, keep;
    double cg_tolerance;
    int64_t cg_iterations;
    bool debias;
} bk_transport_config;

extern const bk_option bk_transport_options[];

/* Not collective.  Combinations that no problem can mend: BK_USAGE. */
BK_CHECKED bk_status bk_transport_check(const bk_transport_config *config);
/* The same for masses that are given or not. */
BK_CHECKED bk_status bk_transport_check_marginals(const bk_transport_config *config, bool a,
                                                  bool b);

struct bk_transport_result;

typedef struct bk_transport {
    bk_dtype dtype;        /* of cost or points, and of the sweeps; Newton works in double */
    int64_t total;         /* rows over all ranks */
    int64_t rows, columns; /* own rows; all columns */
    const void *cost;      /* [rows,columns]; NULL: points */
    const void *x, *y;     /* points [rows,width], [columns,width]: the cost is their distance */
    int64_t width;
    const double *a, *b;       /* [rows], [columns]; NULL: uniform */
    const bk_lanes *lanes;     /* row blocks: lanes->batch = total */
    const int64_t *lane_row;   /* [lanes->count + 1] first row of each own block; NULL: by batch */
    const bk_reducer *reducer; /* NULL = one rank */
    bool differentiate;        /* bk_transport_gradient will be called */
    bk_arena *arena;           /* the result; what the solution needs on the way is given back */
    bk_arena *scratch;
    /* Told behind every sweep and step; may be NULL. */
    void (*progress)(void *context, const struct bk_transport_result *so_far);
    void *progress_context;
} bk_transport;

/* Not collective.  Number of row blocks for `total` rows: a power of two up to 64, each of 128 rows
 * at least.  More ranks than blocks is fine: some own no rows. */
int64_t bk_transport_blocks(int64_t total);

typedef enum bk_transport_status {
    BK_TRANSPORT_CONVERGED,
    BK_TRANSPORT_FIXED, /* tolerance 0: the sweeps asked for were done */
    BK_TRANSPORT_MAX_ITERATIONS,
    BK_TRANSPORT_STAGNATED, /* no progress: rounding, or a step that no line search accepts */
    BK_TRANSPORT_NOT_FINITE,
    BK_TRANSPORT_INFEASIBLE,
    BK_TRANSPORT_BAD_INPUT
} bk_transport_status;

/* Not collective.  "converged", and a sentence that says what it means and what to do. */
const char *bk_transport_status_name(bk_transport_status status);
const char *bk_transport_status_sentence(bk_transport_status status);

/* One sweep or one Newton step. */
typedef struct bk_transport_step {
    double epsilon; /* of the stage, in units of the cost */
    double error;   /* L1 error of the marginals before it; unbalanced sweeps: max |du|, |dv| */
    bool newton;
} bk_transport_step;

typedef struct bk_transport_working bk_transport_working;

typedef struct bk_transport_result {
    bk_transport_status status;
    int64_t sweeps, newton_steps, cg_iterations, half_steps;
    int64_t escalations, guard_events, shifted_sweeps; /* shifted: a column needed a maximum */
    bk_transport_mode mode;                            /* of the last sweep */
    double epsilon;                                    /* of the last stage, in units of the cost */
    double residual_a, residual_b;                     /* L1, recomputed from the plan */
    double cost, kl, entropy, dual, gap; /* values of the objective; see bk_transport_value */
    double *f, *g;                       /* [rows], [columns]; -inf where there is no mass */
    bk_transport_step *step;             /* [steps] */
    int64_t steps;
    bk_transport_working *working; /* for the calls below */
} bk_transport_result;

/* Collective.  Solves the problem.  BK_USAGE: balanced and sum a != sum b; BK_INPUT: a cost of NaN
 * or -inf, a negative or infinite mass, a row or column of mass without a finite cost, no mass at
 * all, a mass that overflows; the text names the first place.  Whatever else happens is in the
 * result's status; no field is ever NaN without one that says so. */
BK_CHECKED bk_status bk_transport_solve(const bk_transport *problem,
                                        const bk_transport_config *config,
                                        bk_transport_result *result);

/* Not collective.  <C,P>, kl or entropy, as the option `value` says. */
double bk_transport_value(const bk_transport_result *result);

/* Not collective.  p[columns] in the problem's dtype = own row i of the plan. */
void bk_transport_plan_row(const bk_transport_result *result, int64_t i, void *p);

/* Not collective.  Puts the fields of the result into attributes for `birkhoff op` and reports. */
void bk_transport_describe(const bk_transport_result *result, bk_attributes *attributes);

/* What backward is given, and what it makes; NULL: none. */
typedef struct bk_transport_adjoint {
    const double *plan; /* [rows,columns] dL/dplan */
    double value;       /* dL/dvalue */
    double *cost;       /* [rows,columns] dL/dcost, added to */
    double *a, *b;      /* [rows], [columns] dL/da, dL/db, added to; every rank holds all of b */
} bk_transport_adjoint;

/* Collective.  Gradient by the option `gradient`: envelope (value kl or entropy, converged),
 * implicit (converged), unrolled (sweeps as they were run; the solve recorded them).  BK_USAGE when
 * the solve's status or the options do not allow it. */
BK_CHECKED bk_status bk_transport_gradient(const bk_transport_result *result,
                                           const bk_transport_adjoint *adjoint);

/* Collective.  dL/dcost[rows,columns] of points back to them: adds to x[rows,width] and, summed
 * over the rows of all ranks, to y[columns,width]; either may be NULL, on all ranks alike.
 * euclidean: 0 at distance 0; l1: 0 at ties. */
void bk_transport_points_back(const bk_transport *problem, bk_metric metric, const double *cost,
                              double *x, double *y);

#endif
