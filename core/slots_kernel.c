#include "core/slots.h"

static void clear(const bk_slots_pack *p, int64_t slot)
{
    slots *block = p->block;
    for (int64_t i = 0; i < p->n; i++)
        for (int64_t j = 0; j < p->n; j++)
            block[i * p->n + j].x[slot] = 0;
}

static void pack(const bk_slots_pack *p)
{
    slots *block = p->block;
    for (int64_t slot = 0; slot < SLOTS; slot++) {
        int64_t n = slot < p->used ? p->order[slot] : 0;
        real factor = p->factor && slot < p->used ? (real)p->factor[slot] : 1;
        const real *x = slot < p->used ? p->x[slot] : NULL;
        if (n < p->n)
            clear(p, slot);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++)
                block[i * p->n + j].x[slot] = x[i * n + j] * factor;
    }
}

static void unpack(const bk_slots_pack *p)
{
    const slots *block = p->block;
    for (int64_t slot = 0; slot < p->used; slot++) {
        int64_t n = p->order[slot];
        real factor = p->factor ? (real)p->factor[slot] : 1;
        real *x = p->x[slot];
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++)
                x[i * n + j] = block[i * p->n + j].x[slot] * factor;
    }
}

const bk_slots_kernels BK_KERNEL(bk_slots_kernels) = {.pack = pack, .unpack = unpack};
