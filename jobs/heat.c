#include "jobs/heat.h"

#include "jobs/plot.h"

#include <math.h>
#include <string.h>

enum { WIDTH = 480, HEIGHT = 192, LEFT = 60, TOP = 90, ACROSS = 100, DOWN = 80, ACROSS_MAPS = 2 };
enum { MOST_COLUMNS = 160, MOST_ROWS = 64 };

/* ---- columns ---- */

static void make_room(bk_arena *arena, bk_heat *h)
{
    if (h->columns < h->room)
        return;
    h->room = 2 * h->room + 64;
    double *step = BK_NEW(arena, double, h->room),
           *load = BK_NEW(arena, double, h->room * h->experts);
    if (h->columns > 0) {
        memcpy(step, h->step, (size_t)h->columns * sizeof *step);
        memcpy(load, h->load, (size_t)(h->columns * h->experts) * sizeof *load);
    }
    h->step = step;
    h->load = load;
}

void bk_heat_add(bk_arena *arena, bk_heat *heat, double step, const double *load)
{
    bool finite = isfinite(step);
    for (int64_t e = 0; e < heat->experts; e++)
        finite = finite && isfinite(load[e]);
    if (!finite)
        return;
    make_room(arena, heat);
    heat->step[heat->columns] = step;
    memcpy(heat->load + heat->columns * heat->experts, load, (size_t)heat->experts * sizeof *load);
    heat->columns++;
}

/* ---- drawing ---- */

/* Piece i of n things cut into `pieces`: the first of them. */
static int64_t cut(int64_t n, int64_t pieces, int64_t i)
{
    return n * i / pieces;
}

/* Load over mean, averaged over columns [c0,c1) and experts [e0,e1). */
static double mean_load(const bk_heat *h, int64_t c0, int64_t c1, int64_t e0, int64_t e1)
{
    double sum = 0.0;
    for (int64_t c = c0; c < c1; c++)
        for (int64_t e = e0; e < e1; e++)
            sum += h->load[c * h->experts + e];
    return sum * (double)h->experts / (double)((c1 - c0) * (e1 - e0));
}

static void color_of(double load, char text[16])
{
    static const double blue[] = {31.0, 95.0, 168.0}, red[] = {181.0, 69.0, 27.0};
    const double *end = load < 1.0 ? blue : red;
    double t = fmin(fabs(load - 1.0), 1.0);
    snprintf(text, 16, "#%02x%02x%02x", (unsigned)(255.0 + t * (end[0] - 255.0)),
             (unsigned)(255.0 + t * (end[1] - 255.0)), (unsigned)(255.0 + t * (end[2] - 255.0)));
}

static double step_before(const bk_heat *h, int64_t column)
{
    return column > 0 ? h->step[column - 1] : 0.0;
}

static void put_cells(FILE *f, const bk_heat *h, double left, double top)
{
    int64_t columns = h->columns < MOST_COLUMNS ? h->columns : MOST_COLUMNS,
            rows = h->experts < MOST_ROWS ? h->experts : MOST_ROWS;
    double scale = WIDTH / h->step[h->columns - 1], tall = (double)HEIGHT / (double)rows;
    char color[16];
    for (int64_t i = 0; i < columns; i++) {
        int64_t c0 = cut(h->columns, columns, i), c1 = cut(h->columns, columns, i + 1);
        double x0 = scale * step_before(h, c0), x1 = scale * h->step[c1 - 1];
        for (int64_t j = 0; j < rows; j++) {
            color_of(mean_load(h, c0, c1, cut(h->experts, rows, j), cut(h->experts, rows, j + 1)),
                     color);
            fprintf(f, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n",
                    left + x0, top + HEIGHT - tall * (double)(j + 1), x1 - x0, tall, color);
        }
    }
}

static void put_map(FILE *f, const bk_heat *h, double left, double top)
{
    char text[64];
    snprintf(text, sizeof text, "layer %lld", (long long)h->layer);
    bk_plot_text(f, left + 0.5 * WIDTH, top - 10.0, "middle", text);
    put_cells(f, h, left, top);
    fprintf(f,
            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%d\" height=\"%d\" fill=\"none\" "
            "stroke=\"#888\"/>\n",
            left, top, WIDTH, HEIGHT);
    bk_plot_text(f, left, top + HEIGHT + 16.0, "middle", "0");
    snprintf(text, sizeof text, "%.0f", h->step[h->columns - 1]);
    bk_plot_text(f, left + WIDTH, top + HEIGHT + 16.0, "middle", text);
    bk_plot_text(f, left + 0.5 * WIDTH, top + HEIGHT + 32.0, "middle", "step");
    bk_plot_text(f, left - 6.0, top + HEIGHT, "end", "expert 0");
    snprintf(text, sizeof text, "%lld", (long long)h->experts - 1);
    bk_plot_text(f, left - 6.0, top + 10.0, "end", text);
}

/* What the colours mean. */
static void put_scale(FILE *f, double left, double top)
{
    char color[16], text[32];
    bk_plot_text(f, left, top + 10.0, "start", "load / mean");
    for (int i = 0; i <= 8; i++) {
        double x = left + 80.0 + 20.0 * i;
        color_of(0.25 * i, color);
        fprintf(f, "<rect x=\"%.1f\" y=\"%.1f\" width=\"20\" height=\"12\" fill=\"%s\"/>\n", x, top,
                color);
        snprintf(text, sizeof text, i == 8 ? "%d+" : "%d", i / 4);
        if (i % 4 == 0)
            bk_plot_text(f, x + 10.0, top + 26.0, "middle", text);
    }
}

void bk_heat_write(FILE *file, const char *title, const bk_heat *heat, int maps)
{
    int filled = 0, drawn = 0;
    for (int i = 0; i < maps; i++)
        filled += heat[i].columns > 0;
    int rows = (filled + ACROSS_MAPS - 1) / ACROSS_MAPS;
    bk_plot_begin(file, title, LEFT + ACROSS_MAPS * (WIDTH + ACROSS), TOP + rows * (HEIGHT + DOWN));
    put_scale(file, LEFT, 30.0);
    for (int i = 0; i < maps; i++) {
        if (heat[i].columns == 0)
            continue;
        put_map(file, &heat[i], LEFT + drawn % ACROSS_MAPS * (WIDTH + ACROSS),
                TOP + drawn / ACROSS_MAPS * (HEIGHT + DOWN));
        drawn++;
    }
    fputs("</svg>\n", file);
}
