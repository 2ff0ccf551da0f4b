/* models/model.h - a model: parameters in a slab, and a map from bundle to bundle. */
#ifndef BK_MODELS_MODEL_H
#define BK_MODELS_MODEL_H

#include "core/bundle.h"
#include "core/option.h"
#include "core/param.h"
#include "core/tape.h"
#include "dist/comm.h"
#include "models/moe_figures.h"

/* What the data says about the shapes of a model. */
typedef struct bk_model_data {
    int64_t vocabulary; /* symbols with the padding; 0: features instead */
    int64_t channels;   /* of features; 0: tokens instead */
    int64_t segments;   /* texts of a sample that stand behind one another; 0: one, unmarked */
    int64_t classes;    /* of a classifier; 0: language model (the vocabulary is the output) */
    int64_t min_length; /* positions of the shortest sample that is used */
    int64_t max_length; /* positions of the longest sample (of the window, for a language model) */
} bk_model_data;

/* Logits of a row. */
int64_t bk_model_outputs(const bk_model_data *data);

typedef struct bk_model bk_model;

/* The section `model` and those below it. */
extern const bk_section bk_model_sections[];

typedef struct bk_model_kind {
    const char *name, *summary; /* encoder, decoder */
    const bk_option *options;   /* keys that this kind alone has, of bk_model_config (internal.h) */
    /* Declares everything in model->slab; may fail with BK_USAGE. */
    bk_status (*declare)(bk_model *model);
    /* Reads tokens or features (and mask), sets "logits". */
    void (*forward)(bk_model *model, bk_tape *t, bk_bundle *bundle);
} bk_model_kind;

extern const bk_model_kind *const bk_models[]; /* ended by NULL */

/* Not collective.  Reads the `model` section (every key checked, unknown ones are BK_USAGE with the
 * nearest name) and declares the parameters.  `world` is borrowed.  The model lives on `arena`. The
 * caller lays the slab out (bk_slab_layout) and initialises or loads it. */
BK_CHECKED bk_status bk_model_new(bk_arena *arena, bk_value *section, const bk_model_data *data,
                                  const bk_world *world, bk_model **model);
bk_slab *bk_model_slab(bk_model *model);
const bk_model_kind *bk_model_kind_of(const bk_model *model);

/* Collective (MoE layers).  Sets "logits" in the bundle, and what bundle->inside asks for; adds
 * auxiliary terms to the tape.  Matrices need a tape that keeps what lies inside blocks (t->inner
 * NULL, or the model's recompute none while recording). */
void bk_model_forward(bk_model *model, bk_tape *t, bk_bundle *bundle);

/* Collective.  Behind a step that was applied: the routers' states move on.  A step that was not is
 * forgotten by the next one. */
void bk_model_step_routers(bk_model *model);

/* What losses that look inside a model ask of it. */
typedef struct bk_model_shape {
    int64_t layers, width, heads;
    int64_t front;   /* positions put before those of a sample */
    bool recomputes; /* activations are made twice: what lies inside blocks is gone */
} bk_model_shape;
bk_model_shape bk_model_shape_of(const bk_model *model);
/* The attention kind of a layer, from 0 on, if it makes no matrix; else NULL. */
const char *bk_model_without_matrix(const bk_model *model, int layer);

/* Warns about what is valid but does not do what it seems to over `steps` training steps. */
void bk_model_advise(const bk_model *model, int64_t steps);

/* Writes the resolved `model:` section, defaults included, as YAML lines at `indent` to a FILE *.
 */
void bk_model_write_options(const bk_model *model, int indent, void *file);

typedef struct bk_model_figures {
    int64_t parameters;        /* all, experts counted each */
    int64_t active_parameters; /* touched by one token: k of E experts */
    double flops_per_sample;   /* forward, at max_length; training = 3 x */
} bk_model_figures;
bk_model_figures bk_model_measure(const bk_model *model);

int bk_model_moe_layers(const bk_model *model);
/* Collective.  out[bk_model_moe_layers]: figures of the last training step, one for each layer with
 * experts. */
void bk_model_moe_figures(bk_model *model, bk_moe_figures *out);

#endif
