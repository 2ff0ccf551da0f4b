/* models/attention/qds.c - attention by a quantum circuit whose angles are the scores (QDSFormer:
 * Born et al., NeurIPS 2025).
 *   phi_k = theta_k vec(M)[k mod n^2],  M = scale q k',  A = the circuit's P: rows and columns sum
 * to 1 exactly.   O(4^(log2 n + ancilla) K).   M = 0 gives the identity.  Not collective. */
#include "core/blas.h"
#include "models/circuit.h"
#include "models/doubly.h"

#include <math.h>
#include <omp.h>

enum { PARTED, SIMPLE };
enum { STATIC, TRAINED };
enum { PAD_NONE, PAD_ZERO };
enum { PRESET_NONE, PRESET_PAPER };

enum { MOST_QUBITS = 10 }; /* at 16 layers 10^10 flop a matrix: a second */

typedef struct qds_config {
    int64_t ancilla, circuit_layers;
    int ansatz, angles, pad, preset;
    double init, scale;
} qds_config;

static const bk_option options[] = {
    BK_OPTION_I64(qds_config, ancilla, 1, 0, 6,
                  "qubits besides those of the tokens; at most 10 in all"),
    BK_OPTION_I64(qds_config, circuit_layers, 4, 1, 64, "layers of the circuit, L"),
    BK_OPTION_CHOICE(qds_config, ansatz, PARTED, "parted|simple", "parted: each layer twice"),
    BK_OPTION_CHOICE(qds_config, angles, STATIC, "static|trained",
                     "static: theta stays as it was drawn"),
    BK_OPTION_F64_ABOVE(qds_config, init, 1.0, 0.0, 1e6, "theta is uniform within +- init"),
    BK_DOUBLY_SCALE(qds_config),
    BK_OPTION_CHOICE(qds_config, pad, PAD_NONE, "none|zero",
                     "zero: zero rows up to the next power of two"),
    BK_OPTION_CHOICE(qds_config, preset, PRESET_NONE, "none|paper",
                     "paper: ancilla = log2 n + 2, circuit_layers = 16, scale = 1, whatever they "
                     "are set to"),
    BK_OPTION_END,
};

/* log2 of the next power of two. */
static int qubits_for(int64_t positions)
{
    int qubits = 0;
    while (((int64_t)1 << qubits) < positions)
        qubits++;
    return qubits;
}

static bk_circuit circuit_of(const qds_config *c, int64_t positions)
{
    bool paper = c->preset == PRESET_PAPER;
    int data = qubits_for(positions);
    int64_t layers = paper ? 16 : c->circuit_layers;
    return (bk_circuit){.data = data,
                        .ancilla = paper ? data + 2 : (int)c->ancilla,
                        .layers = c->ansatz == PARTED ? 2 * layers : layers};
}

static bk_status fits(const void *config, int64_t positions, bool padded)
{
    const qds_config *c = config;
    bk_circuit circuit = circuit_of(c, positions);
    int64_t order = (int64_t)1 << circuit.data;
    if (padded)
        return bk_fail(
            BK_USAGE,
            "attention kind 'qds' takes no padding, its circuit acts on all %lld tokens: "
            "give it samples of one length without masked positions, or take qr",
            (long long)positions);
    if (order != positions && c->pad == PAD_NONE)
        return bk_fail(
            BK_USAGE,
            "attention kind 'qds' needs a power of two of positions, not %lld: make them "
            "%lld, or set pad=zero",
            (long long)positions, (long long)order);
    if (circuit.data + circuit.ancilla > MOST_QUBITS)
        return bk_fail(
            BK_USAGE,
            "attention kind 'qds' has circuits of at most %d qubits, not %d: %d for %lld "
            "positions and %d of ancilla; take fewer, or another kind",
            MOST_QUBITS, circuit.data + circuit.ancilla, circuit.data, (long long)positions,
            circuit.ancilla);
    return BK_OK;
}

static int declare(const void *config, int64_t heads, int64_t head_width, int64_t max_length,
                   bk_attention_parameter *out)
{
    const qds_config *c = config;
    bk_circuit circuit = circuit_of(c, max_length);
    (void)head_width;
    *out = (bk_attention_parameter){.name = "theta",
                                    .dims = 2,
                                    .shape = {heads, bk_circuit_angles(&circuit)},
                                    .init_scale = c->init,
                                    .fixed = c->angles == STATIC};
    return 1;
}

/* ---- a group ---- */

typedef struct qds {
    const bk_doubly_group *g;
    bk_circuit circuit;
    int64_t angles, square; /* K, n^2 */
    size_t bytes;           /* of the work of a thread */
    char *work;
} qds;

/* theta of the head of problem p. */
static double theta_of(const qds *x, int64_t p, int64_t k)
{
    int64_t head = bk_doubly_unit(x->g, p) % x->g->heads;
    return bk_real_get(x->g->theta->dtype, x->g->theta->data, head * x->angles + k);
}

