#include "io/dataset.h"

#include "io/files.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { NARROW_ROWS = 1 << 20, DRAWN_BYTES = 1 << 24 };

/* ---- tokens, as narrow as the vocabulary allows ---- */

static bk_dtype token_dtype(int64_t vocabulary)
{
    return vocabulary <= 256 ? BK_U8 : vocabulary <= 65536 ? BK_U16 : BK_I32;
}

static bk_status narrow(bk_h5 *file, const char *path, bk_dtype dtype, int64_t total,
                        const int32_t *tokens)
{
    BK_TRY(bk_h5_create_dataset(file, path, dtype, 1, &total));
    /* The library narrows; a range at a time bounds its conversion buffer's work and ours. */
    for (int64_t done = 0; done < total; done += NARROW_ROWS) {
        int64_t count = total - done < NARROW_ROWS ? total - done : NARROW_ROWS;
        BK_TRY(bk_h5_write_rows(file, path, BK_I32, done, count, tokens + done));
    }
    return BK_OK;
}

static bk_status write_tokens(bk_h5 *file, const bk_dataset *d)
{
    bk_dtype dtype = token_dtype(d->vocabulary);
    BK_TRY(narrow(file, "/tokens", dtype, d->offsets[d->samples], d->tokens));
    BK_TRY(bk_h5_write(file, "/offsets", BK_I64, BK_SHAPE(d->samples + 1), d->offsets));
    if (d->tokens2) {
        BK_TRY(narrow(file, "/tokens2", dtype, d->offsets2[d->samples], d->tokens2));
        BK_TRY(bk_h5_write(file, "/offsets2", BK_I64, BK_SHAPE(d->samples + 1), d->offsets2));
    }
    return d->subwords
               ? bk_h5_write(file, "/subwords", BK_U8, BK_SHAPE(d->subword_bytes), d->subwords)
               : BK_OK;
}

/* Some at a time: all of them may not fit in memory. */
static bk_status write_drawn(bk_h5 *file, const bk_dataset *d)
{
    int64_t width = d->positions * d->channels, step = DRAWN_BYTES / (4 * width) + 1;
    bk_arena *scratch = bk_arena_new("features");
    float *features = BK_NEW(scratch, float, step *width);
    bk_status status = bk_h5_create_dataset(file, "/features", BK_F32,
                                            BK_SHAPE(d->samples, d->positions, d->channels));
    for (int64_t done = 0; done < d->samples && status == BK_OK; done += step) {
        int64_t count = d->samples - done < step ? d->samples - done : step;
        d->draw(d->draw_context, done, count, features);
        status = bk_h5_write_rows(file, "/features", BK_F32, done, count, features);
    }
    bk_arena_free(scratch);
    return status;
}

static bk_status write_features(bk_h5 *file, const bk_dataset *d)
{
    if (d->draw)
        return write_drawn(file, d);
    return bk_h5_write(file, "/features", BK_F32, BK_SHAPE(d->samples, d->positions, d->channels),
                       d->features);
}

/* ---- splits ---- */

static bk_status write_split(bk_h5 *file, const bk_dataset *d, bk_split *s, bk_arena *scratch)
{
    const char *path = bk_arena_printf(scratch, "/splits/%s", s->name);
    BK_TRY(bk_h5_write(file, path, BK_I64, BK_SHAPE(s->count), s->index));
    if (isnan(s->majority))
        s->majority = bk_majority(d, s);
    if (d->labels && isfinite(s->majority))
        BK_TRY(bk_h5_set_attribute(file, path, "majority", BK_F64, 0, &s->majority));
    return s->ladder_count > 0
               ? bk_h5_set_attribute(file, path, "ladder", BK_F64, s->ladder_count, s->ladder)
               : BK_OK;
}

/* ---- the file ---- */

