#include "io/idx.h"

#include "io/files.h"

#include <errno.h>
#include <string.h>
#include <zlib.h>

/* One file: images, or labels of 1 x 1. */
typedef struct idx {
    int64_t count, rows, cols;
    unsigned char *bytes;
} idx;

static uint32_t big_endian(const unsigned char *b)
{
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

/* A file being read; bytes count after decompression. */
typedef struct stream {
    gzFile file;
    const char *path;
    int64_t at;
} stream;

static bk_status broken(const stream *s)
{
    return bk_fail(BK_INPUT, "the gzip data are damaged at byte %lld (%s): get the file again",
                   (long long)s->at, s->path);
}

static bk_status read_exactly(stream *s, int64_t count, unsigned char *to)
{
    for (int64_t done = 0; done < count;) {
        unsigned step = (unsigned)(count - done < (1 << 28) ? count - done : 1 << 28);
        int code, got = gzread(s->file, to + done, step);
        gzerror(s->file, &code);
        if (got < 0 && code != Z_BUF_ERROR)
            return broken(s);
        if (got <= 0)
            return bk_fail(BK_INPUT,
                           "the file ends at byte %lld, %lld bytes are missing (%s): get it again",
                           (long long)s->at, (long long)(count - done), s->path);
        done += got;
        s->at += got;
    }
    return BK_OK;
}

/* Behind the last byte: reading on checks the checksum of gzip. */
static bk_status expect_end(stream *s)
{
    unsigned char byte;
    int code, got = gzread(s->file, &byte, 1);
    gzerror(s->file, &code);
    if (got == 0 && code == Z_OK)
        return BK_OK;
    return got <= 0 ? broken(s)
                    : bk_fail(BK_INPUT,
                              "the file goes on behind its last record, at byte %lld (%s): get it "
                              "again",
                              (long long)s->at, s->path);
}

/* Images have magic 0x803 and three sizes, labels 0x801 and one. */
static bk_status read_header(stream *s, bool images, idx *out)
{
    unsigned char head[16];
    BK_TRY(read_exactly(s, images ? 16 : 8, head));
    if (big_endian(head) != (images ? 0x803u : 0x801u))
        return bk_fail(BK_INPUT,
                       "not an IDX file of %s: magic 0x%08x at byte 0, not 0x%08x (%s): check the "
                       "order of the files",
                       images ? "images" : "labels", big_endian(head), images ? 0x803u : 0x801u,
                       s->path);
    *out = (idx){.count = big_endian(head + 4),
                 .rows = images ? big_endian(head + 8) : 1,
                 .cols = images ? big_endian(head + 12) : 1};
    if (out->count > 0 && out->rows > 0 && out->cols > 0 && out->rows <= 65536 &&
        out->cols <= 65536)
        return BK_OK;
    return bk_fail(BK_INPUT,
                   "the sizes %lld x %lld x %lld make no sense at byte 4 (%s): get the file again",
                   (long long)out->count, (long long)out->rows, (long long)out->cols, s->path);
}

/* A header must not make us allocate more than the file can hold: deflate's greatest ratio is 1032.
 */
static bk_status check_size(const stream *s, const idx *x)
{
    int64_t most = bk_file_size(s->path) * (gzdirect(s->file) ? 1 : 1032);
    if ((double)x->count * (double)x->rows * (double)x->cols <= (double)most)
        return BK_OK;
    return bk_fail(BK_INPUT,
                   "the header promises %lld x %lld x %lld bytes, at least %.0f bytes are missing "
                   "(%s): get the file again",
                   (long long)x->count, (long long)x->rows, (long long)x->cols,
                   (double)x->count * (double)x->rows * (double)x->cols - (double)most +
                       (double)s->at,
                   s->path);
}

static bk_status read_records(bk_arena *arena, stream *s, bool images, int64_t limit, idx *out)
{
    BK_TRY(read_header(s, images, out));
    bool all = limit == 0 || limit >= out->count;
    out->count = all ? out->count : limit;
    BK_TRY(check_size(s, out));
    int64_t bytes = out->count * out->rows * out->cols;
    out->bytes = bk_arena_alloc(arena, (size_t)bytes);
    BK_TRY(read_exactly(s, bytes, out->bytes));
    return all ? expect_end(s) : BK_OK;
}

static bk_status read_idx(bk_arena *arena, const char *path, bool images, int64_t limit, idx *out)
{
    stream s = {.path = path};
    if (bk_file_size(path) < 0)
        return bk_fail(BK_INPUT, "the file cannot be read (%s): %s", path,
                       bk_is_directory(path) ? "it is a directory, name a file" : "check the path");
    s.file = gzopen(path, "rb");
    if (!s.file)
        return bk_fail(BK_INPUT, "the file cannot be read (%s): %s", path, strerror(errno));
    bk_status status = read_records(arena, &s, images, limit, out);
    gzclose(s.file);
    return status;
}

static bk_status check_labels(const idx *labels, int64_t classes, const char *path)
{
    for (int64_t i = 0; classes > 0 && i < labels->count; i++)
        if (labels->bytes[i] >= classes)
            return bk_fail(
                BK_INPUT,
                "label %d is not in 0..%lld (%s: record %lld, byte %lld): check classes= "
                "and the file",
                labels->bytes[i], (long long)classes - 1, path, (long long)i, (long long)i + 8);
    return BK_OK;
}

bk_status bk_images_read(bk_arena *arena, const char *images, const char *labels, int64_t limit,
                         int64_t classes, bk_images *out)
{
    idx x, y;
    BK_TRY(read_idx(arena, images, true, limit, &x));
    BK_TRY(read_idx(arena, labels, false, limit, &y));
    if (x.count != y.count)
        return bk_fail(BK_INPUT,
                       "%lld images but %lld labels (%s, %s): the files do not belong together",
                       (long long)x.count, (long long)y.count, images, labels);
    *out = (bk_images){x.count, x.rows, x.cols, x.bytes, y.bytes};
    return check_labels(&y, classes, labels);
}
