/* The two rotations of a qubit in a block, and the three of the first layer, are one special
 * unitary 2x2 matrix [a, -b*; b, a*]; a block is such a matrix on each of its qubits between two
 * CX, which only exchange rows.  Of a qubit's gates backward needs Im <Lambda, sigma U> for the
 * three Pauli matrices behind the last of them: taking a rotation back turns that vector. */
#include "models/circuit_kernel.h"

#include "core/vector_kernel.h"

/* sin and cos of phi/2 for every angle. */
static void half_angles(int64_t count, const slots *restrict phi, slots *restrict sine,
                        slots *restrict cosine)
{
    for (int64_t k = 0; k < count; k++)
        EACH bk_sincos(BK_R(0.5) * phi[k].x[s], &sine[k].x[s], &cosine[k].x[s]);
}

/* ---- one qubit's rotations as one matrix ---- */

typedef struct turn {
    slots ar, ai, br, bi;
} turn;

/* [a, -b*; b, a*] (x0, x1). */
#define TURN(y, t, x0r, x0i, x1r, x1i)                                                         \
    const real y##0r =                                                                         \
        (t).ar.x[s] * (x0r) - (t).ai.x[s] * (x0i) - (t).br.x[s] * (x1r) - (t).bi.x[s] * (x1i); \
    const real y##0i =                                                                         \
        (t).ar.x[s] * (x0i) + (t).ai.x[s] * (x0r) - (t).br.x[s] * (x1i) + (t).bi.x[s] * (x1r); \
    const real y##1r =                                                                         \
        (t).br.x[s] * (x0r) - (t).bi.x[s] * (x0i) + (t).ar.x[s] * (x1r) + (t).ai.x[s] * (x1i); \
    const real y##1i =                                                                         \
        (t).br.x[s] * (x0i) + (t).bi.x[s] * (x0r) + (t).ar.x[s] * (x1i) - (t).ai.x[s] * (x1r)

typedef struct state {
    const bk_circuit_block *b;
    int m;
    int64_t rows, panel, angles;
    slots *sine, *cosine; /* [K] of half angles */
    slots *u, *lambda;    /* [rows,panel,2] */
    int64_t first, width; /* columns in work */
} state;

/* Rz, Ry, Rz by the angles k, k+1, k+2. */
static void turn_of_three(const state *w, int64_t k, turn *t)
{
    const slots *c = w->cosine + k, *n = w->sine + k;
    EACH
    {
        real c1 = c[0].x[s], s1 = n[0].x[s], c3 = c[2].x[s], s3 = n[2].x[s];
        t->ar.x[s] = c[1].x[s] * (c1 * c3 - s1 * s3);
        t->ai.x[s] = -c[1].x[s] * (c1 * s3 + s1 * c3);
        t->br.x[s] = n[1].x[s] * (c1 * c3 + s1 * s3);
        t->bi.x[s] = n[1].x[s] * (c1 * s3 - s1 * c3);
    }
}

/* Rz by angle k, then Ry by angle k + 2: the first qubit of a block; Rx by k + 1, then Ry by k + 3:
 * the second. */
static void turns_of_block(const state *w, int64_t k, turn *a, turn *b)
{
    const slots *c = w->cosine + k, *n = w->sine + k;
    EACH
    {
        a->ar.x[s] = c[2].x[s] * c[0].x[s];
        a->ai.x[s] = -c[2].x[s] * n[0].x[s];
        a->br.x[s] = n[2].x[s] * c[0].x[s];
        a->bi.x[s] = -n[2].x[s] * n[0].x[s];
        b->ar.x[s] = c[1].x[s] * c[3].x[s];
        b->ai.x[s] = n[1].x[s] * n[3].x[s];
        b->br.x[s] = c[1].x[s] * n[3].x[s];
        b->bi.x[s] = -n[1].x[s] * c[3].x[s];
    }
}

static void reverse(turn *t)
{
    EACH
    {
        t->ai.x[s] = -t->ai.x[s];
        t->br.x[s] = -t->br.x[s];
        t->bi.x[s] = -t->bi.x[s];
    }
}

