/* manifest.json: files, sizes, digests, tensors; and its own digest. */
#include "io/checkpoint_internal.h"

#include "io/files.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char no_digest[] = "0000000000000000000000000000000000000000000000000000000000000000";

/* Integers in JSON stay below it. */
static const int64_t largest = (int64_t)1 << 53;

int64_t bk_shape_count(int dims, const int64_t *shape)
{
    int64_t count = 1;
    for (int i = 0; i < dims; i++)
        count *= shape[i];
    return count;
}

/* ---- writing ---- */

static void set(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) != 0)
        bk_fatal("out of memory: manifest");
}

static void append(json_t *list, json_t *value)
{
    if (json_array_append_new(list, value) != 0)
        bk_fatal("out of memory: manifest");
}

static json_t *integers(int count, const int64_t *value)
{
    json_t *list = json_array();
    for (int i = 0; i < count; i++)
        append(list, json_integer(value[i]));
    return list;
}

static json_t *shard_object(const bk_shard_file *s)
{
    json_t *o = json_object();
    set(o, "file", json_string(s->file));
    set(o, "size", json_integer(s->digest.size));
    set(o, "sha256", json_string(s->digest.sha256));
    set(o, "xxh64", json_string(s->digest.xxh64));
    return o;
}

static json_t *tensor_object(const bk_stored_tensor *t)
{
    json_t *o = json_object(), *pieces = json_array();
    for (int i = 0; i < t->pieces; i++)
        append(pieces, integers(3, (const int64_t[]){t->piece[i].shard, t->piece[i].offset,
                                                     t->piece[i].length}));
    set(o, "name", json_string(t->name));
    set(o, "shape", integers(t->dims, t->shape));
    set(o, "dtype", json_string(bk_dtype_name(t->dtype)));
    set(o, "pieces", pieces);
    return o;
}

static json_t *manifest_object(const bk_manifest *m)
{
    json_t *o = json_object(), *shards = json_array(), *tensors = json_array();
    for (int i = 0; i < m->shards; i++)
        append(shards, shard_object(&m->shard[i]));
    for (int64_t i = 0; i < m->tensors; i++)
        append(tensors, tensor_object(&m->tensor[i]));
    set(o, "format", json_string("birkhoff-checkpoint"));
    set(o, "format_version", integers(2, (const int64_t[]){1, 0}));
    set(o, "birkhoff_version", json_string(m->version));
    set(o, "step", json_integer(m->step));
    set(o, "created", json_string(m->created));
    set(o, "run_id", json_string(m->run_id));
    set(o, "config_sha256", json_string(m->config_sha256));
    set(o, "world_size", json_integer(m->world_size));
    set(o, "lanes", json_integer(m->lanes));
    set(o, "shards", shards);
    set(o, "tensors", tensors);
    set(o, "payload_sha256", json_string(m->payload));
    set(o, "manifest_sha256", json_string(no_digest));
    return o;
}

/* The digest is of the text with 64 zeros in its own place. */
const char *bk_manifest_text(bk_arena *arena, const bk_manifest *m)
{
    json_t *object = manifest_object(m);
    char *dump = json_dumps(object, JSON_PRESERVE_ORDER | JSON_COMPACT);
    if (!dump)
        bk_fatal("out of memory: manifest");
    char *text = bk_arena_printf(arena, "%s\n", dump);
    free(dump);
    json_decref(object);
    char digest[BK_SHA256_TEXT], *place = strstr(text, "\"manifest_sha256\":\"");
    bk_sha256_text(text, strlen(text), digest);
    memcpy(place + strlen("\"manifest_sha256\":\""), digest, strlen(digest));
    return text;
}

/* ---- reading ---- */

typedef struct parser {
    bk_arena *arena;
    const char *path;
    bk_manifest *m;
} parser;

static bk_status damaged(const parser *p, const char *what)
{
    return bk_fail(BK_INPUT, "the manifest is damaged (%s): %s", p->path, what);
}

static bk_status check_own_digest(const parser *p, const char *text)
{
    static const char key[] = "manifest_sha256";
    char digest[BK_SHA256_TEXT], *copy = bk_arena_strdup(p->arena, text);
    char *place = strstr(copy, key);
    place = place ? place + strlen(key) : copy;
    place += strcspn(place, "0123456789abcdef");
    if (strspn(place, "0123456789abcdef") != strlen(no_digest))
        return damaged(p, "it has no manifest_sha256");
    char told[BK_SHA256_TEXT] = "";
    memcpy(told, place, strlen(no_digest));
    memcpy(place, no_digest, strlen(no_digest));
    bk_sha256_text(copy, strlen(copy), digest);
    return strcmp(told, digest) == 0 ? BK_OK : damaged(p, "its digest differs");
}

