/* Reading a data set: every size, offset, label, token and index is checked before it is believed.
 */
#include "io/dataset.h"

#include "io/digest.h"
#include "io/files.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int64_t bk_sample_length(const bk_dataset *d, int64_t sample)
{
    if (!d->offsets)
        return d->positions;
    int64_t first = d->offsets[sample + 1] - d->offsets[sample];
    return d->tokens2 ? first + 1 + d->offsets2[sample + 1] - d->offsets2[sample] : first;
}

int64_t bk_dataset_symbols(const bk_dataset *d)
{
    return d->vocabulary + (d->tokens2 != NULL);
}

double bk_mean_length(const bk_dataset *d)
{
    int64_t total = 0;
    for (int64_t i = 0; i < d->samples; i++)
        total += bk_sample_length(d, i);
    return d->samples > 0 ? (double)total / (double)d->samples : 0.0;
}

void bk_dataset_measure(bk_dataset *d)
{
    d->max_length = d->offsets ? 0 : d->positions;
    for (int64_t i = 0; d->offsets && i < d->samples; i++) {
        int64_t length = bk_sample_length(d, i);
        d->max_length = length > d->max_length ? length : d->max_length;
    }
}

typedef struct reader {
    bk_arena *arena;
    bk_h5 *file;
    bk_dataset *d;
} reader;

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* The one form of a complaint about the content: file, object, what, and what to do. */
static bk_status refuse(const reader *r, const char *object, const char *trouble)
{
    return bk_fail(BK_INPUT, "data set %s is damaged: %s %s (%s): make it again with birkhoff data",
                   base_name(r->d->path), object, trouble, r->d->path);
}

/* ---- helpers over HDF5 ---- */

static bk_status read_integers(const reader *r, const char *path, bk_dtype as, int64_t *count,
                               const void **data)
{
    bk_dtype dtype;
    int dims;
    int64_t shape[BK_MAX_DIMS];
    bk_tensor *x;
    BK_TRY(bk_h5_shape(r->file, path, &dtype, &dims, shape));
    if (dims != 1 || dtype == BK_F32 || dtype == BK_F64)
        return refuse(r, path, "is not a list of integers");
    BK_TRY(bk_h5_read(r->file, path, as, r->arena, &x));
    *count = shape[0];
    *data = x->data;
    return BK_OK;
}

static bk_status root_integer(const reader *r, const char *name, int64_t least, int64_t most,
                              int64_t *value)
{
    char text[160];
    if (!bk_h5_has_attribute(r->file, "/", name)) {
        snprintf(text, sizeof text, "has no attribute %s", name);
        return refuse(r, "/", text);
    }
    BK_TRY(bk_h5_attribute(r->file, "/", name, BK_I64, 0, value));
    if (*value >= least && *value <= most)
        return BK_OK;
    snprintf(text, sizeof text, "says %s = %lld, which is not in %lld..%lld", name,
             (long long)*value, (long long)least, (long long)most);
    return refuse(r, "/", text);
}

static bk_status root_text(const reader *r, const char *name, const char *preset,
                           const char **value)
{
    char *text;
    *value = preset;
    if (!bk_h5_has_attribute(r->file, "/", name))
        return BK_OK;
    BK_TRY(bk_h5_attribute_text(r->file, "/", name, r->arena, &text));
    *value = text;
    return BK_OK;
}

/* ---- tokens ---- */

/* One list of texts: /tokens, or the second texts of pairs. */
typedef struct token_list {
    const char *tokens_path, *offsets_path;
    const int32_t *tokens;
    const int64_t *offsets;
    int64_t samples, total;
} token_list;

static bk_status check_offsets(const reader *r, const token_list *l)
{
    char text[160];
    if (l->offsets[0] != 0)
        return refuse(r, l->offsets_path, "do not begin with 0");
    for (int64_t i = 0; i < l->samples; i++)
        if (l->offsets[i + 1] < l->offsets[i]) {
            snprintf(text, sizeof text, "fall at row %lld: %lld after %lld", (long long)i + 1,
                     (long long)l->offsets[i + 1], (long long)l->offsets[i]);
            return refuse(r, l->offsets_path, text);
        }
    if (l->offsets[l->samples] == l->total)
        return BK_OK;
    snprintf(text, sizeof text, "end with %lld at row %lld, but %s has %lld",
             (long long)l->offsets[l->samples], (long long)l->samples, l->tokens_path,
             (long long)l->total);
    return refuse(r, l->offsets_path, text);
}

