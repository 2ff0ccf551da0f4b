/* Datasets and groups. */
#include "io/files.h"
#include "io/hdf5_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 1 << 20, DEEPEST = 32, MOST_NAMES = 1 << 16, NAME_TEXT = 1024 };

hid_t bk_h5_memory_type(bk_dtype dtype)
{
    switch (dtype) {
    case BK_F32:
        return H5T_NATIVE_FLOAT;
    case BK_F64:
        return H5T_NATIVE_DOUBLE;
    case BK_I32:
        return H5T_NATIVE_INT32;
    case BK_I64:
        return H5T_NATIVE_INT64;
    case BK_U8:
        return H5T_NATIVE_UINT8;
    case BK_U16:
        return H5T_NATIVE_UINT16;
    case BK_BF16: /* lives in products only */
        break;
    }
    BK_ASSERT(false, "dtype %d", (int)dtype);
}

hid_t bk_h5_disk_type(bk_dtype dtype)
{
    switch (dtype) {
    case BK_F32:
        return H5T_IEEE_F32LE;
    case BK_F64:
        return H5T_IEEE_F64LE;
    case BK_I32:
        return H5T_STD_I32LE;
    case BK_I64:
        return H5T_STD_I64LE;
    case BK_U8:
        return H5T_STD_U8LE;
    case BK_U16:
        return H5T_STD_U16LE;
    case BK_BF16:
        break;
    }
    BK_ASSERT(false, "dtype %d", (int)dtype);
}

bool bk_h5_stored_dtype(hid_t type, bk_dtype *dtype)
{
    H5T_class_t kind = H5Tget_class(type);
    size_t size = H5Tget_size(type);
    if (kind == H5T_FLOAT) {
        *dtype = size > 4 ? BK_F64 : BK_F32;
        return true;
    }
    *dtype = size == 1 ? BK_U8 : size == 2 ? BK_U16 : size == 4 ? BK_I32 : BK_I64;
    return kind == H5T_INTEGER || kind == H5T_ENUM;
}

/* ---- groups and names ---- */

/* Lock held.  H5Lexists fails when a group above is missing, so the path is walked. */
static bool exists(bk_h5 *file, const char *path)
{
    char part[NAME_TEXT];
    if (strcmp(path, "/") == 0)
        return true;
    if (snprintf(part, sizeof part, "%s", path) >= (int)sizeof part)
        return false;
    for (char *slash = strchr(part + 1, '/');; slash = strchr(slash + 1, '/')) {
        if (slash)
            *slash = '\0';
        if (H5Lexists(file->id, part, H5P_DEFAULT) <= 0) {
            H5Eclear2(H5E_DEFAULT);
            return false;
        }
        if (!slash)
            return true;
        *slash = '/';
    }
}

bool bk_h5_exists(bk_h5 *file, const char *object)
{
    bk_h5_lock();
    bool found = exists(file, object);
    bk_h5_unlock();
    return found;
}

static bool make_one_group(bk_h5 *file, const char *path)
{
    if (exists(file, path))
        return true;
    hid_t list = H5Pcreate(H5P_GROUP_CREATE);
    H5Pset_obj_track_times(list, 0);
    hid_t group = H5Gcreate2(file->id, path, H5P_DEFAULT, list, H5P_DEFAULT);
    bk_status status = BK_OK; /* before the next call clears the reason */
    if (group < 0 || H5Gclose(group) < 0)
        status = bk_h5_failed(file, path, "be created");
    H5Pclose(list);
    return status == BK_OK;
}

bool bk_h5_make_groups(bk_h5 *file, const char *path, bool whole)
{
    char part[NAME_TEXT];
    BK_ASSERT(strlen(path) < sizeof part, "a path of %zu bytes", strlen(path));
    snprintf(part, sizeof part, "%s", path);
    for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (!make_one_group(file, part))
            return false;
        *slash = '/';
    }
    return !whole || make_one_group(file, part);
}

bk_status bk_h5_make_group(bk_h5 *file, const char *group)
{
    bk_h5_lock();
    bk_status status =
        bk_h5_make_groups(file, group, true) ? BK_OK : bk_h5_failed(file, group, "be created");
    bk_h5_unlock();
    return status;
}

