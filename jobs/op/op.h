/* jobs/op/op.h - what an operator of `birkhoff op` is: arrays in, arrays out, options, and one
 * function that runs it on the own rows of this rank.
 *
 * A family (one file jobs/op/<family>.c) turns every kind of a plug-in table into an operator, so a
 * new kind appears here without a line.  jobs/op.c parses, lists and runs; jobs/op/arrays.c reads
 * the inputs and writes what came out. */
#ifndef BK_JOBS_OP_OP_H
#define BK_JOBS_OP_OP_H

#include "core/attributes.h"
#include "core/option.h"
#include "core/tape.h"
#include "dist/comm.h"

typedef enum bk_operator_type {
    BK_OPERATOR_END,    /* of a list */
    BK_OPERATOR_REAL,   /* held in the dtype asked for */
    BK_OPERATOR_DOUBLE, /* held in double, written in the dtype asked for */
    BK_OPERATOR_INTEGER
} bk_operator_type;

/* One array.  `axes` has a letter for each axis, "TE", "" for a scalar; a letter has one length in
 * all arrays.  Arrays whose first axis is the operator's row axis are split over the ranks. */
typedef struct bk_operator_array {
    const char *name, *axes;
    bk_operator_type type;
    bool optional;
    bool differentiable; /* input: grad/<name> is written; output: grad/<name> may be given */
    double seed;         /* output: its incoming gradient where none is given */
} bk_operator_array;

enum { BK_OPERATOR_INPUTS = 16, BK_OPERATOR_OUTPUTS = 8 };

typedef struct bk_operator bk_operator;
typedef struct bk_operator_call bk_operator_call;

struct bk_operator {
    const char *name;    /* "kl", "router.ssr" */
    const char *summary; /* one line */
    const char *kind;    /* written to the attribute `kind` */
    char rows;           /* the axis that is split over the ranks */
    bool always_double;  /* no dtype to choose */
    bk_operator_array input[BK_OPERATOR_INPUTS + 1], output[BK_OPERATOR_OUTPUTS + 1];
    /* Two tables: the family's own, whose struct begins with a bk_operator_settings, and the
     * kind's, which may be NULL. */
    const bk_option *own_options, *options;
    size_t own_size, size;
    const void *plug_in;         /* the kind */
    const char *const *training; /* options that act in training only; NULL-ended or NULL */
    /* Options whose value makes other options known (router=KIND); may be NULL. */
    bk_status (*choose)(const bk_value *given, bk_operator *op);
    /* After options and the shapes of the inputs are known, before anything is read: combinations,
     * inputs that this variant does not read (BK_USAGE), axes whose length is an option, outputs
     * that are not made (bk_operator_drop). */
    bk_status (*check)(bk_operator_call *c);
    /* Number of lanes; NULL: 64, or the ranks when they do not divide 64. */
    int64_t (*lanes)(const bk_operator_call *c);
    /* The values of the own rows (BK_INPUT); may be NULL. */
    bk_status (*examine)(const bk_operator_call *c);
    /* Collective.  Fills output, and the gradients. */
    bk_status (*run)(bk_operator_call *c);
};

typedef struct bk_operator_settings {
    int dtype; /* BK_OPERATOR_F32 or BK_OPERATOR_F64 */
} bk_operator_settings;

enum { BK_OPERATOR_F32, BK_OPERATOR_F64 };

#define BK_OPERATOR_DTYPE(settings_)                                                            \
    {                                                                                           \
        .name = "dtype", .type = BK_OPT_CHOICE, .offset = offsetof(settings_, base.dtype),      \
        .preset = BK_OPERATOR_F32, .text = "f32|f64", .help = "arithmetic, and what is written" \
    }

struct bk_operator_call {
    bk_operator op;  /* a copy: options shape it */
    bk_arena *arena; /* run arena */
    const bk_world *world;
    bk_tape tape;
    const void *own, *config; /* of the two option tables */
    const char *in;           /* path, for messages */
    int64_t axis[128];        /* length by letter, over all ranks; -1: not known */
    bool given[BK_OPERATOR_INPUTS];
    bool backward;                          /* gradients are asked for */
    bk_tensor *input[BK_OPERATOR_INPUTS];   /* own rows, or the whole; NULL when not given */
    bk_tensor *seed[BK_OPERATOR_OUTPUTS];   /* incoming gradients; NULL when not given */
    bk_tensor *output[BK_OPERATOR_OUTPUTS]; /* NULL: not made */
    /* Where it is not input->grad: own rows, or the whole with the sum over the ranks made. */
    bk_tensor *gradient[BK_OPERATOR_INPUTS];
    bk_attributes attributes;
};

