/* core/sample.h - what the gradient check hands to an op's sample: numbered inputs, one of them
 * perturbed. */
#ifndef BK_CORE_SAMPLE_H
#define BK_CORE_SAMPLE_H

#include "core/op.h"

enum { BK_SAMPLE_INPUTS = 16 };

struct bk_sample {
    bk_tape *tape;
    bk_tensor *input[BK_SAMPLE_INPUTS]; /* those asked for so far */
    int inputs;
    int perturbed; /* input whose `element` is moved by `delta`; -1: none */
    int64_t element;
    double delta;
};

#endif
