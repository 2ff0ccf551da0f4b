/* core/transport/divergence.h - the debiased Sinkhorn divergence (Feydy et al. 2019; unbalanced:
 * Sejourne et al. 2019) of two clouds of points:
 *   S(a,b) = OT(a,b) - OT(a,a)/2 - OT(b,b)/2  [+ (eps/2)(sum a - sum b)^2 when unbalanced]
 * with the value kl of transport.h.  Zero for equal clouds, not negative once converged. */
#ifndef BK_CORE_TRANSPORT_DIVERGENCE_H
#define BK_CORE_TRANSPORT_DIVERGENCE_H

#include "core/transport/transport.h"

typedef struct bk_divergence_result {
    bk_transport_result between; /* OT(a,b) */
    double value;
    double *f, *g;                   /* f_ab - f_aa [rows], g_ab - g_bb [columns] */
    int64_t self_iterations[2];      /* of OT(a,a), OT(b,b) */
    bool converged;                  /* all three */
    struct bk_divergence_self *self; /* for the gradient */
} bk_divergence_result;

/* Collective.  problem->cost must be NULL (points).  Errors as bk_transport_solve; BK_USAGE when
 * the sides have different rho. */
BK_CHECKED bk_status bk_divergence_solve(const bk_transport *problem,
                                         const bk_transport_config *config,
                                         bk_divergence_result *result);

/* Collective.  Adds weight dS to x[rows,width], y[columns,width] (summed over the ranks), a[rows],
 * b[columns], in double; any may be NULL.  By the envelope. */
BK_CHECKED bk_status bk_divergence_gradient(const bk_divergence_result *result, double weight,
                                            double *x, double *y, double *a, double *b);

#endif
