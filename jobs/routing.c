#include "jobs/routing.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

typedef struct figure {
    const char *name;
    size_t offset; /* in bk_moe_figures: a double, or */
    bool integer;  /* an int64_t */
} figure;

#define REAL(name_)                                    \
    {                                                  \
#name_, offsetof(bk_moe_figures, name_), false \
    }
#define WHOLE(name_)                                  \
    {                                                 \
#name_, offsetof(bk_moe_figures, name_), true \
    }
#define SECONDS(name_, phase_)                                                              \
    {                                                                                       \
        name_, offsetof(bk_moe_figures, seconds) + (size_t)(phase_) * sizeof(double), false \
    }

static const figure list[] = {
    REAL(load_max_over_mean),
    REAL(load_min_over_mean),
    REAL(load_cv),
    REAL(load_entropy),
    WHOLE(dead),
    REAL(rank_load_max_over_mean),
    REAL(token_entropy),
    REAL(confidence),
    REAL(kept_mass),
    REAL(drop_rate),
    REAL(soft_column_error),
    WHOLE(router_iterations),
    WHOLE(router_unconverged),
    WHOLE(router_held),
    WHOLE(ot_steps),
    WHOLE(nonfinite_logits),
    REAL(aux),
    REAL(z),
    WHOLE(bytes_sent),
    SECONDS("route", BK_MOE_ROUTE),
    SECONDS("pack", BK_MOE_PACK),
    SECONDS("exchange", BK_MOE_EXCHANGE),
    SECONDS("gemm", BK_MOE_GEMM),
    SECONDS("combine", BK_MOE_COMBINE),
};

enum { FIGURES = sizeof list / sizeof *list };

static double value_of(const figure *x, const bk_moe_figures *f)
{
    const void *at = (const char *)f + x->offset;
    return x->integer ? (double)*(const int64_t *)at : *(const double *)at;
}

static void write_value(bk_metrics *m, const figure *x, double value)
{
    if (x->integer)
        bk_metrics_integer(m, x->name, (int64_t)value);
    else
        bk_metrics_number(m, x->name, value);
}

static void write_layer(bk_metrics *m, const bk_moe_figures *f)
{
    bk_metrics_next_item(m);
    bk_metrics_integer(m, "layer", f->layer);
    for (int i = 0; i < FIGURES; i++)
        write_value(m, &list[i], value_of(&list[i], f));
    bk_metrics_numbers(m, "load", f->experts, f->share);
}

static int rising(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The smallest value that at least `share` of the layers do not exceed. */
static void write_percentile(bk_metrics *m, const char *name, double share, int layers,
                             const double *sorted)
{
    int place = (int)ceil(share * layers) - 1;
    bk_metrics_next_item(m);
    bk_metrics_text(m, "over", name);
    for (int i = 0; i < FIGURES; i++)
        write_value(m, &list[i], sorted[i * layers + place]);
}

void bk_routing_write(bk_metrics *m, int layers, const bk_moe_figures *figures, bk_arena *arena)
{
    double *sorted = BK_NEW(arena, double, FIGURES *layers);
    bk_metrics_open_list(m, "moe");
    for (int l = 0; l < layers; l++)
        write_layer(m, &figures[l]);
    bk_metrics_close_list(m);
    for (int i = 0; i < FIGURES; i++) {
        for (int l = 0; l < layers; l++)
            sorted[i * layers + l] = value_of(&list[i], &figures[l]);
        qsort(sorted + i * layers, (size_t)layers, sizeof *sorted, rising);
    }
    bk_metrics_open_list(m, "moe_over_layers");
    write_percentile(m, "p50", 0.5, layers, sorted);
    write_percentile(m, "p90", 0.9, layers, sorted);
    write_percentile(m, "max", 1.0, layers, sorted);
    bk_metrics_close_list(m);
}

void bk_routing_attributes(const bk_moe_figures *figures, bk_attributes *attributes)
{
    for (int i = 0; i < FIGURES && list[i].offset < offsetof(bk_moe_figures, seconds); i++)
        if (list[i].integer)
            bk_attribute_set_integer(attributes, list[i].name,
                                     (int64_t)value_of(&list[i], figures));
        else
            bk_attribute_set(attributes, list[i].name, value_of(&list[i], figures));
}
