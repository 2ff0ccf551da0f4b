#include "jobs/saving.h"

#include "core/fault.h"
#include "core/log.h"
#include "dist/watchdog.h"

#include <math.h>
#include <stdio.h>

bk_saving bk_saving_of(bk_job *job, bk_progress *progress)
{
    double minutes = job->config->checkpoint.minutes;
    job->save_at = minutes > 0.0 ? bk_seconds() + 60.0 * minutes : INFINITY;
    job->save_from = -INFINITY;
    return (bk_saving){.job = job,
                       .progress = progress,
                       .begun = bk_seconds(),
                       .step = -1,
                       .saved_step = job->checkpoint ? job->state.step : -1};
}

bool bk_saving_due(const bk_saving *s, const bk_step_result *r)
{
    int64_t step = s->job->state.step, every = s->job->config->checkpoint.every;
    return ((every > 0 && step % every == 0) || r->save_is_due) && !r->save_is_dear;
}

/* ---- outcomes ---- */

/* Young's interval sqrt(2 C M) and the share of time lost at it, C/T + T/2M (Young 1974). */
static void advise(bk_saving *s)
{
    double failures = 3600.0 * s->job->config->checkpoint.mtbf_hours, c = s->last_stall;
    double interval = sqrt(2.0 * c * failures);
    if (!s->advised && c > 0.0)
        bk_note("with a failure every %g h, a checkpoint every %.0f s costs least (%.2g %% of the "
                "time)",
                s->job->config->checkpoint.mtbf_hours, interval,
                100.0 * (c / interval + interval / (2.0 * failures)));
    s->advised = true;
}

static void committed(bk_saving *s, const bk_saved *saved)
{
    double overhead = s->job->config->checkpoint.max_overhead;
    s->failures = 0;
    s->saved_step = saved->step;
    s->longest = fmax(s->longest, saved->seconds);
    s->last_stall = saved->stall;
    if (overhead > 0.0)
        s->job->save_from = s->begun + s->last_stall / overhead;
    bk_progress_break(s->progress);
    bk_note("saved step %lld (%.1f MB, %.2f s, stall %.2f s)", (long long)saved->step,
            (double)saved->bytes / 1e6, saved->seconds, saved->stall);
    advise(s);
}

static bk_status failed(bk_saving *s, bk_status status)
{
    char text[2048];
    snprintf(text, sizeof text, "%s", bk_status_text());
    bk_progress_break(s->progress);
    return bk_fail(status, "the checkpoint of step %lld was not saved: %s", (long long)s->step,
                   text);
}

/* One of many: the training goes on without it, a few times. */
static bk_status forgive(bk_saving *s, bk_status status)
{
    if (status == BK_OK || ++s->failures >= s->job->config->checkpoint.failures)
        return status;
    bk_warn("%s", bk_status_text());
    return BK_OK;
}

/* To the end of what is under way. */
static bk_status finish(bk_saving *s)
{
    bk_saved saved = {0};
    if (!bk_saver_busy(s->job->saver))
        return BK_OK;
    bk_watchdog_phase(BK_PHASE_SAVE);
    bk_status status = bk_saver_finish(s->job->saver, &saved);
    if (status != BK_OK)
        return failed(s, status);
    committed(s, &saved);
    return BK_OK;
}

/* ---- beginnings ---- */

static bk_status begin(bk_saving *s)
{
    const bk_config_checkpoint *c = &s->job->config->checkpoint;
    bk_fault(BK_FAULT_SAVE_AGREE);
    s->begun = bk_seconds();
    s->step = s->job->state.step;
    if (c->minutes > 0.0)
        s->job->save_at = s->begun + 60.0 * c->minutes;
    bk_status status = bk_job_save(s->job);
    if (status != BK_OK)
        return failed(s, status);
    return c->async ? BK_OK : finish(s);
}

bk_status bk_saving_begin(bk_saving *s, bool must)
{
    bool skips = s->job->config->checkpoint.async_busy == BK_BUSY_SKIP;
    if (bk_saver_busy(s->job->saver) && !must && skips) {
        s->skipped++;
        return BK_OK;
    }
    BK_TRY(forgive(s, finish(s)));
    return forgive(s, begin(s));
}

bk_status bk_saving_move(bk_saving *s, const bk_step_result *r)
{
    bk_saved saved = {0};
    if (!r->saver_waits)
        return BK_OK;
    bk_status status = bk_saver_advance(s->job->saver, &saved);
    if (status != BK_OK)
        return forgive(s, failed(s, status));
    if (!bk_saver_busy(s->job->saver))
        committed(s, &saved);
    return BK_OK;
}

bk_status bk_saving_for_good(bk_saving *s, bool again)
{
    BK_TRY(forgive(s, finish(s)));
    if (s->saved_step == s->job->state.step && !again)
        return BK_OK;
    BK_TRY(begin(s));
    return finish(s);
}

bk_status bk_saving_end(bk_saving *s)
{
    bk_status status = finish(s);
    if (s->skipped > 0)
        bk_note("%lld checkpoints were left out: the one before was still being written "
                "(checkpoint.async_busy=wait waits for it)",
                (long long)s->skipped);
    return status;
}