/* ---- gates on the rows of a panel ---- */

static slots *row_of(const state *w, slots *x, int64_t row)
{
    return x + row * w->panel * 2;
}

/* Row pairs of qubit q are `apart` rows apart; `pair` counts those pairs. */
static int64_t row_of_pair(int64_t pair, int64_t apart)
{
    return pair / apart * 2 * apart + pair % apart;
}

static void turn_qubit(const state *w, int q, const turn *t)
{
    int64_t apart = w->rows >> (q + 1);
    for (int64_t pair = 0; pair < w->rows / 2; pair++) {
        slots *x0 = row_of(w, w->u, row_of_pair(pair, apart)), *x1 = x0 + apart * w->panel * 2;
        for (int64_t c = 0; c < 2 * w->width; c += 2)
            EACH
            {
                TURN(y, *t, x0[c].x[s], x0[c + 1].x[s], x1[c].x[s], x1[c + 1].x[s]);
                x0[c].x[s] = y0r;
                x0[c + 1].x[s] = y0i;
                x1[c].x[s] = y1r;
                x1[c + 1].x[s] = y1i;
            }
    }
}

/* The four rows of qubits (a, a+1) behind a CX: rows 2 and 3 stand exchanged. */
typedef struct four {
    slots *row[4];
} four;

static four four_rows(const state *w, slots *x, int a, int64_t index)
{
    int64_t apart = w->rows >> (a + 2), step = apart * w->panel * 2;
    slots *first = row_of(w, x, index / apart * 4 * apart + index % apart);
    return (four){{first, first + step, first + 3 * step, first + 2 * step}};
}

/* (A x B) on the four rows: the CX on either side are the order of the rows. */
static void turn_four(int64_t width, const turn *ta, const turn *tb, const four *f)
{
    slots *restrict r0 = f->row[0], *restrict r1 = f->row[1], *restrict r2 = f->row[2],
                    *restrict r3 = f->row[3];
    for (int64_t c = 0; c < 2 * width; c += 2)
        EACH
        {
            TURN(e, *ta, r0[c].x[s], r0[c + 1].x[s], r2[c].x[s], r2[c + 1].x[s]);
            TURN(o, *ta, r1[c].x[s], r1[c + 1].x[s], r3[c].x[s], r3[c + 1].x[s]);
            TURN(y, *tb, e0r, e0i, o0r, o0i);
            TURN(z, *tb, e1r, e1i, o1r, o1i);
            r0[c].x[s] = y0r;
            r0[c + 1].x[s] = y0i;
            r1[c].x[s] = y1r;
            r1[c + 1].x[s] = y1i;
            r2[c].x[s] = z0r;
            r2[c + 1].x[s] = z0i;
            r3[c].x[s] = z1r;
            r3[c + 1].x[s] = z1i;
        }
}

static void turn_block(const state *w, slots *x, int a, const turn *ta, const turn *tb)
{
    for (int64_t i = 0; i < w->rows / 4; i++) {
        four f = four_rows(w, x, a, i);
        turn_four(w->width, ta, tb, &f);
    }
}

/* ---- forward ---- */

static void identity(const state *w)
{
    for (int64_t r = 0; r < w->rows; r++)
        for (int64_t c = 0; c < w->width; c++) {
            slots *x = row_of(w, w->u, r) + 2 * c;
            EACH x[0].x[s] = r == w->first + c;
            EACH x[1].x[s] = 0;
        }
}

static void forward(const state *w)
{
    int64_t k = 3 * w->m;
    turn ta, tb;
    identity(w);
    for (int q = 0; q < w->m; q++) {
        turn_of_three(w, 3 * q, &ta);
        turn_qubit(w, q, &ta);
    }
    for (int64_t layer = 0; layer < w->b->circuit.layers; layer++)
        for (int from = 0; from < 2; from++)
            for (int a = from; a + 1 < w->m; a += 2, k += 4) {
                turns_of_block(w, k, &ta, &tb);
                turn_block(w, w->u, a, &ta, &tb);
            }
}

