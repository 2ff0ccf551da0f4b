/* Options of every transport problem: one table for the operator, the command and the benchmark. */
#include "core/transport/internal.h"

#include <math.h>

#define CONFIG bk_transport_config

const bk_option bk_transport_options[] = {
    BK_OPTION_CHOICE(CONFIG, method, BK_TRANSPORT_SINKHORN, "sinkhorn|newton|sns",
                     "newton: for high accuracy and sharp problems"),
    BK_OPTION_F64_ABOVE(CONFIG, epsilon, 0.05, 0.0, 1e300,
                        "regularisation, in cost units after cost_scale"),
    BK_OPTION_CHOICE(CONFIG, cost_scale, BK_COST_SCALE_NONE, "none|max|mean",
                     "divide the cost by this statistic of its finite entries"),
    BK_OPTION_I64_OR(CONFIG, iterations, 0, "auto", 0, 1, 1e12,
                     "most sweeps (2000), or Newton steps over all stages (200)"),
    BK_OPTION_F64_OR(CONFIG, tolerance, -1.0, "auto", -1.0, 0.0, 1e300,
                     "L1 error of the marginals (f32 1e-5, f64 1e-9); 0 = all sweeps"),
    BK_OPTION_CHOICE(CONFIG, marginals, BK_MARGINALS_AUTO, "auto|given|normalize|uniform|ones",
                     "a and b as they are, divided by their sums, 1/n and 1/m, or 1 and n/m"),
    BK_OPTION_F64_ABOVE_OR(CONFIG, unbalanced, INFINITY, "none", INFINITY, 0.0, 1e300,
                           "rho of both sides: marginals are penalised instead of met"),
    BK_OPTION_F64_ABOVE_OR(CONFIG, unbalanced_a, -1.0, "same", -1.0, 0.0, 1e300,
                           "rho of the rows alone"),
    BK_OPTION_F64_ABOVE_OR(CONFIG, unbalanced_b, -1.0, "same", -1.0, 0.0, 1e300,
                           "rho of the columns alone"),
    BK_OPTION_CHOICE(CONFIG, mode, BK_TRANSPORT_AUTO, "auto|absorbed|pform|log",
                     "form of the sweeps"),
    BK_OPTION_F64_OR(CONFIG, omega, 1.0, "auto", 0.0, 1.0, 1.9999,
                     "over-relaxation of sinkhorn; auto: from the rate of the first sweeps"),
    BK_OPTION_CHOICE(CONFIG, scaling, BK_SCALING_AUTO, "auto|none|doubling",
                     "stages of 1/epsilon; newton: doubling"),
    BK_OPTION_F64_ABOVE(CONFIG, scaling_start, 50.0, 0.0, 1e12,
                        "first 1/epsilon, over the range of the cost"),
    BK_OPTION_F64(CONFIG, scaling_factor, 2.0, 1.01, 1e12, "1/epsilon from stage to stage"),
    BK_OPTION_I64(CONFIG, stage_sweeps, 5, 0, 1e9, "newton: sweeps before a stage's Newton steps"),
    BK_OPTION_F64_ABOVE(CONFIG, stage_tolerance, 1e-3, 0.0, 1e300,
                        "tolerance of every stage but the last"),
    BK_OPTION_I64(CONFIG, warm_sweeps, 20, 0, 1e9, "sns: sweeps before the Newton steps"),
    BK_OPTION_I64(CONFIG, keep, 10, 1, 1e9,
                  "sns: entries of the plan kept, a row of the longer side"),
    BK_OPTION_CHOICE(CONFIG, solver, BK_SOLVER_AUTO, "auto|dense|cg",
                     "newton: dense up to 2048 columns"),
    BK_OPTION_F64_ABOVE(CONFIG, cg_tolerance, 1e-8, 0.0, 1.0, "relative residual of a solve"),
    BK_OPTION_I64(CONFIG, cg_iterations, 500, 1, 1e9, "most iterations of a solve"),
    BK_OPTION_CHOICE(CONFIG, value, BK_VALUE_COST, "cost|kl|entropy", "which number is the value"),
    BK_OPTION_CHOICE(CONFIG, gradient, BK_GRADIENT_AUTO, "auto|envelope|implicit|unrolled",
                     "how the solution is differentiated"),
    BK_OPTION_BOOL(CONFIG, debias, false, "OT(a,b) - OT(a,a)/2 - OT(b,b)/2; needs x and y"),
    BK_OPTION_CHOICE(CONFIG, metric, BK_METRIC_SQEUCLIDEAN, "sqeuclidean|euclidean|l1",
                     "cost of x and y, without a factor 1/2"),
    BK_OPTION_END,
};

/* What cannot be differentiated by going back through the sweeps. */
static const char *not_unrolled(const bk_transport_config *c)
{
    if (c->method != BK_TRANSPORT_SINKHORN)
        return "a method other than sinkhorn";
    if (c->omega != 1.0)
        return "omega other than 1";
    if (c->scaling == BK_SCALING_DOUBLING)
        return "scaling";
    return c->mode == BK_TRANSPORT_ABSORBED ? "mode=absorbed" : NULL;
}