static char *link_name(hid_t group, hsize_t i, bk_arena *arena)
{
    ssize_t length =
        H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, i, NULL, 0, H5P_DEFAULT);
    if (length < 0)
        return NULL;
    char *name = bk_arena_zalloc(arena, (size_t)length + 1);
    H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, i, name, (size_t)length + 1,
                       H5P_DEFAULT);
    bk_plain_text(name); /* one that changes is found no more */
    return name;
}

/* Lock held. */
static bk_status list(bk_h5 *file, const char *path, bk_arena *arena, char ***names)
{
    H5G_info_t info = {0};
    hid_t group = H5Gopen2(file->id, path, H5P_DEFAULT);
    bool good = group >= 0 && H5Gget_info(group, &info) >= 0, many = info.nlinks > MOST_NAMES;
    char **out = BK_ZNEW(arena, char *, many ? 1 : info.nlinks + 1);
    for (hsize_t i = 0; good && !many && i < info.nlinks; i++)
        good = (out[i] = link_name(group, i, arena)) != NULL;
    bk_status status = !good  ? bk_h5_failed(file, path, "be listed")
                       : many ? bk_h5_refuse(file, "%s holds more than %d names", path, MOST_NAMES)
                              : BK_OK;
    if (group >= 0)
        H5Gclose(group);
    *names = out;
    return status;
}

bk_status bk_h5_list(bk_h5 *file, const char *group, bk_arena *arena, char ***names)
{
    bk_h5_lock();
    bk_status status = list(file, group, arena, names);
    bk_h5_unlock();
    return status;
}

typedef struct walker {
    bk_h5 *file;
    bk_arena *arena;
    char **path;
    size_t count, room;
    int64_t seen; /* names on the way: links may run in circles */
} walker;

static void walker_add(walker *w, char *path)
{
    if (w->count + 1 >= w->room) {
        w->room = w->room ? 2 * w->room : 64;
        char **wider = BK_ZNEW(w->arena, char *, w->room);
        if (w->count > 0)
            memcpy(wider, w->path, w->count * sizeof *wider);
        w->path = wider;
    }
    w->path[w->count++] = path;
}