static bk_status check_tokens(const reader *r, const token_list *l)
{
    for (int64_t i = 0; i < l->samples; i++)
        for (int64_t j = l->offsets[i]; j < l->offsets[i + 1]; j++)
            if (l->tokens[j] < 0 || l->tokens[j] >= r->d->vocabulary) {
                char text[160];
                snprintf(text, sizeof text,
                         "has %d at row %lld (sample %lld, place %lld), which is not in the "
                         "vocabulary 0..%lld",
                         l->tokens[j], (long long)j, (long long)i, (long long)(j - l->offsets[i]),
                         (long long)r->d->vocabulary - 1);
                return refuse(r, l->tokens_path, text);
            }
    return BK_OK;
}

static bk_status read_list(const reader *r, token_list *l)
{
    int64_t offsets;
    const void *tokens, *places;
    if (!bk_h5_exists(r->file, l->offsets_path))
        return refuse(r, l->offsets_path, "is missing");
    BK_TRY(read_integers(r, l->tokens_path, BK_I32, &l->total, &tokens));
    BK_TRY(read_integers(r, l->offsets_path, BK_I64, &offsets, &places));
    if (offsets < 1)
        return refuse(r, l->offsets_path, "is empty");
    l->tokens = tokens;
    l->offsets = places;
    l->samples = offsets - 1;
    BK_TRY(check_offsets(r, l));
    return check_tokens(r, l);
}

static bk_status read_second_texts(const reader *r)
{
    bk_dataset *d = r->d;
    token_list l = {.tokens_path = "/tokens2", .offsets_path = "/offsets2"};
    if (!bk_h5_exists(r->file, "/tokens2"))
        return BK_OK;
    BK_TRY(read_list(r, &l));
    if (l.samples != d->samples) {
        char text[120];
        snprintf(text, sizeof text, "has %lld texts for %lld samples", (long long)l.samples,
                 (long long)d->samples);
        return refuse(r, "/offsets2", text);
    }
    d->tokens2 = l.tokens;
    d->offsets2 = l.offsets;
    return BK_OK;
}

static bk_status read_subwords(const reader *r)
{
    bk_dataset *d = r->d;
    const char *digest;
    const void *bytes;
    if (!bk_h5_exists(r->file, "/subwords"))
        return BK_OK;
    BK_TRY(read_integers(r, "/subwords", BK_U8, &d->subword_bytes, &bytes));
    d->subwords = bytes;
    bk_sha256_text(bytes, (size_t)d->subword_bytes, d->vocabulary_digest);
    BK_TRY(root_text(r, "vocabulary_digest", d->vocabulary_digest, &digest));
    return strcmp(digest, d->vocabulary_digest) == 0
               ? BK_OK
               : refuse(r, "/subwords", "are not those of the attribute vocabulary_digest");
}

static bk_status read_tokens(const reader *r)
{
    bk_dataset *d = r->d;
    token_list l = {.tokens_path = "/tokens", .offsets_path = "/offsets"};
    BK_TRY(root_integer(r, "vocabulary", 1, INT32_MAX, &d->vocabulary));
    BK_TRY(read_list(r, &l));
    d->tokens = l.tokens;
    d->offsets = l.offsets;
    d->samples = l.samples;
    BK_TRY(read_second_texts(r));
    return read_subwords(r);
}

/* ---- features ---- */

