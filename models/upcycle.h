/* models/upcycle.h - a mixture of experts that begins as a trained dense model (Komatsuzaki et al.
 * 2023; finer experts as in He et al. 2024).
 *
 * A dense feed-forward of width F becomes E = R G experts of width F/G, G = granularity: expert
 * e = r G + s holds slice s, that is rows of W1 and b1 and columns of W2, times G, and b2 whole.
 * The G rows of the gate that belong to a replica r are equal, so that a token that chooses a
 * replica chooses all of it; with weights that sum to 1 and k a multiple of G the output is that of
 * the dense model, for every activation.  A shared expert begins at zero. */
#ifndef BK_MODELS_UPCYCLE_H
#define BK_MODELS_UPCYCLE_H

#include "models/model.h"

/* Run directory or checkpoint of the dense model (model.moe.upcycle.from); NULL: none. */
const char *bk_model_upcycle_from(const bk_model *model);

/* A tensor of the dense model that only the layer with experts has use for. */
typedef struct bk_dense_tensor {
    const char *name; /* "model/block1/ffn/w1" */
    int64_t shape[2];
    int dims;
} bk_dense_tensor;

enum { BK_DENSE_W1, BK_DENSE_B1, BK_DENSE_W2, BK_DENSE_B2, BK_DENSE_TENSORS };

/* The feed-forward that the i-th layer with experts stands for: w1[F,C], b1[F], w2[C,F], b2[C]. */
void bk_model_dense_tensors(const bk_model *model, int i, bk_dense_tensor out[BK_DENSE_TENSORS]);

/* Not collective.  Fills the own experts of the i-th layer with experts from the dense
 * feed-forward, evens out the initialised gate and silences the shared expert. */
void bk_model_upcycle(bk_model *model, int i, const float *const dense[BK_DENSE_TENSORS]);

/* Whether a parameter belongs to a layer with experts: the dense model has the others. */
bool bk_parameter_is_of_experts(const bk_parameter *p);

#endif