/* Lock held. */
static bk_status walk(walker *w, const char *group, int depth)
{
    char **names;
    if (depth > DEEPEST)
        return bk_h5_refuse(w->file, "group %.200s lies too deep", group);
    BK_TRY(list(w->file, group, w->arena, &names));
    for (; *names; names++) {
        if (++w->seen > MOST_NAMES)
            return bk_h5_refuse(w->file, "%s holds more than %d names", w->file->name, MOST_NAMES);
        char *path =
            bk_arena_printf(w->arena, "%s/%s", strcmp(group, "/") == 0 ? "" : group, *names);
        hid_t object = H5Oopen(w->file->id, path, H5P_DEFAULT);
        if (object < 0)
            return bk_h5_failed(w->file, path, "be opened");
        H5I_type_t type = H5Iget_type(object);
        H5Oclose(object);
        if (type == H5I_DATASET)
            walker_add(w, path);
        else if (type == H5I_GROUP)
            BK_TRY(walk(w, path, depth + 1));
    }
    return BK_OK;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

bk_status bk_h5_walk(bk_h5 *file, bk_arena *arena, char ***paths)
{
    walker w = {.file = file, .arena = arena};
    bk_h5_lock();
    bk_status status = walk(&w, "/", 0);
    bk_h5_unlock();
    if (w.count > 0)
        qsort(w.path, w.count, sizeof *w.path, by_text);
    *paths = w.count > 0 ? w.path : BK_ZNEW(arena, char *, 1);
    return status;
}

/* ---- shape ---- */

typedef struct stored {
    hid_t id, space, type;
    int dims;
    hsize_t shape[BK_MAX_DIMS];
    bk_dtype dtype;
} stored;

static void stored_close(stored *s)
{
    if (s->type >= 0)
        H5Tclose(s->type);
    if (s->space >= 0)
        H5Sclose(s->space);
    if (s->id >= 0)
        H5Dclose(s->id);
    H5Eclear2(H5E_DEFAULT);
}

/* The library may have kept what was written until now. */
static bk_status flush_chunks(bk_h5 *file, const char *dataset, stored *s)
{
    herr_t code = H5Dclose(s->id);
    s->id = -1;
    return code < 0 ? bk_h5_failed(file, dataset, "be written") : BK_OK;
}

/* A damaged shape must not make us allocate: a file cannot hold more than deflate's greatest ratio
 * lets it.  What lies in other files is not read. */
static bk_status check_storage(bk_h5 *file, const char *dataset, const stored *s)
{
    hid_t properties = H5Dget_create_plist(s->id);
    H5D_layout_t layout = H5Pget_layout(properties);
    bool elsewhere = layout == H5D_VIRTUAL || H5Pget_external_count(properties) != 0;
    H5Pclose(properties);
    if (elsewhere)
        return bk_h5_refuse(file, "%s keeps its data in another file", dataset);
    double bytes = (double)H5Tget_size(s->type);
    for (int i = 0; i < s->dims; i++)
        bytes *= (double)s->shape[i];
    double size = (double)bk_file_size(file->path);
    if (bytes > (layout == H5D_CHUNKED ? 1100.0 : 1.0) * size)
        return bk_h5_refuse(file, "%s claims %.0f bytes, the whole file has %.0f", dataset, bytes,
                            size);
    return BK_OK;
}

/* Lock held.  On failure nothing stays open. */
static bk_status stored_open(bk_h5 *file, const char *dataset, stored *s)
{
    *s = (stored){.id = H5Dopen2(file->id, dataset, H5P_DEFAULT), .space = -1, .type = -1};
    bk_status status = BK_OK;
    if (s->id >= 0) {
        s->space = H5Dget_space(s->id);
        s->type = H5Dget_type(s->id);
    }
    if (s->space < 0 || s->type < 0)
        status = bk_h5_failed(file, dataset, "be opened");
    else if (!bk_h5_stored_dtype(s->type, &s->dtype))
        status = bk_h5_refuse(file, "%s holds neither integers nor reals", dataset);
    else if ((s->dims = H5Sget_simple_extent_ndims(s->space)) < 0 || s->dims > BK_MAX_DIMS)
        status = bk_h5_refuse(file, "%s has %d axes, at most %d are read", dataset, s->dims,
                              BK_MAX_DIMS);
    else if (s->dims > 0 && H5Sget_simple_extent_dims(s->space, s->shape, NULL) < 0)
        status = bk_h5_failed(file, dataset, "be measured");
    else if (!file->writing)
        status = check_storage(file, dataset, s);
    if (status != BK_OK)
        stored_close(s);
    return status;
}

bk_status bk_h5_shape(bk_h5 *file, const char *dataset, bk_dtype *dtype, int *dims,
                      int64_t shape[BK_MAX_DIMS])
{
    stored s;
    bk_h5_lock();
    bk_status status = stored_open(file, dataset, &s);
    if (status == BK_OK) {
        *dtype = s.dtype;
        *dims = s.dims;
        for (int i = 0; i < s.dims; i++)
            shape[i] = (int64_t)s.shape[i];
        stored_close(&s);
    }
    bk_h5_unlock();
    return status;
}

/* ---- create and write ---- */

/* Whole trailing axes, at most 1 MiB. */
static void chunk_shape(bk_dtype dtype, int dims, const int64_t *shape, hsize_t *chunk)
{
    int64_t most = (int64_t)(CHUNK_BYTES / bk_dtype_size(dtype));
    for (int i = dims - 1; i >= 0; i--) {
        int64_t side = shape[i] < most ? shape[i] : most;
        chunk[i] = (hsize_t)side;
        most /= side;
        if (most < 1)
            most = 1;
    }
}

static hid_t creation_list(const bk_h5 *file, bk_dtype dtype, int dims, const int64_t *shape)
{
    hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_obj_track_times(properties, 0);
    H5Pset_alloc_time(properties, H5D_ALLOC_TIME_INCR); /* early writes filtered chunks twice */
    H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER);
    int64_t count = 1;
    for (int i = 0; i < dims; i++)
        count *= shape[i];
    if (dims == 0 || count == 0)
        return properties; /* a chunk needs an element */
    hsize_t chunk[BK_MAX_DIMS];
    chunk_shape(dtype, dims, shape, chunk);
    H5Pset_chunk(properties, dims, chunk);
    if (file->deflate > 0) {
        H5Pset_shuffle(properties);
        H5Pset_deflate(properties, (unsigned)file->deflate);
    }
    H5Pset_fletcher32(properties);
    return properties;
}

