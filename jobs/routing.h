/* jobs/routing.h - figures of the layers with experts, for the lines of training and for operators.
 */
#ifndef BK_JOBS_ROUTING_H
#define BK_JOBS_ROUTING_H

#include "io/metrics.h"
#include "models/moe_figures.h"

/* Not collective.  Adds to the open line of `m` (NULL: nothing) the list "moe", one object a layer:
 * its figures, `load` (the experts' shares of the choices of the step, sum 1) and seconds;
 * and "moe_over_layers", three objects `over` p50, p90, max: each figure over the layers
 * (nearest-rank percentiles). */
void bk_routing_write(bk_metrics *m, int layers, const bk_moe_figures *figures, bk_arena *arena);

/* Sets the same figures but layer, load and the seconds, which differ from run to run. */
void bk_routing_attributes(const bk_moe_figures *figures, bk_attributes *attributes);

#endif
