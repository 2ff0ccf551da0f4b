#include "models/circuit.h"

#include "models/circuit_kernel.h"

int64_t bk_circuit_angles(const bk_circuit *c)
{
    int64_t m = c->data + c->ancilla;
    return 3 * m + (m > 1 ? 4 * c->layers * (m - 1) : 0);
}

size_t bk_circuit_work_size(bk_dtype dtype, const bk_circuit *c)
{
    (void)dtype;
    int64_t rows = (int64_t)1 << (c->data + c->ancilla);
    return (size_t)(2 * bk_circuit_angles(c) + 4 * rows * bk_circuit_panel(c)) * BK_SLOT_BYTES;
}

void bk_circuit_run(bk_dtype dtype, const bk_circuit_block *b)
{
    BK_KERNEL_SELECT(bk_circuit_kernels, dtype)->run(b);
}
