/* Attributes. */
#include "io/files.h"
#include "io/hdf5_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "attribute epoch of /data", for messages. */
typedef struct label {
    char text[256];
} label;

static label name_of(const char *object, const char *name)
{
    label l;
    snprintf(l.text, sizeof l.text, "attribute %s of %s", name, object);
    return l;
}

/* ---- write ---- */

/* Lock held; takes over type and space. */
static bk_status put(bk_h5 *file, const char *object, const char *name, hid_t type, hid_t space,
                     hid_t memory, const void *data)
{
    if (H5Aexists_by_name(file->id, object, name, H5P_DEFAULT) > 0)
        H5Adelete_by_name(file->id, object, name, H5P_DEFAULT);
    hid_t id = H5Acreate_by_name(file->id, object, name, type, space, H5P_DEFAULT, H5P_DEFAULT,
                                 H5P_DEFAULT);
    bk_status status = BK_OK;
    if (id < 0 || H5Awrite(id, memory, data) < 0)
        status = bk_h5_failed(file, name_of(object, name).text, "be written");
    if (id >= 0)
        H5Aclose(id);
    return status;
}

bk_status bk_h5_set_attribute(bk_h5 *file, const char *object, const char *name, bk_dtype dtype,
                              int64_t count, const void *data)
{
    bk_h5_lock();
    hsize_t size = (hsize_t)count;
    hid_t space = count == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(1, &size, NULL);
    bk_status status =
        put(file, object, name, bk_h5_disk_type(dtype), space, bk_h5_memory_type(dtype), data);
    H5Sclose(space);
    bk_h5_unlock();
    return status;
}

bk_status bk_h5_set_attribute_text(bk_h5 *file, const char *object, const char *name,
                                   const char *text)
{
    bk_h5_lock();
    hid_t space = H5Screate(H5S_SCALAR), type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    H5Tset_cset(type, H5T_CSET_UTF8);
    bk_status status = put(file, object, name, type, space, type, &text);
    H5Sclose(space);
    H5Tclose(type);
    bk_h5_unlock();
    return status;
}

/* ---- read ---- */

bk_status bk_h5_set_figures(bk_h5 *file, const bk_attributes *figures)
{
    for (int i = 0; i < figures->entries; i++) {
        double value = figures->entry[i].value;
        int64_t integer = (int64_t)value;
        bool whole = figures->entry[i].integer;
        BK_TRY(bk_h5_set_attribute(file, "/", figures->entry[i].name, whole ? BK_I64 : BK_F64, 0,
                                   whole ? (const void *)&integer : (const void *)&value));
    }
    return BK_OK;
}

bool bk_h5_has_attribute(bk_h5 *file, const char *object, const char *name)
{
    if (!bk_h5_exists(file, object))
        return false;
    bk_h5_lock();
    bool found = H5Aexists_by_name(file->id, object, name, H5P_DEFAULT) != 0;
    H5Eclear2(H5E_DEFAULT);
    bk_h5_unlock();
    return found;
}

typedef struct stored {
    hid_t id, type, space;
    int64_t count;
} stored;

static void stored_close(stored *s)
{
    if (s->type >= 0)
        H5Tclose(s->type);
    if (s->space >= 0)
        H5Sclose(s->space);
    if (s->id >= 0)
        H5Aclose(s->id);
    H5Eclear2(H5E_DEFAULT);
}

/* Lock held.  On failure nothing stays open. */
static bk_status stored_open(bk_h5 *file, const char *object, const char *name, stored *s)
{
    *s = (stored){.type = -1, .space = -1};
    s->id = H5Aopen_by_name(file->id, object, name, H5P_DEFAULT, H5P_DEFAULT);
    if (s->id >= 0) {
        s->type = H5Aget_type(s->id);
        s->space = H5Aget_space(s->id);
        s->count = s->space < 0 ? -1 : (int64_t)H5Sget_simple_extent_npoints(s->space);
    }
    bk_status status = BK_OK;
    if (s->type < 0 || s->count < 0)
        status = bk_h5_failed(file, name_of(object, name).text, "be opened");
    else if (!file->writing &&
             (double)s->count * (double)H5Tget_size(s->type) > (double)bk_file_size(file->path))
        status = bk_h5_refuse(file, "%s claims more bytes than the whole file has",
                              name_of(object, name).text);
    if (status == BK_OK)
        return BK_OK;
    stored_close(s);
    return status;
}

bk_status bk_h5_attribute_count(bk_h5 *file, const char *object, const char *name, int64_t *count)
{
    stored s;
    bk_h5_lock();
    bk_status status = stored_open(file, object, name, &s);
    if (status == BK_OK) {
        *count = s.count;
        stored_close(&s);
    }
    bk_h5_unlock();
    return status;
}

bk_status bk_h5_attribute(bk_h5 *file, const char *object, const char *name, bk_dtype dtype,
                          int64_t count, void *data)
{
    stored s;
    bk_dtype found;
    bk_h5_lock();
    bk_status status = stored_open(file, object, name, &s);
    if (status == BK_OK) {
        label l = name_of(object, name);
        if (!bk_h5_stored_dtype(s.type, &found))
            status = bk_h5_refuse(file, "%s is not a number", l.text);
        else if (s.count != (count == 0 ? 1 : count))
            status = bk_h5_refuse(file, "%s has %lld elements, not %lld", l.text,
                                  (long long)s.count, (long long)(count == 0 ? 1 : count));
        else if (H5Aread(s.id, bk_h5_memory_type(dtype), data) < 0)
            status = bk_h5_failed(file, l.text, "be read");
        stored_close(&s);
    }
    bk_h5_unlock();
    return status;
}

