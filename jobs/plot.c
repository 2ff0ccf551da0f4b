#include "jobs/plot.h"

#include <math.h>
#include <string.h>

enum { WIDTH = 300, HEIGHT = 180, LEFT = 60, TOP = 60, ACROSS = 150, DOWN = 90, COLUMNS = 3 };
enum { LEGEND = 6 /* names of more curves: the first and the last */ };

/* ---- points ---- */

static bk_series *series_of(bk_panel *panel, const char *name)
{
    for (int i = 0; i < panel->count; i++)
        if (strcmp(panel->series[i].name, name) == 0)
            return &panel->series[i];
    if (panel->count == BK_PANEL_SERIES)
        return NULL;
    bk_series *s = &panel->series[panel->count++];
    *s = (bk_series){.name = name};
    return s;
}

static void make_room(bk_arena *arena, bk_series *s)
{
    if (s->points < s->room)
        return;
    s->room = 2 * s->room + 64;
    double *x = BK_NEW(arena, double, s->room), *y = BK_NEW(arena, double, s->room);
    if (s->points > 0) {
        memcpy(x, s->x, (size_t)s->points * sizeof *x);
        memcpy(y, s->y, (size_t)s->points * sizeof *y);
    }
    s->x = x;
    s->y = y;
}

void bk_panel_add(bk_arena *arena, bk_panel *panel, const char *name, double x, double y)
{
    bk_series *s = isfinite(x) && isfinite(y) && (y > 0.0 || !panel->logarithmic)
                       ? series_of(panel, name)
                       : NULL;
    if (!s)
        return;
    make_room(arena, s);
    s->x[s->points] = x;
    s->y[s->points++] = panel->logarithmic ? log10(y) : y;
}

/* ---- axes ---- */

/* A range of values, cut at multiples of `step`, over `pixels` from `origin` on. */
typedef struct axis {
    double low, high, step, origin, pixels;
} axis;

/* 1, 2 or 5 times a power of ten: about four in the range. */
static double nice_step(double range)
{
    double rough = range / 4.0, power = pow(10.0, floor(log10(rough))), part = rough / power;
    return power * (part < 1.5 ? 1.0 : part < 3.5 ? 2.0 : part < 7.5 ? 5.0 : 10.0);
}

/* `whole`: layers, numbers of eigenvalues and decades are whole. */
static axis axis_of(const bk_panel *p, bool vertical, bool whole)
{
    axis a = {INFINITY, -INFINITY, 1.0, 0.0, 0.0};
    for (int i = 0; i < p->count; i++)
        for (int64_t k = 0; k < p->series[i].points; k++) {
            double value = vertical ? p->series[i].y[k] : p->series[i].x[k];
            a.low = fmin(a.low, value);
            a.high = fmax(a.high, value);
        }
    if (a.high - a.low < 1e-9 * fmax(1.0, fabs(a.high)))
        a.high = a.low + fmax(1.0, fabs(a.low));
    a.step = nice_step(a.high - a.low);
    a.step = whole ? fmax(1.0, a.step) : a.step;
    if (vertical) {
        a.low = a.step * floor(a.low / a.step + 1e-6);
        a.high = a.step * ceil(a.high / a.step - 1e-6);
    }
    return a;
}

static double place(const axis *a, double value)
{
    return a->origin + a->pixels * (value - a->low) / (a->high - a->low);
}

void bk_plot_text(FILE *f, double x, double y, const char *anchor, const char *text)
{
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    for (; *text; text++)
        switch (*text) {
        case '&':
            fputs("&amp;", f);
            break;
        case '<':
            fputs("&lt;", f);
            break;
        default:
            fputc(*text, f);
        }
    fputs("</text>\n", f);
}