/* Lock held. */
static bk_status create_dataset(bk_h5 *file, const char *dataset, bk_dtype dtype, int dims,
                                const int64_t *shape)
{
    hsize_t size[BK_MAX_DIMS];
    for (int i = 0; i < dims; i++)
        size[i] = (hsize_t)shape[i];
    if (!bk_h5_make_groups(file, dataset, false))
        return bk_h5_failed(file, dataset, "be created");
    hid_t properties = creation_list(file, dtype, dims, shape);
    hid_t space = dims == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(dims, size, NULL);
    hid_t id = H5Dcreate2(file->id, dataset, bk_h5_disk_type(dtype), space, H5P_DEFAULT, properties,
                          H5P_DEFAULT);
    bk_status status = BK_OK; /* before the next call clears the reason */
    if (id < 0 || H5Dclose(id) < 0)
        status = bk_h5_failed(file, dataset, "be created");
    H5Pclose(properties);
    H5Sclose(space);
    return status;
}

bk_status bk_h5_create_dataset(bk_h5 *file, const char *dataset, bk_dtype dtype, int dims,
                               const int64_t *shape)
{
    BK_ASSERT(dims >= 0 && dims <= BK_MAX_DIMS, "%d axes", dims);
    bk_h5_lock();
    bk_status status = create_dataset(file, dataset, dtype, dims, shape);
    bk_h5_unlock();
    return status;
}

bk_status bk_h5_write(bk_h5 *file, const char *dataset, bk_dtype dtype, int dims,
                      const int64_t *shape, const void *data)
{
    BK_TRY(bk_h5_create_dataset(file, dataset, dtype, dims, shape));
    return bk_h5_write_rows(file, dataset, dtype, 0, dims == 0 ? 1 : shape[0], data);
}

/* ---- ranges of rows ---- */

/* Selects rows [first, first+count) of s->space; returns the memory's dataspace, or -1.  Lock held.
 */
static hid_t select_rows(stored *s, int64_t first, int64_t count)
{
    hsize_t start[BK_MAX_DIMS] = {(hsize_t)first}, size[BK_MAX_DIMS];
    if (s->dims == 0)
        return H5Screate(H5S_SCALAR);
    memcpy(size, s->shape, sizeof size);
    size[0] = (hsize_t)count;
    if (H5Sselect_hyperslab(s->space, H5S_SELECT_SET, start, NULL, size, NULL) < 0)
        return -1;
    return H5Screate_simple(s->dims, size, NULL);
}

static bk_status check_rows(bk_h5 *file, const char *dataset, const stored *s, int64_t first,
                            int64_t count)
{
    int64_t rows = s->dims == 0 ? 1 : (int64_t)s->shape[0];
    if (first < 0 || count < 0 || first > rows || count > rows - first)
        return bk_h5_refuse(file, "%s has %lld rows, %lld from row %lld on were asked for", dataset,
                            (long long)rows, (long long)count, (long long)first);
    return BK_OK;
}

static bool empty_rows(const stored *s, int64_t count)
{
    for (int i = 1; i < s->dims; i++)
        count *= s->shape[i] > 0;
    return count == 0;
}

/* The only place where elements move.  write: `data` is read from. */
static bk_status move_rows(bk_h5 *file, const char *dataset, bk_dtype dtype, const int64_t range[2],
                           void *data, bool write)
{
    stored s;
    BK_TRY(stored_open(file, dataset, &s));
    bk_status status = check_rows(file, dataset, &s, range[0], range[1]);
    if (status == BK_OK && !empty_rows(&s, range[1])) {
        hid_t memory = select_rows(&s, range[0], range[1]), type = bk_h5_memory_type(dtype);
        herr_t code = memory < 0 ? -1
                      : write    ? H5Dwrite(s.id, type, memory, s.space, H5P_DEFAULT, data)
                                 : H5Dread(s.id, type, memory, s.space, H5P_DEFAULT, data);
        if (code < 0)
            status = bk_h5_failed(file, dataset, write ? "be written" : "be read");
        if (memory >= 0)
            H5Sclose(memory);
        if (write && status == BK_OK)
            status = flush_chunks(file, dataset, &s);
    }
    stored_close(&s);
    return status;
}

