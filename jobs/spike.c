#include "jobs/spike.h"

#include <math.h>

enum { MEMORY = 100 };

static void learn(bk_spike_state *s, double norm)
{
    s->seen++;
    double n = s->seen < MEMORY ? (double)s->seen : MEMORY, before = norm - s->mean;
    s->mean += before / n;
    s->variance += (before * (norm - s->mean) - s->variance) / n;
}

bool bk_spike_seen(bk_spike_state *s, double zscore, double norm)
{
    bool far = s->seen >= BK_SPIKE_WARMUP && norm - s->mean > zscore * sqrt(s->variance);
    if (zscore <= 0.0)
        return false;
    if (far && s->row < BK_SPIKES_IN_A_ROW) {
        s->row++;
        return true;
    }
    s->row = 0;
    learn(s, norm);
    return false;
}