/* ---- families: fill *op (zero before) with operator `index`; false past the last ---- */

typedef bool bk_operator_family(int index, bk_arena *arena, bk_operator *op);
bk_operator_family bk_operator_losses, bk_operator_transfers, bk_operator_routers, bk_operator_moe,
    bk_operator_attentions, bk_operator_reductions, bk_operator_transports;

/* ---- for families ---- */

/* Position of an array by name, -1 when there is none. */
int bk_operator_find(const bk_operator_array *list, const char *name);
/* The own rows of an input; NULL when the operator has no such input or it is not given. */
bk_tensor *bk_operator_input(const bk_operator_call *c, const char *name);
bool bk_operator_given(const bk_operator_call *c, const char *name);
/* Keeps x as an output: own rows, or the whole. */
void bk_operator_output(bk_operator_call *c, const char *name, bk_tensor *x);
void bk_operator_output_scalar(bk_operator_call *c, const char *name, double value);
/* Collective.  The sum of value[m], one share a lane of all ranks, as a scalar; with c->backward
 * its incoming gradient is put where bk_tape_backward_seeded finds it. */
void bk_operator_output_lanes(bk_operator_call *c, const char *name, bk_tensor *value);
/* The incoming gradient of a scalar output: what was given, or what a missing one counts. */
double bk_operator_seed(const bk_operator_call *c, const char *name);
/* The same for an array; NULL when it is not given. */
bk_tensor *bk_operator_seed_array(const bk_operator_call *c, const char *name);
/* Puts the incoming gradient of an array where bk_tape_backward_seeded finds it. */
void bk_operator_seed_tape(bk_operator_call *c, const char *name, bk_tensor *x);

/* Appends to a list, or takes an array away. */
void bk_operator_add(bk_operator_array *list, bk_operator_array array);
void bk_operator_drop(bk_operator_array *list, const char *name);

/* Global number of the first own row, and number of own rows. */
int64_t bk_operator_first_row(const bk_operator_call *c);
int64_t bk_operator_rows(const bk_operator_call *c);

/* BK_USAGE: the input is given, but not read here (`why`). */
bk_status bk_operator_refuse_input(const bk_operator_call *c, const char *name, const char *why);
/* BK_INPUT when a real input has a value that is not finite, naming its row. */
bk_status bk_operator_examine_finite(const bk_operator_call *c, const char *name);
/* BK_INPUT when one has a finite value that is larger in size than `most`, naming its row. */
bk_status bk_operator_examine_size(const bk_operator_call *c, const char *name, double most);
/* mask[rows] or NULL, and the global number of rows that it keeps. */
const int32_t *bk_operator_mask(const bk_operator_call *c, int64_t *valid);

/* Collective over comm.  x[n] := the lane tree over the ranks of their x, in the arithmetic of
 * `dtype`: the same bits as one rank's tree over all lanes when the ranks are a power of two. */
void bk_operator_sum_ranks(const bk_comm *comm, bk_dtype dtype, int64_t n, void *x,
                           bk_arena *scratch);
/* Collective over comm.  The rows of all ranks, in rank order. */
bk_tensor *bk_operator_gather(const bk_comm *comm, bk_arena *arena, const bk_tensor *x);

/* ---- arrays.c ---- */

/* Not collective: every rank reads for itself.  Opens c->in, holds names and shapes against the
 * operator, checks, cuts the lanes, reads the own rows.  BK_USAGE for inputs that are missing or
 * not read, BK_INPUT for the file, shapes and values. */
BK_CHECKED bk_status bk_operator_read(bk_operator_call *c);
/* Collective.  Outputs, gradients and attributes of all ranks, written by rank 0 under another name
 * and renamed. */
BK_CHECKED bk_status bk_operator_write(bk_operator_call *c, const char *path);

#endif