/* The digest of the vocabulary, NULL without. */
static const char *vocabulary_digest(const bk_dataset *d)
{
    return *d->vocabulary_digest ? d->vocabulary_digest : NULL;
}

/* The texts that reading believes (bk_h5_set_texts). */
static bk_status write_texts(bk_h5 *file, const bk_dataset *d)
{
    const char *const pair[][2] = {
        {"format", "birkhoff-dataset"}, {"task", d->task},
        {"source", d->source},          {"label_name", d->label_name},
        {"metric", d->metric},          {"vocabulary_digest", vocabulary_digest(d)},
        {"digest", d->digest}};
    return bk_h5_set_texts(file, sizeof pair / sizeof *pair, pair);
}

static bk_status write_root(bk_h5 *file, const bk_dataset *d, int64_t seed, const char *options)
{
    BK_TRY(bk_h5_stamp(file, "birkhoff-dataset"));
    BK_TRY(bk_h5_set_attribute_text(file, "/", "task", d->task));
    BK_TRY(bk_h5_set_attribute(file, "/", "vocabulary", BK_I64, 0, &d->vocabulary));
    BK_TRY(bk_h5_set_attribute(file, "/", "classes", BK_I64, 0, &d->classes));
    BK_TRY(bk_h5_set_attribute_text(file, "/", "source", d->source ? d->source : ""));
    BK_TRY(bk_h5_set_attribute(file, "/", "seed", BK_I64, 0, &seed));
    const char *const pair[][2] = {{"label_name", d->label_name},
                                   {"metric", d->metric},
                                   {"vocabulary_digest", vocabulary_digest(d)}};
    for (size_t i = 0; i < sizeof pair / sizeof *pair; i++)
        if (pair[i][1])
            BK_TRY(bk_h5_set_attribute_text(file, "/", pair[i][0], pair[i][1]));
    return bk_h5_set_attribute_text(file, "/", "options", options ? options : "");
}

static bk_status write_content(bk_h5 *file, bk_dataset *d, int64_t seed, const char *options)
{
    BK_TRY(write_root(file, d, seed, options));
    BK_TRY(d->features || d->draw ? write_features(file, d) : write_tokens(file, d));
    if (d->labels)
        BK_TRY(bk_h5_write(file, "/labels", BK_I32, BK_SHAPE(d->samples), d->labels));
    bk_arena *scratch = bk_arena_new("splits");
    bk_status status = BK_OK;
    for (int i = 0; i < d->splits && status == BK_OK; i++)
        status = write_split(file, d, &d->split[i], scratch);
    bk_arena_free(scratch);
    BK_TRY(status);
    BK_TRY(bk_dataset_digest(file, d->digest));
    BK_TRY(bk_h5_set_attribute_text(file, "/", "digest", d->digest));
    return write_texts(file, d);
}

static bk_status commit(const char *temporary, const char *path)
{
    BK_TRY(bk_sync_file(temporary));
    if (rename(temporary, path) != 0)
        return bk_fail(BK_FAULT, "the data set cannot be renamed (%s): %s", path, strerror(errno));
    return bk_sync_parent(path);
}

bk_status bk_dataset_write(bk_dataset *d, const char *path, int64_t seed, const char *options_text)
{
    bk_arena *arena = bk_arena_new("data set");
    const char *temporary = bk_arena_printf(arena, "%s.tmp.%d", path, (int)getpid());
    bk_h5 *file;
    bk_status status = bk_h5_create(arena, temporary, &file);
    if (status != BK_OK) {
        status = bk_fail(BK_USAGE,
                         "the data set cannot be written (%s): check the directory and its "
                         "permissions",
                         path);
    } else {
        status = write_content(file, d, seed, options_text);
        bk_status closed = bk_h5_close(file);
        status = status != BK_OK ? status : closed;
        if (status == BK_OK)
            status = commit(temporary, path);
        if (status != BK_OK)
            unlink(temporary);
    }
    bk_arena_free(arena);
    return status;
}
