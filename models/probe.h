/* models/probe.h - what the attention matrices of a model look like, layer by layer, for every kind
 * that can show its matrix (BK_ATTENTION_MATRIX). */
#ifndef BK_MODELS_PROBE_H
#define BK_MODELS_PROBE_H

#include "models/model.h"

enum { BK_PROBE_EIGENVALUES = 16 };

/* A[n,n] is the matrix of one sample and head over its n real positions. */
typedef struct bk_probe_figures {
    int layer;
    int64_t matrices; /* samples x heads */
    double distance;  /* mean Frobenius distance of A to the doubly stochastic matrices */
    double entropy;   /* mean over the rows, -sum a log a, nats */
    double row_error, column_error; /* largest |sum - 1| of a row, of a column */
    double rank; /* mean effective rank of A: exp of the entropy of its singular values over their
                    sum (Roy and Vetterli 2007) */
    double product_rank; /* the same of the product of the matrices (mean over the heads) of this
                            layer and those before */
    double eigenvalue[BK_PROBE_EIGENVALUES]; /* mean moduli of those of A, falling */
    int eigenvalues; /* those of the largest A, at most BK_PROBE_EIGENVALUES */
} bk_probe_figures;

/* A look at the first samples of a global batch, one after the other; on the tape's arena. */
typedef struct bk_probe bk_probe;

/* Collective.  Runs the model on the bundle, which sets "logits", on a tape that neither trains nor
 * records.  The arguments are borrowed; the tape stays as it is until the end. */
bk_probe *bk_probe_begin(bk_model *model, bk_tape *t, bk_bundle *bundle, int64_t samples);
/* Not collective.  This rank's next sample, if it has one left; each matrix counts as progress
 * (core/hooks.h).  False behind the last one of any rank: the same on all. */
bool bk_probe_next(bk_probe *p);
/* Collective.  out[layers]: figures of the layers whose kind shows its matrix, as many as it
 * returns; the same for any number of ranks as sums of lanes are.  Figures of matrices that are not
 * finite are NaN or infinite. */
int bk_probe_end(bk_probe *p, bk_probe_figures *out);
int bk_model_layers(const bk_model *model);

#endif
