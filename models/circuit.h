/* models/circuit.h - the quantum circuit of QDSFormer attention, held as the unitary U[2^m,2^m].
 *
 * m = data + ancilla qubits, qubit 0 the most significant bit of an index, data qubits first.
 * Gates act from the left on the identity, R_g(phi) = exp(-i phi sigma_g / 2):
 *   1. each qubit: Rz, Ry, Rz;
 *   2. `layers` times, for s = 0, 1, for a = s, s+2, .. with b = a+1 < m: CX(a,b), Rz on a, Rx on
 * b, Ry on a, Ry on b, CX(a,b). P_ij = (1/A) sum over ancillas x, y of |U[(i,x),(j,y)]|^2, n =
 * 2^data, A = 2^ancilla: doubly stochastic.  Source: Born et al., NeurIPS 2025; the gates of a
 * block are our choice. */
#ifndef BK_MODELS_CIRCUIT_H
#define BK_MODELS_CIRCUIT_H

#include "core/slots.h"

typedef struct bk_circuit {
    int data, ancilla;
    int64_t layers; /* sweeps of blocks: 2 L for the ansatz `parted` */
} bk_circuit;

/* K = 3 m + 4 layers (m - 1): angles of the circuit. */
int64_t bk_circuit_angles(const bk_circuit *c);

/* Circuits in slots (core/slots.h), one for each. */
typedef struct bk_circuit_block {
    bk_circuit circuit;
    const void *phi; /* [K][slot] */
    void *p;         /* [n,n][slot]; written */
    const void *g;   /* [n,n][slot] dL/dP; NULL: forward alone */
    void *dphi;      /* [K][slot]; written where g is there */
    void *work;      /* bk_circuit_work_size bytes, at a multiple of 64 */
} bk_circuit_block;

size_t bk_circuit_work_size(bk_dtype dtype, const bk_circuit *c);

/* Not collective.  P, and dL/dphi by adjoint differentiation: from the last gate to the first, U
 * and Lambda = (1/A) G .* U are taken back through it, and dphi = 2 Re <Lambda, (d gate/d phi) U>.
 * Columns of U are independent: a panel of them at a time stays in the cache. */
void bk_circuit_run(bk_dtype dtype, const bk_circuit_block *b);

#endif