/* Lock held. */
static bool read_variable(const stored *s, bk_arena *arena, char **text)
{
    char *library = NULL;
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    H5Tset_cset(type, H5Tget_cset(s->type));
    bool good = H5Aread(s->id, type, &library) >= 0;
    if (good) {
        *text = bk_arena_strdup(arena, library ? library : "");
        H5Dvlen_reclaim(type, s->space, H5P_DEFAULT, &library);
    }
    H5Tclose(type);
    return good;
}

static bool read_fixed(const stored *s, bk_arena *arena, char **text)
{
    *text = bk_arena_zalloc(arena, H5Tget_size(s->type) + 1);
    return H5Aread(s->id, s->type, *text) >= 0;
}

static bk_status read_stored_text(bk_h5 *file, const char *object, const char *name,
                                  bk_arena *arena, char **text)
{
    stored s;
    bk_h5_lock();
    bk_status status = stored_open(file, object, name, &s);
    if (status == BK_OK) {
        label l = name_of(object, name);
        if (H5Tget_class(s.type) != H5T_STRING || s.count != 1)
            status = bk_h5_refuse(file, "%s is not a text", l.text);
        else if (!(H5Tis_variable_str(s.type) > 0 ? read_variable(&s, arena, text)
                                                  : read_fixed(&s, arena, text)))
            status = bk_h5_failed(file, l.text, "be read");
        else
            bk_plain_lines(*text);
        stored_close(&s);
    }
    bk_h5_unlock();
    return status;
}

/* ---- texts that lie in the checksummed header ---- */

enum { TEXT_NAME = 128 };

/* What `texts` calls a text: its name, behind the object that is not the root. */
static void text_name(const char *object, const char *name, char out[TEXT_NAME])
{
    bool root = strcmp(object, "/") == 0;
    snprintf(out, TEXT_NAME, "%s%s%s", root ? "" : object, root ? "" : "/", name);
}

bk_status bk_h5_set_texts(bk_h5 *file, size_t count, const char *const text[][2])
{
    char *texts = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&texts, &bytes);
    if (!stream)
        bk_fatal("out of memory: texts of a file");
    for (size_t i = 0; i < count; i++)
        if (text[i][1])
            fprintf(stream, "%s%c%s%c", text[i][0], 0, text[i][1], 0);
    fclose(stream);
    bk_status status = bk_h5_set_attribute(file, "/", "texts", BK_U8, (int64_t)bytes, texts);
    free(texts);
    return status;
}

/* NULL: there is no such text. */
static char *find_text(char *texts, const char *name)
{
    for (char *at = texts; *at;) {
        char *value = at + strlen(at) + 1;
        if (strcmp(at, name) == 0)
            return value;
        at = value + strlen(value) + 1;
    }
    return NULL;
}

bk_status bk_h5_attribute_text(bk_h5 *file, const char *object, const char *name, bk_arena *arena,
                               char **text)
{
    int64_t bytes;
    char wanted[TEXT_NAME];
    if (!bk_h5_has_attribute(file, "/", "texts"))
        return read_stored_text(file, object, name, arena, text);
    BK_TRY(bk_h5_attribute_count(file, "/", "texts", &bytes));
    char *texts = bk_arena_zalloc(arena, (size_t)bytes + 3);
    BK_TRY(bk_h5_attribute(file, "/", "texts", BK_U8, bytes, texts));
    text_name(object, name, wanted);
    *text = find_text(texts, wanted);
    if (!*text)
        return read_stored_text(file, object, name, arena, text);
    bk_plain_lines(*text);
    return BK_OK;
}

/* ---- list ---- */

static herr_t count_one(hid_t object, const char *name, const H5A_info_t *info, void *count)
{
    (void)object;
    (void)name;
    (void)info;
    ++*(int64_t *)count;
    return 0;
}

typedef struct name_list {
    bk_arena *arena;
    char **name;
    int64_t count;
} name_list;

static herr_t keep_name(hid_t object, const char *name, const H5A_info_t *info, void *context)
{
    (void)object;
    (void)info;
    name_list *l = context;
    bk_plain_text(l->name[l->count++] = bk_arena_strdup(l->arena, name));
    return 0;
}

bk_status bk_h5_attributes(bk_h5 *file, const char *object, bk_arena *arena, char ***names)
{
    int64_t count = 0;
    bk_h5_lock();
    bk_status status = BK_OK;
    herr_t code = H5Aiterate_by_name(file->id, object, H5_INDEX_NAME, H5_ITER_INC, NULL, count_one,
                                     &count, H5P_DEFAULT);
    name_list l = {.arena = arena, .name = BK_ZNEW(arena, char *, count + 1)};
    if (code < 0 || H5Aiterate_by_name(file->id, object, H5_INDEX_NAME, H5_ITER_INC, NULL,
                                       keep_name, &l, H5P_DEFAULT) < 0)
        status = bk_h5_failed(file, object, "be listed");
    *names = l.name;
    bk_h5_unlock();
    return status;
}