static const char *text_at(const parser *p, const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    char *copy = bk_arena_strdup(p->arena, text ? text : "");
    bk_plain_text(copy);
    return copy;
}

/* The i-th integer of a list; -1 when it is none, or not in 0..2^53. */
static int64_t integer_at(const json_t *list, int i)
{
    const json_t *item = json_array_get(list, (size_t)i);
    int64_t value = json_is_integer(item) ? json_integer_value(item) : -1;
    return value <= largest ? value : -1;
}

static bool read_shape(const json_t *list, bk_stored_tensor *t)
{
    t->dims = (int)json_array_size(list);
    t->count = 1;
    for (int i = 0; i < t->dims; i++) {
        int64_t side = t->shape[i] = integer_at(list, i);
        if (side < 0 || (side > 0 && t->count > largest / side))
            return false;
        t->count *= side;
    }
    return true;
}

static bool read_piece(const json_t *list, int shards, bk_stored_piece *p)
{
    int64_t shard = integer_at(list, 0);
    *p = (bk_stored_piece){
        .shard = (int)shard, .offset = integer_at(list, 1), .length = integer_at(list, 2)};
    return shard >= 0 && shard < shards;
}

static bool read_dtype(const char *name, bk_dtype *out)
{
    static const bk_dtype known[] = {BK_F32, BK_F64, BK_I32, BK_I64, BK_U8, BK_U16};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(bk_dtype_name(known[i]), name) == 0) {
            *out = known[i];
            return true;
        }
    return false;
}

static bk_status read_shards(const parser *p, const json_t *list)
{
    bk_manifest *m = p->m;
    m->shards = (int)json_array_size(list);
    m->shard = BK_ZNEW(p->arena, bk_shard_file, m->shards);
    for (int i = 0; i < m->shards; i++) {
        const json_t *o = json_array_get(list, (size_t)i);
        bk_shard_file *s = &m->shard[i];
        s->file = text_at(p, o, "file");
        s->digest.size = json_integer_value(json_object_get(o, "size"));
        snprintf(s->digest.sha256, sizeof s->digest.sha256, "%s", text_at(p, o, "sha256"));
        snprintf(s->digest.xxh64, sizeof s->digest.xxh64, "%s", text_at(p, o, "xxh64"));
        if (!*s->file || strchr(s->file, '/') || s->digest.size < 0 || s->digest.size > largest ||
            strlen(s->digest.sha256) != strlen(no_digest))
            return damaged(p, "a shard has no file name, size or digest");
    }
    return m->shards > 0 ? BK_OK : damaged(p, "it names no shards");
}

static bk_status read_tensor(const parser *p, const json_t *o, bk_stored_tensor *t)
{
    const json_t *shape = json_object_get(o, "shape"), *pieces = json_object_get(o, "pieces");
    t->name = text_at(p, o, "name");
    if (!*t->name)
        return damaged(p, "a tensor has no name");
    if (json_array_size(shape) > BK_MAX_DIMS || !read_shape(shape, t) ||
        !read_dtype(text_at(p, o, "dtype"), &t->dtype))
        return damaged(p, bk_arena_printf(p->arena, "tensor %s has no shape or dtype", t->name));
    t->pieces = (int)json_array_size(pieces);
    t->piece = BK_ZNEW(p->arena, bk_stored_piece, t->pieces);
    for (int i = 0; i < t->pieces; i++)
        if (!read_piece(json_array_get(pieces, (size_t)i), p->m->shards, &t->piece[i]))
            return damaged(
                p, bk_arena_printf(p->arena, "a piece of tensor %s is in no shard", t->name));
    return BK_OK;
}

static bk_status read_tensors(const parser *p, const json_t *list)
{
    p->m->tensors = (int64_t)json_array_size(list);
    p->m->tensor = BK_ZNEW(p->arena, bk_stored_tensor, p->m->tensors);
    for (int64_t i = 0; i < p->m->tensors; i++)
        BK_TRY(read_tensor(p, json_array_get(list, (size_t)i), &p->m->tensor[i]));
    return BK_OK;
}