static bk_status read_features(const reader *r)
{
    bk_dataset *d = r->d;
    bk_dtype dtype;
    int dims;
    int64_t shape[BK_MAX_DIMS];
    bk_tensor *x;
    BK_TRY(bk_h5_shape(r->file, "/features", &dtype, &dims, shape));
    if (dims != 3)
        return refuse(r, "/features", "does not have the axes [samples, positions, channels]");
    BK_TRY(bk_h5_read(r->file, "/features", BK_F32, r->arena, &x));
    d->features = x->data;
    d->samples = shape[0];
    d->positions = shape[1];
    d->channels = shape[2];
    if (d->positions == 0 || d->channels == 0)
        return refuse(r, "/features", "has an empty axis");
    if (d->positions > INT32_MAX / d->channels)
        return refuse(r, "/features", "has samples of more than 2^31 numbers");
    int64_t width = d->positions * d->channels;
    for (int64_t i = 0; i < d->samples * width; i++)
        if (!isfinite(d->features[i])) {
            char text[80];
            snprintf(text, sizeof text, "is not finite in row %lld", (long long)(i / width));
            return refuse(r, "/features", text);
        }
    return BK_OK;
}

/* ---- labels and splits ---- */

static bk_status read_labels(const reader *r)
{
    bk_dataset *d = r->d;
    char text[160];
    int64_t count;
    const void *labels;
    BK_TRY(root_integer(r, "classes", 0, BK_DATASET_CLASSES, &d->classes));
    if (!bk_h5_exists(r->file, "/labels"))
        return d->classes == 0 ? BK_OK : refuse(r, "/labels", "is missing");
    BK_TRY(read_integers(r, "/labels", BK_I32, &count, &labels));
    d->labels = labels;
    if (count != d->samples) {
        snprintf(text, sizeof text, "has %lld rows for %lld samples", (long long)count,
                 (long long)d->samples);
        return refuse(r, "/labels", text);
    }
    for (int64_t i = 0; i < count; i++)
        if (d->labels[i] < -1 || d->labels[i] >= d->classes) {
            snprintf(text, sizeof text, "has %d at row %lld, which is not in -1..%lld",
                     d->labels[i], (long long)i, (long long)d->classes - 1);
            return refuse(r, "/labels", text);
        }
    return BK_OK;
}

double bk_majority(const bk_dataset *d, const bk_split *s)
{
    if (!d->labels || d->classes == 0 || s->count == 0)
        return NAN;
    bk_arena *scratch = bk_arena_new("majority");
    int64_t best = 0, *count = BK_ZNEW(scratch, int64_t, d->classes);
    for (int64_t i = 0; i < s->count; i++) {
        int32_t label = d->labels[s->index[i]];
        if (label >= 0 && ++count[label] > best)
            best = count[label];
    }
    bk_arena_free(scratch);
    return (double)best / (double)s->count;
}

static bk_status check_shares(const reader *r, const char *path, const char *name, int64_t count,
                              const double *share)
{
    char text[160];
    for (int64_t i = 0; i < count; i++)
        if (!(share[i] >= 0.0 && share[i] <= 1.0)) {
            snprintf(text, sizeof text, "says %s = %g, which is no share", name, share[i]);
            return refuse(r, path, text);
        }
    return BK_OK;
}

static bk_status read_ladder(const reader *r, const char *path, bk_split *s)
{
    if (!bk_h5_has_attribute(r->file, path, "ladder"))
        return BK_OK;
    BK_TRY(bk_h5_attribute_count(r->file, path, "ladder", &s->ladder_count));
    double *ladder = BK_NEW(r->arena, double, s->ladder_count);
    s->ladder = ladder;
    BK_TRY(bk_h5_attribute(r->file, path, "ladder", BK_F64, s->ladder_count, ladder));
    return check_shares(r, path, "ladder", s->ladder_count, ladder);
}

static bk_status read_majority(const reader *r, const char *path, bk_split *s)
{
    s->majority = bk_majority(r->d, s);
    if (!bk_h5_has_attribute(r->file, path, "majority"))
        return BK_OK;
    BK_TRY(bk_h5_attribute(r->file, path, "majority", BK_F64, 0, &s->majority));
    return check_shares(r, path, "majority", 1, &s->majority);
}

