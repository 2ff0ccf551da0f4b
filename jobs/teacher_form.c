/* Rows of a teacher's logits as they are stored and sent: which form serves the losses, and between
 * that form and the tensors that losses read. */
#include "core/parallel.h"
#include "core/vector.h"
#include "jobs/teacher.h"
#include "losses/row_kernel.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what the losses ask for ---- */

static const void *option_of(const bk_config_loss *loss, const char *name)
{
    for (const bk_option *o = loss->kind->options; o && o->name; o++)
        if (strcmp(o->name, name) == 0)
            return (const char *)loss->config + o->offset;
    return NULL;
}

/* Of one loss on a teacher. */
typedef struct wish {
    const char *name;
    int64_t top_k; /* 0: all classes */
    double temperature;
    const char *whole; /* the option that needs whole rows all the same; NULL: none */
} wish;

static wish wish_of(const bk_config_loss *loss)
{
    const int64_t *top_k = option_of(loss, "top_k");
    const double *temperature = option_of(loss, "temperature");
    return (wish){.name = loss->name,
                  .top_k = top_k ? *top_k : 0,
                  .temperature = temperature ? *temperature : 1.0,
                  .whole = loss->kind->whole ? loss->kind->whole(loss->config) : NULL};
}

/* Of all losses on a teacher's logits; their number. */
static int wishes_of(const bk_config *c, wish list[BK_LOSSES_MAX])
{
    int count = 0;
    for (int i = 0; i < c->losses; i++)
        if ((c->loss[i].kind->flags & (BK_LOSS_TEACHER | BK_LOSS_LAYERS)) == BK_LOSS_TEACHER)
            list[count++] = wish_of(&c->loss[i]);
    return count;
}

/* ---- the form to write ---- */

static bool suits_top(const wish *list, int count, int64_t vocabulary)
{
    for (int i = 0; i < count; i++)
        if (list[i].whole || list[i].top_k != list[0].top_k)
            return false;
    return count > 0 && list[0].top_k > 0 && list[0].top_k < vocabulary;
}