static void angles_of(const qds *x, const bk_doubly_slots *s, void *phi)
{
    bk_dtype dtype = x->g->tape->dtype;
    int64_t slots = bk_slots(dtype);
    for (int64_t i = 0; i < slots; i++)
        for (int64_t k = 0; k < x->angles; k++) {
            int64_t p = i < s->count ? s->problem[i] : -1;
            double m = p < 0 ? 0.0 : bk_real_get(dtype, x->g->m[p], k % x->square);
            bk_real_put(dtype, phi, k * slots + i, p < 0 ? 0.0 : theta_of(x, p, k) * m);
        }
}

/* dM[k mod n^2] += theta_k dphi_k, dtheta_k = M[k mod n^2] dphi_k. */
static void gradients_of(const qds *x, const bk_doubly_slots *s, const void *dphi)
{
    const bk_doubly_group *g = x->g;
    bk_dtype dtype = g->tape->dtype;
    int64_t slots = bk_slots(dtype);
    for (int64_t i = 0; i < s->count; i++) {
        int64_t p = s->problem[i];
        for (int64_t j = 0; j < x->square; j++)
            bk_real_put(dtype, g->dm[p], j, 0.0);
        for (int64_t k = 0; k < x->angles; k++) {
            int64_t j = k % x->square;
            double d = bk_real_get(dtype, dphi, k * slots + i);
            bk_real_put(dtype, g->dm[p], j,
                        bk_real_get(dtype, g->dm[p], j) + theta_of(x, p, k) * d);
            if (g->dtheta)
                bk_real_put(dtype, g->dtheta, p * x->angles + k,
                            bk_real_get(dtype, g->m[p], j) * d);
        }
    }
}

static void run_slots(const qds *x, const int64_t *problem, int64_t count, char *work)
{
    const bk_doubly_group *g = x->g;
    bk_doubly_slots s = bk_doubly_slots_of(g, problem, count);
    size_t line = (size_t)x->angles * BK_SLOT_BYTES, square = (size_t)x->square * BK_SLOT_BYTES;
    char *phi = work, *dphi = phi + line, *p = dphi + line, *in = p + square;
    bk_circuit_block b = {.circuit = x->circuit,
                          .phi = phi,
                          .p = p,
                          .g = g->g ? in : NULL,
                          .dphi = dphi,
                          .work = in + square};
    angles_of(x, &s, phi);
    if (g->g)
        bk_doubly_pack(g, &s, g->g, NULL, in);
    bk_circuit_run(g->tape->dtype, &b);
    bk_doubly_unpack(g, &s, g->a, NULL, p);
    if (g->g)
        gradients_of(x, &s, dphi);
}

static void apply_rule(const bk_doubly_group *g)
{
    bk_dtype dtype = g->tape->dtype;
    int64_t slots = bk_slots(dtype), *problem = BK_NEW(g->scratch, int64_t, g->problems);
    qds x = {.g = g, .circuit = circuit_of(g->config, g->n), .square = g->n * g->n};
    x.angles = bk_circuit_angles(&x.circuit);
    x.bytes = (size_t)(2 * x.angles + 2 * x.square) * BK_SLOT_BYTES +
              bk_circuit_work_size(dtype, &x.circuit);
    x.work = bk_arena_alloc(g->scratch, x.bytes * (size_t)bk_blas_threads());
    for (int64_t p = 0; p < g->problems; p++)
        problem[p] = p;
#pragma omp parallel for schedule(dynamic, 1) num_threads(bk_blas_threads())
    for (int64_t i = 0; i < (g->problems + slots - 1) / slots; i++)
        run_slots(&x, problem + i * slots, g->problems - i * slots,
                  x.work + x.bytes * (size_t)omp_get_thread_num());
}

/* 32 an element of U and block: two turns of four multiply-adds in complex numbers. */
static double flop(const void *config, int64_t order)
{
    bk_circuit circuit = circuit_of(config, order);
    double m = (double)(circuit.data + circuit.ancilla);
    return 32.0 * (double)circuit.layers * fmax(m - 1.0, 0.0) * exp2(2.0 * m);
}

static bk_tensor *apply(bk_tape *t, const bk_attention_args *a)
{
    const qds_config *c = a->config;
    int64_t positions = a->positions > 0 ? a->positions : a->q->shape[2];
    bk_circuit circuit = circuit_of(c, positions);
    BK_ASSERT(a->parameter[0]->shape[1] == bk_circuit_angles(&circuit), "theta[H,K]");
    bk_doubly_rule rule = {.apply = apply_rule,
                           .flop = flop,
                           .config = c,
                           .scale = c->preset == PRESET_PAPER ? 1.0 : bk_doubly_scale(c->scale, a),
                           .order = (int64_t)1 << circuit.data};
    return bk_doubly(t, a, &rule, NULL);
}

const bk_attention_kind bk_attention_qds = {
    .name = "qds",
    .summary = "squares of a quantum circuit's unitary, its angles the scores: rows and columns "
               "sum to 1",
    .source = "Born et al. 2025",
    .options = options,
    .config_size = sizeof(qds_config),
    .fits = fits,
    .not_causal = bk_doubly_not_causal,
    .declare = declare,
    .apply = apply,
    .flags = BK_ATTENTION_DROPOUT | BK_ATTENTION_MATRIX | BK_ATTENTION_SEED,
};
