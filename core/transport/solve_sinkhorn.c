/* Sinkhorn: stages of eta, sweeps until a stage's tolerance, safer forms when numbers run out,
 * guarded over-relaxation. */
#include "core/transport/internal.h"

#include <math.h>
#include <string.h>

void bk_transport_note(bk_transport_working *w, double error, bool newton)
{
    bk_transport_result *r = w->result;
    if (r->steps == w->step_room) {
        int64_t room = w->step_room > 0 ? 2 * w->step_room : 64;
        bk_transport_step *more = BK_NEW(w->problem.arena, bk_transport_step, room);
        if (r->steps > 0)
            memcpy(more, r->step, (size_t)r->steps * sizeof *more);
        r->step = more;
        w->step_room = room;
    }
    r->step[r->steps++] = (bk_transport_step){w->divisor / w->eta, error, newton};
    if (w->problem.progress)
        w->problem.progress(w->problem.progress_context, r);
}

/* ---- stages ---- */

double bk_transport_first_eta(const bk_transport_working *w)
{
    double range = w->most - w->least, eta = 1.0 / w->epsilon;
    return range > 0.0 ? fmin(eta, w->config.scaling_start / range) : eta;
}

double bk_transport_next_eta(const bk_transport_working *w)
{
    return fmin(1.0 / w->epsilon, w->eta * w->config.scaling_factor);
}

/* ---- progress ---- */

/* The best error, and what it was one window of sweeps ago. */
typedef struct progress {
    double best, before;
    int64_t sweeps;
} progress;

static bool stagnates(progress *p, double error)
{
    enum { WINDOW = 200 };
    p->best = fmin(p->best, error);
    if (++p->sweeps % WINDOW != 0)
        return false;
    bool stands = p->best > 0.99 * p->before;
    p->before = p->best;
    return stands;
}

/* ---- guarded over-relaxation ---- */

typedef struct relaxation {
    double omega; /* asked for; 0 = auto */
    double best, reference;
    double *u, *v; /* at the best error */
    int64_t sweeps;
    int guards;
} relaxation;

static void keep_best(bk_transport_working *w, relaxation *r, double error)
{
    r->best = error;
    memcpy(r->u, w->u, (size_t)w->rows * sizeof(double));
    memcpy(r->v, w->v, (size_t)w->columns * sizeof(double));
}

/* From the rate over five sweeps, once. */
static void choose_omega(bk_transport_working *w, relaxation *r, double error)
{
    enum { WARM = 20, MORE = 5 };
    if (r->sweeps == WARM)
        r->reference = error;
    if (r->sweeps != WARM + MORE || !(error > 0.0 && error < r->reference))
        return;
    double theta = pow(error / r->reference, 1.0 / MORE);
    w->omega = fmin(1.95, 2.0 / (1.0 + sqrt(1.0 - theta)));
    keep_best(w, r, error);
}

/* Back to the best potentials, with half of the relaxation; after the third time with none. */
static void retreat(bk_transport_working *w, relaxation *r)
{
    enum { GUARDS = 3 };
    memcpy(w->u, r->u, (size_t)w->rows * sizeof(double));
    memcpy(w->v, r->v, (size_t)w->columns * sizeof(double));
    w->omega = ++r->guards >= GUARDS ? 1.0 : 1.0 + (w->omega - 1.0) / 2.0;
    w->result->guard_events++;
}

static void guard(bk_transport_working *w, relaxation *r, double error)
{
    enum { EVERY = 10 };
    if (r->sweeps % EVERY != 0)
        return;
    if (error < r->best)
        keep_best(w, r, error);
    else if (error > 10.0 * r->best)
        retreat(w, r);
}

static void relax(bk_transport_working *w, relaxation *r, double error)
{
    r->sweeps++;
    if (r->omega == 1.0)
        return;
    if (r->omega > 1.0 && r->sweeps == 1) { /* the first sweep is a plain one */
        w->omega = r->omega;
        keep_best(w, r, INFINITY);
    } else if (r->omega == 0.0 && w->omega == 1.0 && r->guards == 0) {
        choose_omega(w, r, error);
    } else if (w->omega > 1.0) {
        guard(w, r, error);
    }
}

static relaxation relaxation_of(const bk_transport_working *w)
{
    return (relaxation){.omega = w->config.omega,
                        .u = BK_NEW(w->problem.scratch, double, w->rows),
                        .v = BK_NEW(w->problem.scratch, double, w->columns)};
}

/* ---- the form of the sweeps ---- */