bk_status bk_h5_write_rows(bk_h5 *file, const char *dataset, bk_dtype dtype, int64_t first,
                           int64_t count, const void *data)
{
    void *borrowed; /* H5Dwrite reads it only; one function serves both directions */
    memcpy(&borrowed, &data, sizeof borrowed);
    bk_h5_lock();
    bk_status status =
        move_rows(file, dataset, dtype, (const int64_t[]){first, count}, borrowed, true);
    bk_h5_unlock();
    return status;
}

bk_status bk_h5_read_rows(bk_h5 *file, const char *dataset, bk_dtype dtype, int64_t first,
                          int64_t count, void *data)
{
    bk_h5_lock();
    bk_status status =
        move_rows(file, dataset, dtype, (const int64_t[]){first, count}, data, false);
    bk_h5_unlock();
    return status;
}

/* ---- read whole ---- */

static bk_status read_whole(bk_h5 *file, const char *dataset, bk_dtype dtype, bk_arena *arena,
                            bk_tensor **out)
{
    stored s;
    int64_t shape[BK_MAX_DIMS];
    BK_TRY(stored_open(file, dataset, &s));
    for (int i = 0; i < s.dims; i++)
        shape[i] = (int64_t)s.shape[i];
    int dims = s.dims;
    stored_close(&s);
    *out = bk_tensor_new(arena, dtype, dims, shape);
    const int64_t all[2] = {0, dims == 0 ? 1 : shape[0]};
    return move_rows(file, dataset, dtype, all, (*out)->data, false);
}

bk_status bk_h5_read(bk_h5 *file, const char *dataset, bk_dtype dtype, bk_arena *arena,
                     bk_tensor **out)
{
    bk_h5_lock();
    bk_status status = read_whole(file, dataset, dtype, arena, out);
    bk_h5_unlock();
    return status;
}

/* ---- texts ---- */

static hid_t text_type(size_t bytes)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, bytes > 0 ? bytes : 1);
    H5Tset_cset(type, H5T_CSET_UTF8);
    H5Tset_strpad(type, H5T_STR_NULLPAD);
    return type;
}

bk_status bk_h5_write_text(bk_h5 *file, const char *dataset, const char *text)
{
    bk_h5_lock();
    hid_t type = text_type(strlen(text)), space = H5Screate(H5S_SCALAR);
    hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_obj_track_times(properties, 0);
    hid_t id =
        bk_h5_make_groups(file, dataset, false)
            ? H5Dcreate2(file->id, dataset, type, space, H5P_DEFAULT, properties, H5P_DEFAULT)
            : -1;
    bk_status status = BK_OK;
    if (id < 0 || H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text) < 0)
        status = bk_h5_failed(file, dataset, "be written");
    if (id >= 0 && H5Dclose(id) < 0)
        status = bk_h5_failed(file, dataset, "be closed");
    H5Pclose(properties);
    H5Sclose(space);
    H5Tclose(type);
    bk_h5_unlock();
    return status;
}

/* Lock held. */
static bk_status read_text(bk_h5 *file, const char *dataset, hid_t id, bk_arena *arena, char **text)
{
    hid_t type = H5Dget_type(id), space = H5Dget_space(id);
    size_t bytes = type >= 0 ? H5Tget_size(type) : 0;
    bool plain = type >= 0 && H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0 &&
                 H5Sget_simple_extent_npoints(space) == 1;
    bk_status status = BK_OK;
    if (!plain || (int64_t)bytes > bk_file_size(file->path)) {
        status = bk_h5_refuse(file, "%s is not a text of fixed length", dataset);
    } else {
        *text = bk_arena_zalloc(arena, bytes + 1);
        if (H5Dread(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, *text) < 0)
            status = bk_h5_failed(file, dataset, "be read");
    }
    H5Tclose(type);
    H5Sclose(space);
    return status;
}

bk_status bk_h5_read_text(bk_h5 *file, const char *dataset, bk_arena *arena, char **text)
{
    bk_h5_lock();
    hid_t id = H5Dopen2(file->id, dataset, H5P_DEFAULT);
    bk_status status = id < 0 ? bk_h5_failed(file, dataset, "be opened")
                              : read_text(file, dataset, id, arena, text);
    if (id >= 0)
        H5Dclose(id);
    bk_h5_unlock();
    return status;
}
