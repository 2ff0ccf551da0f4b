/* Reading slices: any rank count reads what any other wrote. */
#include "io/checkpoint_internal.h"

#include "core/fault.h"
#include "dist/agree.h"

#include <string.h>

typedef struct reader {
    const bk_checkpoint *c;
    bk_arena *arena;
    bk_h5 **file; /* [shards], opened when first needed */
} reader;

static bk_status open_shard(reader *r, int shard)
{
    if (r->file[shard])
        return BK_OK;
    const char *path =
        bk_arena_printf(r->arena, "%s/%s", r->c->path, r->c->manifest.shard[shard].file);
    int error = bk_fault_at(BK_FAULT_LOAD_READ, path);
    if (error)
        return bk_fail(BK_INPUT, "the file cannot be read (%s): %s", path, strerror(error));
    BK_TRY(bk_h5_open(r->arena, path, &r->file[shard]));
    return bk_h5_expect(r->file[shard], "birkhoff-checkpoint");
}

/* Elements [first, first+count) of the flattened tensor. */
static bk_status read_range(reader *r, const bk_stored_tensor *t, const bk_piece *p)
{
    const char *path = bk_arena_printf(r->arena, "/%s", t->name);
    int64_t end = p->offset + p->count;
    for (int k = 0; k < t->pieces; k++) {
        const bk_stored_piece *s = &t->piece[k];
        int64_t lo = p->offset > s->offset ? p->offset : s->offset;
        int64_t hi = end < s->offset + s->length ? end : s->offset + s->length;
        if (lo >= hi)
            continue;
        char *to = (char *)p->data + (size_t)(lo - p->offset) * bk_dtype_size(t->dtype);
        BK_TRY(open_shard(r, s->shard));
        BK_TRY(bk_h5_read_rows(r->file[s->shard], path, t->dtype, lo - s->offset, hi - lo, to));
    }
    return BK_OK;
}

static bool fits(const bk_stored_tensor *t, const bk_piece *p)
{
    return t->dtype == p->dtype && t->dims == p->dims &&
           memcmp(t->shape, p->global_shape, (size_t)t->dims * sizeof *t->shape) == 0;
}

static const char *shape_text(bk_arena *arena, int dims, const int64_t *shape)
{
    const char *text = "";
    for (int i = 0; i < dims; i++)
        text = bk_arena_printf(arena, "%s%s%lld", text, i ? "," : "", (long long)shape[i]);
    return bk_arena_printf(arena, "[%s]", text);
}

/* All names that are missing or of another shape, at once. */
static const char *misfits(const reader *r, const bk_piece *pieces, int64_t count)
{
    const char *text = "";
    for (int64_t i = 0; i < count; i++) {
        const bk_piece *p = &pieces[i];
        const bk_stored_tensor *t = bk_manifest_find(&r->c->manifest, p->name);
        if (!t)
            text = bk_arena_printf(r->arena, "%s %s is missing;", text, p->name);
        else if (!fits(t, p))
            text = bk_arena_printf(r->arena, "%s %s is %s%s, not %s%s;", text, p->name,
                                   bk_dtype_name(t->dtype), shape_text(r->arena, t->dims, t->shape),
                                   bk_dtype_name(p->dtype),
                                   shape_text(r->arena, p->dims, p->global_shape));
    }
    return text;
}

static bool named(const bk_piece *pieces, int64_t count, const char *name)
{
    for (int64_t i = 0; i < count; i++)
        if (strcmp(pieces[i].name, name) == 0)
            return true;
    return false;
}

static const char *strangers(const reader *r, const bk_piece *pieces, int64_t count,
                             const char *prefix)
{
    const bk_manifest *m = &r->c->manifest;
    const char *text = "";
    for (int64_t i = 0; prefix && i < m->tensors; i++) {
        const char *name = m->tensor[i].name;
        if (strncmp(name, prefix, strlen(prefix)) == 0 && !named(pieces, count, name))
            text = bk_arena_printf(r->arena, "%s %s is unexpected;", text, name);
    }
    return text;
}

static bk_status read_all(reader *r, const bk_piece *pieces, int64_t count, const char *complete)
{
    const char *wrong = bk_arena_printf(r->arena, "%s%s", misfits(r, pieces, count),
                                        strangers(r, pieces, count, complete));
    if (*wrong)
        return bk_fail(BK_INPUT,
                       "the checkpoint does not fit the model (%s):%.800s use the "
                       "configuration it was made with",
                       r->c->path, wrong);
    for (int64_t i = 0; i < count; i++)
        BK_TRY(read_range(r, bk_manifest_find(&r->c->manifest, pieces[i].name), &pieces[i]));
    return BK_OK;
}

bk_status bk_checkpoint_read(const bk_comm *comm, const bk_checkpoint *c, const bk_piece *pieces,
                             int64_t count, const char *complete)
{
    reader r = {.c = c, .arena = bk_arena_new("checkpoint")};
    r.file = BK_ZNEW(r.arena, bk_h5 *, c->manifest.shards);
    bk_status status = read_all(&r, pieces, count, complete);
    for (int i = 0; i < c->manifest.shards; i++) {
        bk_status closed = r.file[i] ? bk_h5_close(r.file[i]) : BK_OK;
        status = status != BK_OK ? status : closed;
    }
    status = bk_agree(comm, status);
    bk_arena_free(r.arena);
    return status;
}