static void put_ticks(FILE *f, const bk_panel *p, const axis *x, const axis *y)
{
    char text[32];
    for (double v = y->low; v <= y->high + 0.01 * y->step; v += y->step) {
        snprintf(text, sizeof text, p->logarithmic ? "1e%.0f" : "%.4g", fabs(v) < 1e-9 ? 0.0 : v);
        fprintf(f, "<path d=\"M%.1f %.1fh%d\" stroke=\"#ddd\"/>\n", x->origin, place(y, v), WIDTH);
        bk_plot_text(f, x->origin - 6.0, place(y, v) + 4.0, "end", text);
    }
    for (double v = x->step * ceil(x->low / x->step); v <= x->high + 0.01 * x->step; v += x->step) {
        snprintf(text, sizeof text, "%.6g", v);
        bk_plot_text(f, place(x, v), y->origin + 16.0, "middle", text);
    }
}

/* ---- curves ---- */

/* From blue to red. */
static void color_of(const bk_panel *p, int i, char text[16])
{
    double t = p->count > 1 ? (double)i / (p->count - 1) : 0.0;
    snprintf(text, 16, "#%02x%02x%02x", (int)(31 + 150 * t), (int)(95 - 26 * t),
             (int)(168 - 141 * t));
}

static void put_curve(FILE *f, const bk_panel *p, int i, const axis *x, const axis *y)
{
    const bk_series *s = &p->series[i];
    char color[16];
    color_of(p, i, color);
    fputs("<path d=\"", f);
    for (int64_t k = 0; k < s->points; k++)
        fprintf(f, "%c%.1f %.1f", k ? 'L' : 'M', place(x, s->x[k]), place(y, s->y[k]));
    fprintf(f, "\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\"/>\n", color);
    for (int64_t k = 0; k < s->points && s->points <= 16; k++)
        fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" fill=\"%s\"/>\n", place(x, s->x[k]),
                place(y, s->y[k]), color);
}

/* Right of the panel. */
static void put_legend(FILE *f, const bk_panel *p, double left, double top)
{
    char color[16];
    int line = 0;
    for (int i = 0; i < p->count; i++) {
        if (p->count > LEGEND && i > 0 && i < p->count - 1)
            continue;
        double x = left + WIDTH + 8.0, y = top + 12.0 + 14.0 * line++;
        color_of(p, i, color);
        fprintf(f, "<path d=\"M%.1f %.1fh10\" stroke=\"%s\" stroke-width=\"2\"/>\n", x, y - 4.0,
                color);
        bk_plot_text(f, x + 14.0, y, "start", p->series[i].name);
    }
}

static void put_panel(FILE *f, const bk_panel *p, double left, double top)
{
    axis x = axis_of(p, false, true), y = axis_of(p, true, p->logarithmic);
    x.origin = left;
    x.pixels = WIDTH;
    y.origin = top + HEIGHT;
    y.pixels = -HEIGHT;
    bk_plot_text(f, left + 0.5 * WIDTH, top - 10.0, "middle", p->title);
    bk_plot_text(f, left + 0.5 * WIDTH, top + HEIGHT + 34.0, "middle", p->axis);
    put_ticks(f, p, &x, &y);
    for (int i = 0; i < p->count; i++)
        put_curve(f, p, i, &x, &y);
    put_legend(f, p, left, top);
}

void bk_plot_begin(FILE *f, const char *title, int width, int height)
{
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
            "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"%d\" height=\"%d\" "
            "fill=\"white\"/>\n",
            width, height, width, height);
    bk_plot_text(f, 0.5 * width, 22.0, "middle", title);
}

void bk_plot_write(FILE *f, const char *title, const bk_panel *panel, int panels)
{
    int filled = 0, drawn = 0;
    for (int i = 0; i < panels; i++)
        filled += panel[i].count > 0;
    int rows = (filled + COLUMNS - 1) / COLUMNS, width = LEFT + COLUMNS * (WIDTH + ACROSS) - 50,
        height = TOP + rows * (HEIGHT + DOWN);
    bk_plot_begin(f, title, width, height);
    for (int i = 0; i < panels; i++) {
        if (panel[i].count == 0)
            continue;
        put_panel(f, &panel[i], LEFT + drawn % COLUMNS * (WIDTH + ACROSS),
                  TOP + drawn / COLUMNS * (HEIGHT + DOWN));
        drawn++;
    }
    fputs("</svg>\n", f);
}
