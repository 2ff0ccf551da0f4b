/* models/qr_kernel.h - QR factorisation of small matrices in slots (core/slots.h), by Householder
 * reflections: modified Gram-Schmidt would lose orthogonality where a matrix is near singular. */
#ifndef BK_MODELS_QR_KERNEL_H
#define BK_MODELS_QR_KERNEL_H

#include "core/slots.h"

enum { BK_QR_MOST = 32, BK_QR_NOISE = 256 };

typedef struct bk_qr_block {
    int64_t n;    /* at most BK_QR_MOST */
    void *m;      /* [n,n] overwritten: R above the diagonal */
    void *u;      /* [n,n] orthogonal */
    double least; /* r_min: a diagonal of R below least * the largest counts as clamped */
    int64_t order[BK_SLOTS]; /* of each matrix; zeros behind it */
    int clamped[BK_SLOTS];
    /* backward alone: */
    void *g;        /* [n,n] dL/d(u .* u); overwritten by dL/dm */
    void *work;     /* [n,n] */
    void *diagonal; /* [n]: that of R */
} bk_qr_block;

typedef struct bk_qr_kernels {
    void (*forward)(bk_qr_block *k); /* also fills diagonal and clamped */
    /* g := dL/dm:  Ub = 2 U .* G,  X = -Ub' U,  B = Ub + U (tril(X) + tril(X,-1)'),  dM = B R^-T
     * with clamped diagonals. */
    void (*backward)(bk_qr_block *k);
    /* x[count] += deviation times normals, count <= BK_QR_NOISE: a pair from each two words
     * (Box-Muller).  word[] is read up to an even number. */
    void (*noise)(int64_t count, const uint32_t *word, double deviation, void *x);
    void (*square)(int64_t n, const void *u, void *a); /* a = u .* u over n vectors */
} bk_qr_kernels;

BK_KERNEL_TABLES(bk_qr_kernels);

#endif
