#include "io/teacher_file.h"

#include "core/fault.h"
#include "io/dataset.h"
#include "io/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* ---- rows ---- */

size_t bk_teacher_row_bytes(const bk_teacher_form *form, size_t bytes[BK_TEACHER_PARTS])
{
    size_t v = (size_t)form->vocabulary, k = (size_t)form->top_k;
    bytes[0] = k > 0 ? k * sizeof(int32_t) : v * (form->bf16 ? sizeof(uint16_t) : sizeof(float));
    bytes[1] = k * sizeof(float);
    bytes[2] = k > 0 ? (size_t)form->temperatures * sizeof(float) : 0;
    return bytes[0] + bytes[1] + bytes[2];
}

bool bk_teacher_rows_fit(const bk_teacher_form *form, int64_t rows, size_t keep)
{
    size_t bytes[BK_TEACHER_PARTS];
    return rows <= (int64_t)(keep / bk_teacher_row_bytes(form, bytes));
}

bk_teacher_rows bk_teacher_rows_new(bk_arena *arena, const bk_teacher_form *form, int64_t rows)
{
    size_t bytes[BK_TEACHER_PARTS];
    bk_teacher_rows out;
    bk_teacher_row_bytes(form, bytes);
    for (int i = 0; i < BK_TEACHER_PARTS; i++)
        out.part[i] = bk_arena_alloc(arena, (size_t)rows * bytes[i]);
    return out;
}

bk_teacher_rows bk_teacher_rows_at(const bk_teacher_form *form, bk_teacher_rows rows, int64_t first)
{
    size_t bytes[BK_TEACHER_PARTS];
    bk_teacher_row_bytes(form, bytes);
    for (int i = 0; i < BK_TEACHER_PARTS; i++)
        rows.part[i] = (char *)rows.part[i] + (size_t)first * bytes[i];
    return rows;
}

void bk_teacher_rows_copy(const bk_teacher_form *form, bk_teacher_rows to, bk_teacher_rows from,
                          int64_t count)
{
    size_t bytes[BK_TEACHER_PARTS];
    bk_teacher_row_bytes(form, bytes);
    for (int i = 0; i < BK_TEACHER_PARTS; i++)
        memcpy(to.part[i], from.part[i], (size_t)count * bytes[i]);
}

void bk_teacher_rows_clear(const bk_teacher_form *form, bk_teacher_rows rows, int64_t count)
{
    size_t bytes[BK_TEACHER_PARTS];
    bk_teacher_row_bytes(form, bytes);
    for (int i = 0; i < BK_TEACHER_PARTS; i++)
        memset(rows.part[i], 0, (size_t)count * bytes[i]);
}

const char *bk_teacher_form_text(const bk_teacher_form *form, char text[64])
{
    if (form->top_k > 0)
        snprintf(text, 64, "the largest %lld at %lld temperature%s", (long long)form->top_k,
                 (long long)form->temperatures, form->temperatures == 1 ? "" : "s");
    else
        snprintf(text, 64, "dense %s", form->bf16 ? "bf16" : "fp32");
    return text;
}

/* ---- the datasets of a form ---- */

typedef struct array {
    const char *path;
    bk_dtype memory, disk;
    int64_t width;
} array;

static array array_of(const bk_teacher_form *form, int i)
{
    bk_dtype index = form->vocabulary <= 65536 ? BK_U16 : BK_I32;
    bk_dtype logit = form->bf16 ? BK_U16 : BK_F32;
    const array top[] = {{"/index", BK_I32, index, form->top_k},
                         {"/value", BK_F32, BK_F32, form->top_k},
                         {"/lse", BK_F32, BK_F32, form->temperatures}},
                dense = {"/logits", logit, logit, form->vocabulary};
    return form->top_k > 0 ? top[i] : dense;
}

static int arrays_of(const bk_teacher_form *form)
{
    return form->top_k > 0 ? BK_TEACHER_PARTS : 1;
}

/* ---- writing ---- */