/* P += |U|^2 / A over the panel. */
static void add_squares(const state *w)
{
    int ancilla = w->b->circuit.ancilla;
    int64_t n = (int64_t)1 << w->b->circuit.data;
    const real share = (real)(1.0 / (double)((int64_t)1 << ancilla));
    slots *p = w->b->p;
    for (int64_t r = 0; r < w->rows; r++)
        for (int64_t c = 0; c < w->width; c++) {
            const slots *restrict x = row_of(w, w->u, r) + 2 * c;
            slots *restrict to = p + (r >> ancilla) * n + ((w->first + c) >> ancilla);
            EACH to->x[s] += share * (x[0].x[s] * x[0].x[s] + x[1].x[s] * x[1].x[s]);
        }
}

/* ---- backward ---- */

/* Im <Lambda, sigma U> for X, Y, Z. */
typedef struct pauli {
    slots x, y, z;
} pauli;

#define IMAGINARY(lr, li, ur, ui) ((lr) * (ui) - (li) * (ur))
#define REALPART(lr, li, ur, ui) ((lr) * (ur) + (li) * (ui))

static void start_lambda(const state *w)
{
    int ancilla = w->b->circuit.ancilla;
    int64_t n = (int64_t)1 << w->b->circuit.data;
    const real share = (real)(1.0 / (double)((int64_t)1 << ancilla));
    const slots *g = w->b->g;
    for (int64_t r = 0; r < w->rows; r++)
        for (int64_t c = 0; c < w->width; c++) {
            const slots *restrict u = row_of(w, w->u, r) + 2 * c;
            const slots *restrict by = g + (r >> ancilla) * n + ((w->first + c) >> ancilla);
            slots *restrict l = row_of(w, w->lambda, r) + 2 * c;
            EACH l[0].x[s] = share * by->x[s] * u[0].x[s];
            EACH l[1].x[s] = share * by->x[s] * u[1].x[s];
        }
}

/* t += the Pauli vector of the pair of rows (0, 1) of Lambda and U. */
static void add_pair(int64_t width, const slots *restrict l0, const slots *restrict l1,
                     const slots *restrict u0, const slots *restrict u1, pauli *restrict t)
{
    for (int64_t c = 0; c < 2 * width; c += 2)
        EACH
        {
            real l0r = l0[c].x[s], l0i = l0[c + 1].x[s], l1r = l1[c].x[s], l1i = l1[c + 1].x[s];
            real u0r = u0[c].x[s], u0i = u0[c + 1].x[s], u1r = u1[c].x[s], u1i = u1[c + 1].x[s];
            t->x.x[s] += IMAGINARY(l0r, l0i, u1r, u1i) + IMAGINARY(l1r, l1i, u0r, u0i);
            t->y.x[s] += REALPART(l1r, l1i, u0r, u0i) - REALPART(l0r, l0i, u1r, u1i);
            t->z.x[s] += IMAGINARY(l0r, l0i, u0r, u0i) - IMAGINARY(l1r, l1i, u1r, u1i);
        }
}

static void clear(pauli *t)
{
    EACH t->x.x[s] = t->y.x[s] = t->z.x[s] = 0;
}

/* cos and sin of a whole angle. */
static inline real whole_cosine(const state *w, int64_t k, int s)
{
    real c = w->cosine[k].x[s], n = w->sine[k].x[s];
    return c * c - n * n;
}

static inline real whole_sine(const state *w, int64_t k, int s)
{
    return 2 * w->sine[k].x[s] * w->cosine[k].x[s];
}

/* The gradients of a block's angles from the vectors behind its rotations. */
static void block_gradients(const state *w, int64_t k, const pauli *a, const pauli *b)
{
    slots *d = (slots *)w->b->dphi + k;
    EACH
    {
        d[2].x[s] += a->y.x[s];
        d[0].x[s] += a->z.x[s] * whole_cosine(w, k + 2, s) + a->x.x[s] * whole_sine(w, k + 2, s);
        d[3].x[s] += b->y.x[s];
        d[1].x[s] += b->x.x[s] * whole_cosine(w, k + 3, s) - b->z.x[s] * whole_sine(w, k + 3, s);
    }
}

