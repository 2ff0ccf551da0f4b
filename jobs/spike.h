/* jobs/spike.h - steps whose gradient is far larger than those before (optim.spike_zscore). */
#ifndef BK_JOBS_SPIKE_H
#define BK_JOBS_SPIKE_H

#include "io/checkpoint.h"

/* Steps in a row that may be left out; the next one counts, for the level has changed. */
enum { BK_SPIKES_IN_A_ROW = 5, BK_SPIKE_WARMUP = 20 };

/* Not collective, a function of what is the same on all ranks.  Whether the norm of this step's
 * gradient lies more than `zscore` standard deviations above the mean of those before:
 *   z = (g - m) / sqrt(v),  m <- m + (g - m) / n,  v <- v + ((g - m_old) (g - m_new) - v) / n,
 *   n = min(steps seen, 100),
 * an exponentially weighted mean and variance (Welford 1962; West 1979) that a spike does not
 * enter. Never within the first BK_SPIKE_WARMUP steps.  zscore 0: off.  The state travels in
 * checkpoints, so that a resumed run leaves out the same steps. */
bool bk_spike_seen(bk_spike_state *s, double zscore, double norm);

#endif