static bk_transport_mode form_of(const bk_transport_working *w, int64_t most)
{
    enum { SWEEPS = 50, ENTRIES = 65536 };
    const bk_transport_config *c = &w->config;
    if (c->mode != BK_TRANSPORT_AUTO)
        return (bk_transport_mode)c->mode;
    if (!bk_transport_balanced(w) || c->omega != 1.0)
        return BK_TRANSPORT_LOG;
    bool pays = most > SWEEPS && w->total * w->columns >= ENTRIES && c->tolerance > 0.0;
    return pays && w->cost && !w->record ? BK_TRANSPORT_ABSORBED : BK_TRANSPORT_PFORM;
}

/* The kernel is made from potentials that two P-form sweeps have brought near. */
static bk_transport_mode form_of_sweep(bk_transport_mode mode, int64_t sweep)
{
    return mode == BK_TRANSPORT_ABSORBED && sweep < 2 ? BK_TRANSPORT_PFORM : mode;
}

static void record(bk_transport_working *w)
{
    bk_arena *arena = w->problem.arena;
    bk_transport_record *r = BK_NEW(arena, bk_transport_record, 1);
    *r = (bk_transport_record){.before = w->last,
                               .u = BK_NEW(arena, double, w->rows),
                               .v = BK_NEW(arena, double, w->columns)};
    memcpy(r->u, w->next_u, (size_t)w->rows * sizeof(double));
    memcpy(r->v, w->next_v, (size_t)w->columns * sizeof(double));
    w->last = r;
}

/* One sweep in the current form, or in a safer one.  False: no form keeps the numbers finite. */
static bool sweep(bk_transport_working *w, bk_transport_mode *mode, int64_t done, double *error)
{
    bk_transport_mode form = form_of_sweep(*mode, done);
    while (!bk_transport_sweep(w, form, error)) {
        if (form == BK_TRANSPORT_LOG)
            return false;
        if (form == BK_TRANSPORT_ABSORBED)
            bk_transport_absorb(w);
        *mode = form = (bk_transport_mode)(form + 1);
        w->result->escalations++;
    }
    if (w->record)
        record(w);
    if (form != BK_TRANSPORT_ABSORBED)
        bk_transport_accept(w);
    w->result->mode = form;
    w->result->sweeps++;
    bk_transport_note(w, *error, false);
    return true;
}

bk_transport_status bk_transport_stage(bk_transport_working *w, double tolerance, int64_t most)
{
    bk_arena_mark mark = bk_arena_get_mark(w->problem.scratch);
    bk_transport_mode mode = form_of(w, most - w->result->sweeps);
    bk_transport_status status = BK_TRANSPORT_MAX_ITERATIONS;
    progress p = {INFINITY, INFINITY, 0};
    relaxation r = relaxation_of(w);
    double error, goal = bk_transport_balanced(w) ? tolerance * w->mass : tolerance;
    w->omega = 1.0;
    for (int64_t done = 0; w->result->sweeps < most; done++) {
        bool finite = sweep(w, &mode, done, &error);
        if (!finite && w->omega > 1.0) {
            retreat(w, &r);
            continue;
        }
        if (!finite)
            status = BK_TRANSPORT_NOT_FINITE;
        else if (tolerance > 0.0 && error <= goal)
            status = BK_TRANSPORT_CONVERGED;
        else if (tolerance > 0.0 && stagnates(&p, error))
            status = BK_TRANSPORT_STAGNATED;
        if (status != BK_TRANSPORT_MAX_ITERATIONS)
            break;
        relax(w, &r, error);
    }
    bk_transport_absorb(w);
    bk_arena_release(w->problem.scratch, mark);
    return status;
}

bk_transport_status bk_transport_solve_sinkhorn(bk_transport_working *w)
{
    const bk_transport_config *c = &w->config;
    double eta = 1.0 / w->epsilon;
    if (c->scaling == BK_SCALING_DOUBLING) {
        bk_transport_set_eta(w, bk_transport_first_eta(w));
        while (w->eta < eta) {
            bk_transport_status status =
                bk_transport_stage(w, fmax(c->stage_tolerance, c->tolerance), c->iterations);
            if (status == BK_TRANSPORT_NOT_FINITE)
                return status;
            if (w->result->sweeps >= c->iterations) /* short of the epsilon that was asked for */
                return BK_TRANSPORT_MAX_ITERATIONS;
            bk_transport_set_eta(w, bk_transport_next_eta(w));
        }
    }
    bk_transport_status status = bk_transport_stage(w, c->tolerance, c->iterations);
    bool fixed = c->tolerance == 0.0 && status == BK_TRANSPORT_MAX_ITERATIONS;
    return fixed ? BK_TRANSPORT_FIXED : status;
}