static bk_status read_object(const parser *p, const json_t *o)
{
    bk_manifest *m = p->m;
    const json_t *version = json_object_get(o, "format_version");
    int64_t major = json_integer_value(json_array_get(version, 0));
    if (strcmp(text_at(p, o, "format"), "birkhoff-checkpoint") != 0)
        return damaged(p, "it is not of format birkhoff-checkpoint");
    if (major != 1)
        return bk_fail(BK_INPUT,
                       "the checkpoint has format version %" PRId64
                       ".%d, this program reads 1.x (%s): use a newer birkhoff",
                       major, (int)json_integer_value(json_array_get(version, 1)), p->path);
    m->step = json_integer_value(json_object_get(o, "step"));
    m->world_size = json_integer_value(json_object_get(o, "world_size"));
    m->lanes = json_integer_value(json_object_get(o, "lanes"));
    if (m->step < 0 || m->step > largest || m->world_size < 1 || m->world_size > INT32_MAX ||
        m->lanes < 1 || m->lanes > INT32_MAX || (m->lanes & (m->lanes - 1)) != 0)
        return damaged(p, "its step, world_size or lanes make no sense");
    m->run_id = text_at(p, o, "run_id");
    m->created = text_at(p, o, "created");
    m->version = text_at(p, o, "birkhoff_version");
    snprintf(m->config_sha256, sizeof m->config_sha256, "%s", text_at(p, o, "config_sha256"));
    snprintf(m->payload, sizeof m->payload, "%s", text_at(p, o, "payload_sha256"));
    BK_TRY(read_shards(p, json_object_get(o, "shards")));
    return read_tensors(p, json_object_get(o, "tensors"));
}

/* A shape must not make us allocate: a shard cannot hold more than deflate's greatest ratio lets
 * it. */
static bk_status check_sizes(bk_arena *arena, const bk_manifest *m, const char *path)
{
    double *bytes = BK_ZNEW(arena, double, m->shards);
    for (int64_t i = 0; i < m->tensors; i++)
        for (int k = 0; k < m->tensor[i].pieces; k++) {
            const bk_stored_piece *p = &m->tensor[i].piece[k];
            bytes[p->shard] += (double)p->length * (double)bk_dtype_size(m->tensor[i].dtype);
        }
    for (int i = 0; i < m->shards; i++)
        if (bytes[i] > 1100.0 * (double)m->shard[i].digest.size)
            return bk_fail(BK_INPUT, "%s cannot hold the %.0f bytes of its tensors (%s)",
                           m->shard[i].file, bytes[i], path);
    return BK_OK;
}

bk_status bk_manifest_parse(bk_arena *arena, const char *path, const char *text, bk_manifest *out)
{
    parser p = {.arena = arena, .path = path, .m = out};
    json_error_t error;
    json_t *object = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!object)
        return damaged(&p, bk_arena_printf(arena, "%s at line %d", error.text, error.line));
    bk_status status = check_own_digest(&p, text);
    if (status == BK_OK)
        status = read_object(&p, object);
    json_decref(object);
    BK_TRY(status);
    BK_TRY(bk_manifest_check(out, path));
    return check_sizes(arena, out, path);
}

bk_status bk_manifest_check(const bk_manifest *m, const char *path)
{
    for (int64_t i = 0; i < m->tensors; i++) {
        const bk_stored_tensor *t = &m->tensor[i];
        int64_t at = 0;
        bool good = i == 0 || strcmp(m->tensor[i - 1].name, t->name) < 0;
        for (int k = 0; good && k < t->pieces; k++) {
            const bk_stored_piece *piece = &t->piece[k];
            good = piece->offset == at && piece->length > 0 && piece->shard >= 0 &&
                   piece->shard < m->shards;
            at += piece->length;
        }
        if (!good || at != t->count)
            return bk_fail(BK_INPUT, "the pieces of tensor %s do not cover it exactly (%s)",
                           t->name, path);
    }
    return BK_OK;
}

static int by_name(const void *key, const void *tensor)
{
    return strcmp(key, ((const bk_stored_tensor *)tensor)->name);
}

const bk_stored_tensor *bk_manifest_find(const bk_manifest *m, const char *name)
{
    return bsearch(name, m->tensor, (size_t)m->tensors, sizeof *m->tensor, by_name);
}

/* ---- payload ---- */

static bool in_payload(const char *name)
{
    return strncmp(name, "model/", 6) == 0 || strncmp(name, "optim/", 6) == 0;
}

void bk_payload_digest(const bk_manifest *m, uint8_t *const *leaves, char out[BK_SHA256_TEXT])
{
    bk_sha256 *whole = bk_sha256_new(), *one = bk_sha256_new();
    for (int64_t i = 0; i < m->tensors; i++) {
        const bk_stored_tensor *t = &m->tensor[i];
        uint8_t digest[BK_SHA256];
        if (!in_payload(t->name))
            continue;
        bk_sha256_add(one, leaves[i], (size_t)bk_leaves(t->count) * BK_SHA256);
        bk_sha256_finish(one, digest);
        bk_sha256_add(whole, t->name, strlen(t->name) + 1);
        bk_sha256_add(whole, digest, sizeof digest);
    }
    bk_sha256_finish_text(whole, out);
    bk_sha256_free(one);
    bk_sha256_free(whole);
}