/* Who writes a file holds a lock on it: one without was left behind. */
static const char *part_path(bk_arena *arena, const char *path)
{
    const char *part = bk_arena_printf(arena, "%s.part", path);
    int other = open(part, O_RDONLY | O_CLOEXEC);
    bool busy = other >= 0 && flock(other, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (other >= 0)
        close(other);
    return busy ? bk_arena_printf(arena, "%s.%d", part, (int)getpid()) : part;
}

/* A file system without locks goes without. */
static void hold(bk_teacher_file *f)
{
    f->lock = open(f->part, O_RDONLY | O_CLOEXEC);
    if (f->lock >= 0 && flock(f->lock, LOCK_EX | LOCK_NB) != 0) {
        close(f->lock);
        f->lock = -1;
    }
}

static void let_go(bk_teacher_file *f)
{
    if (f->lock >= 0)
        close(f->lock);
    f->lock = -1;
    f->file = NULL;
}

static bk_status write_integer(bk_h5 *file, const char *name, int64_t value)
{
    return bk_h5_set_attribute(file, "/", name, BK_I64, 0, &value);
}

static bk_status write_attributes(const bk_teacher_file *f)
{
    BK_TRY(bk_h5_stamp(f->file, "birkhoff-teacher"));
    BK_TRY(bk_h5_set_attribute_text(f->file, "/", "teacher", f->teacher));
    BK_TRY(bk_h5_set_attribute_text(f->file, "/", "data", f->data));
    BK_TRY(bk_h5_set_attribute_text(f->file, "/", "split", f->split));
    BK_TRY(write_integer(f->file, "vocabulary", f->form.vocabulary));
    BK_TRY(write_integer(f->file, "top_k", f->form.top_k));
    BK_TRY(write_integer(f->file, "length", f->length));
    BK_TRY(write_integer(f->file, "max_length", f->max_length));
    if (f->form.top_k == 0)
        return BK_OK;
    return bk_h5_set_attribute(f->file, "/", "temperatures", BK_F64, f->form.temperatures,
                               f->form.temperature);
}

static bk_status create_datasets(const bk_teacher_file *f)
{
    BK_TRY(bk_h5_write(f->file, "/offsets", BK_I64, BK_SHAPE(f->samples + 1), f->offsets));
    for (int i = 0; i < arrays_of(&f->form); i++) {
        array p = array_of(&f->form, i);
        BK_TRY(bk_h5_create_dataset(f->file, p.path, p.disk, BK_SHAPE(f->rows, p.width)));
    }
    return f->form.top_k == 0 && f->form.bf16
               ? bk_h5_set_attribute_text(f->file, "/logits", "encoding", "bf16")
               : BK_OK;
}

bk_status bk_teacher_file_create(bk_arena *arena, size_t keep, bk_teacher_file *f)
{
    BK_TRY(bk_check_output(f->path));
    f->part = part_path(arena, f->path);
    unlink(f->part);
    if (bk_h5_create(arena, f->part, &f->file) != BK_OK)
        return bk_fail(BK_USAGE,
                       "the teacher's logits cannot be written (%s): check the directory and its "
                       "permissions",
                       f->path);
    hold(f);
    bk_status status = write_attributes(f);
    if (status == BK_OK)
        status = create_datasets(f);
    if (status != BK_OK)
        bk_teacher_file_drop(f);
    else if (bk_teacher_rows_fit(&f->form, f->rows, keep))
        f->kept = bk_teacher_rows_new(arena, &f->form, f->rows);
    return status;
}

static bk_status write_rows(const bk_teacher_file *f, int64_t first, int64_t count,
                            bk_teacher_rows rows)
{
    for (int i = 0; i < arrays_of(&f->form); i++) {
        array p = array_of(&f->form, i);
        BK_TRY(bk_h5_write_rows(f->file, p.path, p.memory, first, count, rows.part[i]));
    }
    return BK_OK;
}

bk_status bk_teacher_file_write(bk_teacher_file *f, int64_t first, int64_t count,
                                bk_teacher_rows rows)
{
    bk_fault(BK_FAULT_CACHE_WRITE);
    if (!f->kept.part[0])
        return write_rows(f, first, count, rows);
    bk_teacher_rows_copy(&f->form, bk_teacher_rows_at(&f->form, f->kept, first), rows, count);
    return BK_OK;
}

static bk_status write_texts(const bk_teacher_file *f, const char *digest)
{
    bool bf16 = f->form.top_k == 0 && f->form.bf16;
    const char *const text[][2] = {{"format", "birkhoff-teacher"},
                                   {"teacher", f->teacher},
                                   {"data", f->data},
                                   {"split", f->split},
                                   {"digest", digest},
                                   {"/logits/encoding", bf16 ? "bf16" : NULL}};
    return bk_h5_set_texts(f->file, sizeof text / sizeof *text, text);
}

static bk_status finish(const bk_teacher_file *f)
{
    char digest[65];
    if (f->kept.part[0])
        BK_TRY(write_rows(f, 0, f->rows, f->kept));
    BK_TRY(bk_dataset_digest(f->file, digest));
    BK_TRY(bk_h5_set_attribute_text(f->file, "/", "digest", digest));
    return write_texts(f, digest);
}

static bk_status put_in_place(const char *part, const char *path)
{
    BK_TRY(bk_sync_file(part));
    if (rename(part, path) != 0)
        return bk_fail(BK_FAULT, "the teacher's logits cannot be renamed (%s): %s", path,
                       strerror(errno));
    return bk_sync_parent(path);
}

bk_status bk_teacher_file_commit(bk_teacher_file *f)
{
    bk_status status = finish(f), closed = bk_h5_close(f->file);
    status = status != BK_OK ? status : closed;
    if (status == BK_OK)
        status = put_in_place(f->part, f->path);
    if (status != BK_OK)
        unlink(f->part);
    let_go(f);
    return status;
}

void bk_teacher_file_drop(bk_teacher_file *f)
{
    bk_arena *scratch = bk_arena_new("drop");
    char *text = bk_arena_strdup(scratch, bk_status_text()); /* of what went wrong */
    bk_status closed = bk_h5_close(f->file);
    (void)closed;
    unlink(f->part);
    let_go(f);
    bk_status_set_text(text);
    bk_arena_free(scratch);
}

/* ---- reading ---- */

static bk_status refuse(const bk_teacher_file *f, const char *what)
{
    return bk_fail(BK_INPUT,
                   "the file of the teacher's logits is damaged: %s (%s): remove it, and it is "
                   "written anew",
                   what, f->path);
}

static bk_status read_integer(const bk_teacher_file *f, const char *name, int64_t least,
                              int64_t most, int64_t *value)
{
    char text[96];
    BK_TRY(bk_h5_attribute(f->file, "/", name, BK_I64, 0, value));
    if (*value >= least && *value <= most)
        return BK_OK;
    snprintf(text, sizeof text, "it says %s = %lld", name, (long long)*value);
    return refuse(f, text);
}

/* Attributes that other makers may leave out: top_k of dense rows, and how samples were cut. */
static bk_status read_more(bk_teacher_file *f)
{
    f->length = f->max_length = -1;
    if (bk_h5_has_attribute(f->file, "/", "top_k") || !bk_h5_exists(f->file, "/logits"))
        BK_TRY(read_integer(f, "top_k", 0, f->form.vocabulary, &f->form.top_k));
    if (bk_h5_has_attribute(f->file, "/", "length"))
        BK_TRY(read_integer(f, "length", 0, INT32_MAX, &f->length));
    if (bk_h5_has_attribute(f->file, "/", "max_length"))
        BK_TRY(read_integer(f, "max_length", 0, INT32_MAX, &f->max_length));
    return BK_OK;
}

static bk_status read_temperatures(bk_arena *arena, bk_teacher_file *f)
{
    enum { MOST = 64 };
    bk_teacher_form *form = &f->form;
    if (form->top_k == 0)
        return BK_OK;
    BK_TRY(bk_h5_attribute_count(f->file, "/", "temperatures", &form->temperatures));
    if (form->temperatures < 1 || form->temperatures > MOST)
        return refuse(f, "its list of temperatures");
    double *t = BK_NEW(arena, double, form->temperatures);
    form->temperature = t;
    BK_TRY(bk_h5_attribute(f->file, "/", "temperatures", BK_F64, form->temperatures, t));
    for (int64_t i = 0; i < form->temperatures; i++)
        if (!(t[i] > 0.0))
            return refuse(f, "a temperature that is not above 0");
    return BK_OK;
}

static bk_status read_text(bk_arena *arena, const bk_teacher_file *f, const char *object,
                           const char *name, const char **text)
{
    char *stored = "";
    if (bk_h5_has_attribute(f->file, object, name))
        BK_TRY(bk_h5_attribute_text(f->file, object, name, arena, &stored));
    *text = stored;
    return BK_OK;
}

static bk_status read_about(bk_arena *arena, bk_teacher_file *f)
{
    const char *encoding;
    bk_teacher_form *form = &f->form;
    BK_TRY(bk_h5_expect(f->file, "birkhoff-teacher"));
    BK_TRY(read_text(arena, f, "/", "teacher", &f->teacher));
    BK_TRY(read_text(arena, f, "/", "data", &f->data));
    BK_TRY(read_text(arena, f, "/", "split", &f->split));
    BK_TRY(read_text(arena, f, "/", "digest", &f->digest));
    BK_TRY(read_text(arena, f, "/logits", "encoding", &encoding));
    form->bf16 = strcmp(encoding, "bf16") == 0;
    BK_TRY(read_integer(f, "vocabulary", 1, INT32_MAX, &form->vocabulary));
    BK_TRY(read_more(f));
    return read_temperatures(arena, f);
}

static bk_status read_offsets(bk_arena *arena, bk_teacher_file *f)
{
    bk_tensor *offsets;
    BK_TRY(bk_h5_read(f->file, "/offsets", BK_I64, arena, &offsets));
    const int64_t *at = offsets->data;
    if (offsets->dims != 1 || offsets->shape[0] < 1 || at[0] != 0)
        return refuse(f, "/offsets does not begin with 0");
    f->samples = offsets->shape[0] - 1;
    f->offsets = at;
    for (int64_t i = 0; i < f->samples; i++)
        if (at[i + 1] < at[i])
            return refuse(f, "/offsets falls");
    f->rows = at[f->samples];
    return BK_OK;
}

static bk_status check_array(const bk_teacher_file *f, const array *p)
{
    bk_dtype dtype;
    int dims;
    int64_t shape[BK_MAX_DIMS];
    char text[96];
    BK_TRY(bk_h5_shape(f->file, p->path, &dtype, &dims, shape));
    if (dims == 2 && shape[0] == f->rows && shape[1] == p->width &&
        (dtype == BK_F32 || dtype == BK_F64) == (p->disk == BK_F32))
        return BK_OK;
    snprintf(text, sizeof text, "%s is not of %lld rows of %lld %s", p->path, (long long)f->rows,
             (long long)p->width, p->disk == BK_F32 ? "reals" : "integers");
    return refuse(f, text);
}

static bk_status keep_rows(bk_arena *arena, size_t keep, bk_teacher_file *f)
{
    if (!bk_teacher_rows_fit(&f->form, f->rows, keep))
        return BK_OK;
    bk_teacher_rows all = bk_teacher_rows_new(arena, &f->form, f->rows);
    BK_TRY(bk_teacher_file_read(f, 0, f->rows, all));
    f->kept = all;
    return BK_OK;
}

static bk_status read_all(bk_arena *arena, size_t keep, bk_teacher_file *f)
{
    BK_TRY(read_about(arena, f));
    BK_TRY(read_offsets(arena, f));
    for (int i = 0; i < arrays_of(&f->form); i++) {
        array p = array_of(&f->form, i);
        BK_TRY(check_array(f, &p));
    }
    return keep_rows(arena, keep, f);
}

bk_status bk_teacher_file_open(bk_arena *arena, const char *path, size_t keep, bk_teacher_file *out)
{
    *out = (bk_teacher_file){.path = bk_arena_strdup(arena, path)};
    BK_TRY(bk_h5_open_as(arena, out->path, "file of the teacher's logits",
                         "remove it, and it is written anew", &out->file));
    bk_status status = read_all(arena, keep, out);
    if (status == BK_OK)
        return BK_OK;
    char text[2048]; /* closing must not replace the text of what went wrong */
    snprintf(text, sizeof text, "%s", bk_status_text());
    bk_status closed = bk_teacher_file_close(out);
    (void)closed;
    return bk_fail(status, "%s", text);
}

/* An index is believed when it is read. */
static bk_status check_index(const bk_teacher_file *f, int64_t count, const int32_t *index)
{
    for (int64_t i = 0; i < count * f->form.top_k; i++)
        if (index[i] < 0 || index[i] >= f->form.vocabulary)
            return refuse(f, "a class of /index is not in the vocabulary");
    return BK_OK;
}

bk_status bk_teacher_file_read(const bk_teacher_file *f, int64_t first, int64_t count,
                               bk_teacher_rows rows)
{
    if (f->kept.part[0]) {
        bk_teacher_rows_copy(&f->form, rows, bk_teacher_rows_at(&f->form, f->kept, first), count);
        return BK_OK;
    }
    for (int i = 0; i < arrays_of(&f->form); i++) {
        array p = array_of(&f->form, i);
        BK_TRY(bk_h5_read_rows(f->file, p.path, p.memory, first, count, rows.part[i]));
    }
    return f->form.top_k > 0 ? check_index(f, count, rows.part[0]) : BK_OK;
}

bk_status bk_teacher_file_close(bk_teacher_file *f)
{
    bk_h5 *file = f->file;
    f->file = NULL;
    return file ? bk_h5_close(file) : BK_OK;
}