static bk_status read_split(const reader *r, const char *name, bk_split *s)
{
    const bk_dataset *d = r->d;
    const char *path = bk_arena_printf(r->arena, "/splits/%s", name);
    const void *index;
    *s = (bk_split){.name = name, .majority = NAN};
    BK_TRY(read_integers(r, path, BK_I64, &s->count, &index));
    s->index = index;
    for (int64_t i = 0; i < s->count; i++)
        if (s->index[i] < 0 || s->index[i] >= d->samples) {
            char text[160];
            snprintf(text, sizeof text, "has %lld at row %lld, but there are %lld samples",
                     (long long)s->index[i], (long long)i, (long long)d->samples);
            return refuse(r, path, text);
        }
    BK_TRY(read_ladder(r, path, s));
    return read_majority(r, path, s);
}

static bk_status read_splits(const reader *r)
{
    char **names;
    if (!bk_h5_exists(r->file, "/splits"))
        return refuse(r, "/splits", "is missing");
    BK_TRY(bk_h5_list(r->file, "/splits", r->arena, &names));
    for (; *names; names++) {
        if (r->d->splits == BK_DATASET_SPLITS)
            return refuse(r, "/splits", "holds more than 8 splits");
        BK_TRY(read_split(r, *names, &r->d->split[r->d->splits++]));
    }
    return r->d->splits > 0 ? BK_OK : refuse(r, "/splits", "is empty");
}

/* ---- the whole ---- */

static bk_status read_digest(const reader *r)
{
    bk_dataset *d = r->d;
    const char *digest;
    BK_TRY(root_text(r, "digest", NULL, &digest));
    if (!digest)
        return bk_dataset_digest(r->file, d->digest);
    if (strlen(digest) != 64)
        return refuse(r, "/", "has an attribute digest that is no SHA-256");
    memcpy(d->digest, digest, sizeof d->digest);
    return BK_OK;
}

static bk_status read_all(reader *r)
{
    bk_dataset *d = r->d;
    BK_TRY(bk_h5_expect(r->file, "birkhoff-dataset"));
    BK_TRY(root_text(r, "task", "classification", &d->task));
    BK_TRY(root_text(r, "source", "", &d->source));
    BK_TRY(root_text(r, "label_name", NULL, &d->label_name));
    BK_TRY(root_text(r, "metric", NULL, &d->metric));
    if (bk_h5_exists(r->file, "/tokens"))
        BK_TRY(read_tokens(r));
    else if (bk_h5_exists(r->file, "/features"))
        BK_TRY(read_features(r));
    else
        return refuse(r, "/", "has neither /tokens nor /features");
    bk_dataset_measure(d);
    BK_TRY(read_labels(r));
    if (d->tokens2 && d->classes == 0)
        return refuse(r, "/", "holds pairs of texts without classes");
    BK_TRY(read_splits(r));
    return read_digest(r);
}

bk_status bk_dataset_read(bk_arena *arena, const char *path, bk_dataset **out)
{
    bk_dataset *d = BK_ZNEW(arena, bk_dataset, 1);
    reader r = {.arena = arena, .d = d};
    d->path = bk_arena_strdup(arena, path);
    BK_TRY(bk_h5_open_as(arena, path, "data set", "make it with birkhoff data", &r.file));
    bk_status status = read_all(&r);
    if (status != BK_OK) {
        char text[2048]; /* closing must not replace the text of what went wrong */
        snprintf(text, sizeof text, "%s", bk_status_text());
        bk_status closed = bk_h5_close(r.file);
        (void)closed;
        return bk_fail(status, "%s", text);
    }
    *out = d;
    return bk_h5_close(r.file);
}

bk_status bk_dataset_split(const bk_dataset *d, const char *name, const bk_split **out)
{
    char list[256] = "";
    for (int i = 0; i < d->splits; i++) {
        if (strcmp(d->split[i].name, name) == 0) {
            *out = &d->split[i];
            return BK_OK;
        }
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", used > 0 ? ", " : "", d->split[i].name);
    }
    return bk_fail(BK_INPUT, "data set %s has no split %s (%s): it has %s", base_name(d->path),
                   name, d->path, list);
}
