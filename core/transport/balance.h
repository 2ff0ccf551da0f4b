/* core/transport/balance.h - column potentials that balance a row softmax: the solver of the
 * Sinkhorn routers.
 *
 *   Q_tj(g) = softmax_j(S_tj + g_j), g such that every column sums to T/E.
 * Column sums are rule F1 (fixed point), so g, the decision to stop and the routes have the same
 * bits on every rank and for every number of ranks. */
#ifndef BK_CORE_TRANSPORT_BALANCE_H
#define BK_CORE_TRANSPORT_BALANCE_H

#include "core/transport/sinkhorn.h"

typedef enum bk_balance_solver {
    /* g += log((T/E) / column): E numbers a message */
    BK_BALANCE_SINKHORN,
    /* (diag(column) - Q^T Q + c/E 11^T + 1e-12 c I) d = c - column, c = T/E; g + t d with the first
     * t of 1, 1/2 .. 1/32 that lowers the norm of c - column by the factor 1 - t/1000, else one
     * step of Sinkhorn: E + E(E+1)/2 numbers a message */
    BK_BALANCE_NEWTON
} bk_balance_solver;

typedef struct bk_balance {
    int64_t rows, columns; /* local rows; E */
    int64_t total;         /* T: rows over all ranks */
    const double *s;       /* [rows,columns] */
    bk_balance_solver solver;
    int64_t iterations; /* most updates of g; newton: most messages after the first */
    double tolerance;   /* on max_j |column_j E/T - 1| */
    const bk_reducer *reducer;
    const bk_lanes *lanes;
    const int64_t *lane_row; /* [lanes->count + 1], for rule F3 in the backward solve */
    bk_arena *scratch;
} bk_balance;

typedef struct bk_balance_result {
    int64_t iterations; /* messages after the first */
    double residual;
    bool converged;
} bk_balance_result;

/* Collective.  g[columns] in: start; out: potentials of mean 0.  q[rows,columns]: the plan, rows
 * sum to 1; may be NULL. */
bk_balance_result bk_balance_solve(const bk_balance *b, double *g, double *q);

/* Collective.  z[rows,columns] in: dL/dS with g held; out: with g(S) from the column constraint,
 *   z - Q (lambda 1 - <Q_t, lambda>),  (diag(col) - Q^T Q + c/E 11^T + 1e-12 c I) lambda = sum_t
 * z_t,  c = T/E. */
void bk_balance_implicit(const bk_balance *b, const double *q, double *z);

#endif
