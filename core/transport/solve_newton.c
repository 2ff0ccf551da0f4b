/* Newton with eta doubling: at each stage a few sweeps, then damped Newton steps.  The one method
 * that converged on every problem of the tests. */
#include "core/transport/internal.h"

#include <math.h>

/* A few sweeps at the stage's eta; the error is of no interest yet. */
static bool warm(bk_transport_working *w)
{
    bk_transport_status status =
        bk_transport_stage(w, 0.0, w->result->sweeps + w->config.stage_sweeps);
    return status != BK_TRANSPORT_NOT_FINITE;
}

bk_transport_status bk_transport_solve_newton(bk_transport_working *w)
{
    const bk_transport_config *c = &w->config;
    double eta = 1.0 / w->epsilon;
    if (c->scaling != BK_SCALING_NONE)
        bk_transport_set_eta(w, bk_transport_first_eta(w));
    for (;;) {
        bool last = w->eta >= eta;
        double tolerance = last ? c->tolerance : fmax(c->stage_tolerance, c->tolerance);
        if (!warm(w))
            return BK_TRANSPORT_NOT_FINITE;
        bk_transport_status status =
            bk_transport_newton(w, tolerance, true, bk_transport_newton_solve);
        if (last || status == BK_TRANSPORT_NOT_FINITE || status == BK_TRANSPORT_MAX_ITERATIONS)
            return status;
        bk_transport_set_eta(w, bk_transport_next_eta(w));
    }
}