static void block_back(const state *w, int a, int64_t k)
{
    turn ta, tb;
    pauli pa, pb;
    clear(&pa);
    clear(&pb);
    turns_of_block(w, k, &ta, &tb);
    reverse(&ta);
    reverse(&tb);
    for (int64_t i = 0; i < w->rows / 4; i++) {
        four u = four_rows(w, w->u, a, i), l = four_rows(w, w->lambda, a, i);
        for (int j = 0; j < 2; j++) {
            add_pair(w->width, l.row[j], l.row[j + 2], u.row[j], u.row[j + 2], &pa);
            add_pair(w->width, l.row[2 * j], l.row[2 * j + 1], u.row[2 * j], u.row[2 * j + 1], &pb);
        }
        turn_four(w->width, &ta, &tb, &u);
        turn_four(w->width, &ta, &tb, &l);
    }
    block_gradients(w, k, &pa, &pb);
}

/* The first layer: rotations of other qubits commute and cancel in the products, so that nothing
 * has to be taken back. */
static void qubit_gradients(const state *w, int q)
{
    int64_t apart = w->rows >> (q + 1), step = apart * w->panel * 2, k = 3 * q;
    slots *d = (slots *)w->b->dphi + k;
    pauli t;
    clear(&t);
    for (int64_t pair = 0; pair < w->rows / 2; pair++) {
        int64_t row = row_of_pair(pair, apart);
        const slots *u = row_of(w, w->u, row), *l = row_of(w, w->lambda, row);
        add_pair(w->width, l, l + step, u, u + step, &t);
    }
    EACH
    {
        real c3 = whole_cosine(w, k + 2, s), s3 = whole_sine(w, k + 2, s);
        real x = t.x.x[s] * c3 + t.y.x[s] * s3, y = t.y.x[s] * c3 - t.x.x[s] * s3;
        d[2].x[s] += t.z.x[s];
        d[1].x[s] += y;
        d[0].x[s] += t.z.x[s] * whole_cosine(w, k + 1, s) + x * whole_sine(w, k + 1, s);
    }
}

static void backward(const state *w)
{
    int64_t k = w->angles;
    start_lambda(w);
    for (int64_t layer = w->b->circuit.layers; layer > 0; layer--)
        for (int from = 1; from >= 0; from--)
            for (int a = from + (w->m - 2 - from) / 2 * 2; a >= from && w->m - 2 >= from; a -= 2) {
                k -= 4;
                block_back(w, a, k);
            }
    for (int q = 0; q < w->m; q++)
        qubit_gradients(w, q);
}

/* ---- a block of circuits ---- */

static void zero(int64_t count, slots *x)
{
    for (int64_t i = 0; i < count; i++)
        EACH x[i].x[s] = 0;
}

static void run(const bk_circuit_block *b)
{
    int m = b->circuit.data + b->circuit.ancilla;
    state w = {.b = b,
               .m = m,
               .rows = (int64_t)1 << m,
               .panel = bk_circuit_panel(&b->circuit),
               .angles = bk_circuit_angles(&b->circuit)};
    w.sine = b->work;
    w.cosine = w.sine + w.angles;
    w.u = w.cosine + w.angles;
    w.lambda = w.u + 2 * w.rows * w.panel;
    half_angles(w.angles, b->phi, w.sine, w.cosine);
    zero((int64_t)1 << (2 * b->circuit.data), b->p);
    if (b->g)
        zero(w.angles, b->dphi);
    for (w.first = 0; w.first < w.rows; w.first += w.panel) {
        w.width = w.rows - w.first < w.panel ? w.rows - w.first : w.panel;
        forward(&w);
        add_squares(&w);
        if (b->g)
            backward(&w);
    }
}

const bk_circuit_kernels BK_KERNEL(bk_circuit_kernels) = {.run = run};
