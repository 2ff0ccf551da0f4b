/* Rows of a teacher's logits as they are stored and sent: which form serves the losses, and between
 * that form and the tensors that losses read. */
#include "core/vector.h"
#include "jobs/teacher.h"

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
    bool anneals; /* the temperature changes from step to step */
} wish;

static wish wish_of(const bk_config_loss *loss)
{
    const int64_t *top_k = option_of(loss, "top_k");
    const double *temperature = option_of(loss, "temperature"),
                 *end = option_of(loss, "temperature_end");
    return (wish){.name = loss->name,
                  .top_k = top_k ? *top_k : 0,
                  .temperature = temperature ? *temperature : 1.0,
                  .anneals = end && *end > 0.0 && temperature && *end != *temperature};
}

/* Of all losses on a teacher; their number. */
static int wishes_of(const bk_config *c, wish list[BK_LOSSES_MAX])
{
    int count = 0;
    for (int i = 0; i < c->losses; i++)
        if (c->loss[i].kind->flags & BK_LOSS_TEACHER)
            list[count++] = wish_of(&c->loss[i]);
    return count;
}

/* ---- the form to write ---- */

static bool suits_top(const wish *list, int count, int64_t vocabulary)
{
    for (int i = 0; i < count; i++)
        if (list[i].anneals || list[i].top_k != list[0].top_k)
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
        if (list[i].anneals)
            return bk_fail(BK_USAGE,
                           "distill.cache_form=top_k fixes the temperatures, but the loss %s has a "
                           "temperature_end: choose dense",
                           list[i].name);
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

static bk_status refuse_temperature(const wish *w, const bk_teacher_form *form, const char *path)
{
    char stored[256] = "";
    bool there = false;
    for (int64_t i = 0; i < form->temperatures; i++) {
        size_t used = strlen(stored);
        snprintf(stored + used, sizeof stored - used, "%s%g", i > 0 ? ", " : "",
                 form->temperature[i]);
        there = there || form->temperature[i] == w->temperature;
    }
    if (there && !w->anneals)
        return BK_OK;
    return bk_fail(BK_INPUT,
                   "the loss %s needs the teacher at temperature %g%s, the file of its logits has "
                   "%s (%s): choose one of them, or write the dense form",
                   w->name, w->temperature, w->anneals ? " and on to temperature_end" : "", stored,
                   path);
}

bk_status bk_teacher_form_serves(const bk_config *c, const bk_teacher_form *form, const char *path)
{
    wish list[BK_LOSSES_MAX];
    int count = wishes_of(c, list);
    for (int i = 0; i < count && form->top_k > 0; i++) {
        if (list[i].top_k == 0 || list[i].top_k > form->top_k)
            return bk_fail(BK_INPUT,
                           "the loss %s has top_k=%lld%s, the file of the teacher's logits only "
                           "the largest %lld (%s): lower top_k, or write the dense form",
                           list[i].name, (long long)list[i].top_k,
                           list[i].top_k == 0 ? " (all)" : "", (long long)form->top_k, path);
        BK_TRY(refuse_temperature(&list[i], form, path));
    }
    return BK_OK;
}

/* ---- between a form and logits ---- */

/* index[k]: largest first, equal ones in rising order.  A heap whose top is the least of those kept
 * would be less work for a large k; this insertion is short, and k is small beside V. */
static void select_largest(int64_t n, const float *x, int64_t k, int32_t *index, float *value)
{
    int64_t kept = 0;
    for (int64_t v = 0; v < n; v++) {
        if (kept == k && !(x[v] > value[k - 1]))
            continue;
        int64_t at = kept < k ? kept++ : k - 1;
        for (; at > 0 && x[v] > value[at - 1]; at--) {
            value[at] = value[at - 1];
            index[at] = index[at - 1];
        }
        value[at] = x[v];
        index[at] = (int32_t)v;
    }
}

/* log sum exp(x/T), in double. */
static float log_sum(int64_t n, const float *x, double temperature, double *scratch)
{
    for (int64_t v = 0; v < n; v++)
        scratch[v] = (double)x[v] / temperature;
    return (float)bk_lse_f64(n, scratch, scratch + n);
}

static void encode_top(const bk_teacher_form *form, int64_t count, const float *logits,
                       bk_teacher_rows rows, bk_arena *scratch)
{
    int64_t n = form->vocabulary, k = form->top_k;
    bk_arena_mark mark = bk_arena_get_mark(scratch);
    double *room = BK_NEW(scratch, double, 2 * n);
    for (int64_t i = 0; i < count; i++) {
        const float *x = logits + i * n;
        float *lse = (float *)rows.part[2] + i * form->temperatures;
        select_largest(n, x, k, (int32_t *)rows.part[0] + i * k, (float *)rows.part[1] + i * k);
        for (int64_t t = 0; t < form->temperatures; t++)
            lse[t] = log_sum(n, x, form->temperature[t], room);
    }
    bk_arena_release(scratch, mark);
}

void bk_teacher_encode(const bk_teacher_form *form, int64_t count, const float *logits,
                       bk_teacher_rows rows, bk_arena *scratch)
{
    int64_t n = form->vocabulary;
    if (form->top_k > 0)
        encode_top(form, count, logits, rows, scratch);
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