bool bk_transport_unrollable(const bk_transport_config *c)
{
    return not_unrolled(c) == NULL;
}

static bk_status check_gradient(const bk_transport_config *c)
{
    if (c->gradient == BK_GRADIENT_UNROLLED && not_unrolled(c))
        return bk_fail(BK_USAGE, "gradient=unrolled is not there for %s (transport): use implicit",
                       not_unrolled(c));
    if (c->gradient == BK_GRADIENT_ENVELOPE && c->value == BK_VALUE_COST && !c->debias)
        return bk_fail(BK_USAGE, "gradient=envelope needs value=kl or value=entropy (transport): "
                                 "<C,P> alone has no envelope; use implicit");
    return BK_OK;
}

static bk_status check_debias(const bk_transport_config *c)
{
    if (!c->debias)
        return BK_OK;
    if (c->gradient == BK_GRADIENT_UNROLLED || c->gradient == BK_GRADIENT_IMPLICIT)
        return bk_fail(BK_USAGE,
                       "debias=true is differentiated by its envelope (transport): remove "
                       "gradient");
    if (c->value == BK_VALUE_ENTROPY)
        return bk_fail(BK_USAGE, "debias=true is made of values kl (transport): remove value");
    if (bk_transport_rho(c, 0) != bk_transport_rho(c, 1))
        return bk_fail(BK_USAGE, "debias=true takes a against a and b against b, so it needs one "
                                 "rho for both sides (transport): use unbalanced=RHO");
    if (c->cost_scale != BK_COST_SCALE_NONE)
        return bk_fail(BK_USAGE, "debias=true takes three costs, which cost_scale would divide by "
                                 "three numbers (transport): use cost_scale=none");
    return BK_OK;
}

/* What a method would pass over in silence. */
static bk_status check_method(const bk_transport_config *c)
{
    if (c->omega != 1.0 && c->method != BK_TRANSPORT_SINKHORN)
        return bk_fail(BK_USAGE, "omega is the over-relaxation of method=sinkhorn (transport): "
                                 "remove it");
    if (c->scaling == BK_SCALING_DOUBLING && c->method == BK_TRANSPORT_SNS)
        return bk_fail(BK_USAGE, "method=sns works at one epsilon (transport): remove scaling, or "
                                 "use method=newton");
    return BK_OK;
}

bk_status bk_transport_check_marginals(const bk_transport_config *c, bool a, bool b)
{
    if ((a || b) && (c->marginals == BK_MARGINALS_UNIFORM || c->marginals == BK_MARGINALS_ONES))
        return bk_fail(BK_USAGE,
                       "%s is not read with marginals=uniform or ones (transport): remove "
                       "it",
                       a ? "a" : "b");
    if (!(a && b) && (c->marginals == BK_MARGINALS_GIVEN || c->marginals == BK_MARGINALS_NORMALIZE))
        return bk_fail(BK_USAGE,
                       "input %s is missing (transport): marginals=given and normalize "
                       "read it",
                       a ? "b" : "a");
    return BK_OK;
}

bk_status bk_transport_check(const bk_transport_config *c)
{
    bool soft = isfinite(bk_transport_rho(c, 0)) || isfinite(bk_transport_rho(c, 1));
    if (c->method == BK_TRANSPORT_SNS && soft)
        return bk_fail(BK_USAGE, "method=sns is for balanced problems (transport): use newton");
    if (c->method != BK_TRANSPORT_SINKHORN && c->tolerance == 0.0)
        return bk_fail(BK_USAGE, "tolerance=0 runs a number of sweeps (transport): only with "
                                 "method=sinkhorn");
    if (c->omega != 1.0 && soft)
        return bk_fail(BK_USAGE, "over-relaxation is for balanced problems (transport): omega=1");
    if ((c->omega != 1.0 || soft) &&
        (c->mode == BK_TRANSPORT_PFORM || c->mode == BK_TRANSPORT_ABSORBED))
        return bk_fail(
            BK_USAGE,
            "%s leaves rows that are not exact, which mode=%s relies on (transport): use "
            "mode=log or auto",
            soft ? "an unbalanced problem" : "over-relaxation",
            c->mode == BK_TRANSPORT_PFORM ? "pform" : "absorbed");
    BK_TRY(check_method(c));
    BK_TRY(check_gradient(c));
    return check_debias(c);
}

bool bk_transport_translates(const bk_transport_config *c)
{
    return isfinite(bk_transport_rho(c, 0)) && isfinite(bk_transport_rho(c, 1)) &&
           c->tolerance != 0.0 && c->gradient != BK_GRADIENT_UNROLLED;
}

double bk_transport_rho(const bk_transport_config *c, int side)
{
    double own = side == 0 ? c->unbalanced_a : c->unbalanced_b;
    return own < 0.0 ? c->unbalanced : own;
}
