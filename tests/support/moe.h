/* tests/support/moe.h - one call of the mixture-of-experts layer on filled arrays, and the same
 * numbers for every number of ranks, every expert-parallel degree and every number of chunks. */
#ifndef BK_TESTS_SUPPORT_MOE_H
#define BK_TESTS_SUPPORT_MOE_H

#include "tests/support/ranks.h"
#include "tests/support/router.h"

#include "models/moe.h"

/* One layer on the rows of some lanes, and its world (NULL: alone). */
typedef struct bk_test_layer {
    bk_tape tape;
    bk_moe_args args;
    bk_moe_result result;
    const bk_world *world;
    bk_moe_shared shared;
    int32_t *mask;
    double config[64];
} bk_test_layer;

/* What differs between the cases: 0 stands for a default (bk_test_scene_filled). */
typedef struct bk_test_scene {
    const char *name, *router, *options;
    int64_t lanes, tokens; /* L lanes of N tokens each */
    int64_t width, hidden, experts, k;
    bool aux, z, unbiased, bf16;
    bk_moe_aux form; /* of aux; 0: switch */
    bool shared, shared_gate, wire_bf16;
    bk_capacity capacity;
    bk_moe_hierarchy hierarchy;
    int64_t avoided, wanted; /* expert that no token likes, that every token likes; not expert 0 */
    int32_t (*mask)(int64_t token);
    bool identity; /* relu experts W1 = [I; -I], W2 = [I, -I] */
    bk_dtype dtype;
    int threads; /* of a rank, against one alone */
} bk_test_scene;

bk_test_scene bk_test_scene_filled(bk_test_scene s);

/* Makes the layer for the lanes of this rank in `w`, or for all of them.  x and the weights are
 * functions of the global place; channel 0 of x is 1. */
bk_test_layer *bk_test_layer_open(const bk_test_scene *s, const bk_world *w);
void bk_test_layer_close(bk_test_layer *y);
/* Reads the options of the scene's router into y->config. */
void bk_test_layer_options(bk_test_layer *y, const bk_test_scene *s);
/* Collective.  Forward, and backward from a fixed dy and seeds of 1 for the losses. */
void bk_test_layer_run(bk_test_layer *y);

/* Collective.  The layer over all ranks, for every degree and 1, 2 and 4 chunks, against one
 * process: routes equal; y and all gradients equal to the bit for powers of two that divide the
 * lanes, else to 1e-5 of the largest entry. */
void bk_test_scene_check(bk_test_scene given);

void bk_test_set(bk_tensor *x, int64_t i, double value);

/* Masks. */
int32_t bk_test_some_padding(int64_t token);
int32_t bk_test_lane_1_is_empty(int64_t token);
int32_t bk_test_all_padding(int64_t token);

#endif
