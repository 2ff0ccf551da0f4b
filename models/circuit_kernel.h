/* models/circuit_kernel.h - the loops of models/circuit. */
#ifndef BK_MODELS_CIRCUIT_KERNEL_H
#define BK_MODELS_CIRCUIT_KERNEL_H

#include "models/circuit.h"

/* Columns of U in work at a time: 512 amplitudes of a slot, or one column. */
static inline int64_t bk_circuit_panel(const bk_circuit *c)
{
    int64_t rows = (int64_t)1 << (c->data + c->ancilla), fit = 512 / rows;
    return fit < 1 ? 1 : fit < rows ? fit : rows;
}

typedef struct bk_circuit_kernels {
    void (*run)(const bk_circuit_block *b);
} bk_circuit_kernels;

BK_KERNEL_TABLES(bk_circuit_kernels);

#endif