static bk_status check_top(const wish *list, int count)
{
    for (int i = 0; i < count; i++) {
        if (list[i].top_k == 0)
            return bk_fail(BK_USAGE,
                           "distill.cache_form=top_k, but the loss %s reads all classes: give it a "
                           "top_k, or choose dense",
                           list[i].name);
        if (list[i].whole)
            return bk_fail(BK_USAGE,
                           "distill.cache_form=top_k, but the %s of the loss %s needs all logits: "
                           "choose dense",
                           list[i].whole, list[i].name);
    }
    return BK_OK;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void take_top(bk_arena *arena, const wish *list, int count, bk_teacher_form *out)
{
    double *t = BK_NEW(arena, double, count);
    for (int i = 0; i < count; i++) {
        t[i] = list[i].temperature;
        out->top_k = list[i].top_k > out->top_k ? list[i].top_k : out->top_k;
    }
    qsort(t, (size_t)count, sizeof *t, by_value);
    for (int i = 0; i < count; i++)
        if (i == 0 || t[i] != t[out->temperatures - 1])
            t[out->temperatures++] = t[i];
    out->temperature = t;
}

bk_status bk_teacher_form_choose(const bk_config *c, int64_t vocabulary, bool suits, bool bf16,
                                 bk_teacher_form *out)
{
    wish list[BK_LOSSES_MAX];
    int count = wishes_of(c, list), form = suits ? BK_FORM_AUTO : c->distill.cache_form;
    *out = (bk_teacher_form){.vocabulary = vocabulary, .bf16 = bf16};
    if (form == BK_FORM_TOP_K)
        BK_TRY(check_top(list, count));
    if (form == BK_FORM_TOP_K || (form == BK_FORM_AUTO && suits_top(list, count, vocabulary)))
        take_top(c->arena, list, count, out);
    if (out->top_k >= vocabulary) /* nothing is left out */
        *out = (bk_teacher_form){.vocabulary = vocabulary, .bf16 = bf16};
    out->bf16 = bf16 && out->top_k == 0;
    return BK_OK;
}

/* ---- does a form that is there serve? ---- */

static bk_status check_temperature(const wish *w, const bk_teacher_form *form, const char *path)
{
    char stored[256] = "";
    for (int64_t i = 0; i < form->temperatures; i++) {
        size_t used = strlen(stored);
        if (form->temperature[i] == w->temperature)
            return BK_OK;
        snprintf(stored + used, sizeof stored - used, "%s%g", i > 0 ? ", " : "",
                 form->temperature[i]);
    }
    return bk_fail(BK_INPUT,
                   "the loss %s has temperature %g, the file of the teacher's logits is for %s "
                   "(%s): choose one of them, or write the dense form",
                   w->name, w->temperature, stored, path);
}

static bk_status check_wish(const wish *w, const bk_teacher_form *form, const char *path)
{
    if (w->whole)
        return bk_fail(BK_INPUT,
                       "the %s of the loss %s needs all of the teacher's logits, the file has the "
                       "largest %lld of a row (%s): write the dense form",
                       w->whole, w->name, (long long)form->top_k, path);
    if (w->top_k == 0 || w->top_k > form->top_k)
        return bk_fail(BK_INPUT,
                       "the loss %s has top_k=%lld%s, the file of the teacher's logits only the "
                       "largest %lld (%s): lower top_k, or write the dense form",
                       w->name, (long long)w->top_k, w->top_k == 0 ? " (all)" : "",
                       (long long)form->top_k, path);
    return check_temperature(w, form, path);
}

bk_status bk_teacher_form_serves(const bk_config *c, const bk_teacher_form *form, const char *path)
{
    wish list[BK_LOSSES_MAX];
    int count = wishes_of(c, list);
    for (int i = 0; i < count && form->top_k > 0; i++)
        BK_TRY(check_wish(&list[i], form, path));
    return BK_OK;
}

/* ---- between a form and logits ---- */

typedef struct encoding {
    const bk_teacher_form *form;
    const float *logits;
    bk_teacher_rows rows;
} encoding;

static void encode_top(void *context, int64_t first, int64_t last)
{
    const encoding *e = context;
    const bk_row_kernels *kernel = bk_rows_of(BK_F32);
    int64_t n = e->form->vocabulary, k = e->form->top_k, temperatures = e->form->temperatures;
    for (int64_t i = first; i < last; i++) {
        const float *x = e->logits + i * n;
        int32_t *index = (int32_t *)e->rows.part[0] + i * k;
        float *value = (float *)e->rows.part[1] + i * k,
              *lse = (float *)e->rows.part[2] + i * temperatures;
        kernel->select(n, x, k, index);
        for (int64_t j = 0; j < k; j++)
            value[j] = x[index[j]];
        for (int64_t t = 0; t < temperatures; t++) {
            bk_row_norm norm = kernel->normalise(n, x, e->form->temperature[t]);
            lse[t] = (float)(norm.most / e->form->temperature[t] - log(norm.inverse));
        }
    }
}

void bk_teacher_encode(const bk_teacher_form *form, int64_t count, const float *logits,
                       bk_teacher_rows rows)
{
    int64_t n = form->vocabulary;
    if (form->top_k > 0)
        bk_parallel(count, 1, n, encode_top, &(encoding){form, logits, rows});
    else if (form->bf16)
        bk_vector(BK_F32)->pack_bf16(count * n, logits, rows.part[0]);
    else
        memcpy(rows.part[0], logits, (size_t)(count * n) * sizeof *logits);
}

/* The upper half of a float is its bf16. */
static bk_tensor *unpack(bk_arena *arena, int64_t count, int64_t n, const uint16_t *x)
{
    bk_tensor *out = bk_tensor_new(arena, BK_F32, BK_SHAPE(count, n));
    uint32_t *to = out->data;
    for (int64_t i = 0; i < count * n; i++)
        to[i] = (uint32_t)x[i] << 16;
    return out;
}

void bk_teacher_hand(bk_arena *arena, const bk_teacher_form *form, int64_t count,
                     bk_teacher_rows rows, bk_bundle *bundle)
{
    int64_t n = form->vocabulary, k = form->top_k;
    if (k == 0) {
        bk_bundle_set(bundle, "teacher.logits",
                      form->bf16 ? unpack(arena, count, n, rows.part[0])
                                 : bk_tensor_wrap(arena, BK_F32, BK_SHAPE(count, n), rows.part[0]));
        return;
    }
    const int64_t width[BK_TEACHER_PARTS] = {k, k, form->temperatures};
    static const char *const name[] = {"teacher.index", "teacher.value", "teacher.lse"};
    for (int i = 0; i < BK_TEACHER_PARTS; i++)
        bk_bundle_set(bundle, name[i],
                      bk_tensor_wrap(arena, i == 0 ? BK_I32 : BK_F32, BK_SHAPE(count, width[i]),
                                     rows.part[i]));
}
