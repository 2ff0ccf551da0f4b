#include "io/tensorboard.h"

#include "io/files.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct bk_tensorboard {
    FILE *file;
    const char *path;
};

enum { RECORD = 512 };

/* ---- protocol buffers: what an Event with one scalar needs ---- */

typedef struct message {
    uint8_t data[RECORD];
    size_t length;
} message;

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

static void put(message *m, const void *data, size_t bytes)
{
    BK_ASSERT(m->length + bytes <= RECORD, "an event of more than %d bytes", RECORD);
    memcpy(m->data + m->length, data, bytes);
    m->length += bytes;
}

static void put_varint(message *m, uint64_t value)
{
    for (; value >= 128; value >>= 7)
        put(m, &(uint8_t){(uint8_t)(value | 128)}, 1);
    put(m, &(uint8_t){(uint8_t)value}, 1);
}

static void put_key(message *m, unsigned field, unsigned type)
{
    put_varint(m, field << 3 | type);
}

static void put_bytes(message *m, unsigned field, const void *data, size_t bytes)
{
    put_key(m, field, BYTES);
    put_varint(m, bytes);
    put(m, data, bytes);
}

static message event_at(double seconds)
{
    message event = {.length = 0};
    put_key(&event, 1, FIXED64); /* Event.wall_time */
    put(&event, &seconds, sizeof seconds);
    return event;
}

/* ---- TFRecord: length, its checksum, bytes, their checksum ---- */

/* CRC-32C (Castagnoli), bit by bit: a few hundred bytes a log line. */
static uint32_t crc32c(const void *data, size_t bytes)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (const uint8_t *at = data, *end = at + bytes; at < end; at++) {
        crc ^= *at;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0x82F63B78u & (0u - (crc & 1u)));
    }
    return ~crc;
}

static uint32_t masked(uint32_t crc)
{
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

static void write_record(FILE *file, const message *m)
{
    uint64_t length = m->length;
    uint32_t head = masked(crc32c(&length, sizeof length)),
             tail = masked(crc32c(m->data, m->length));
    fwrite(&length, sizeof length, 1, file);
    fwrite(&head, sizeof head, 1, file);
    fwrite(m->data, 1, m->length, file);
    fwrite(&tail, sizeof tail, 1, file);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the file ---- */

bk_status bk_tensorboard_open(bk_arena *arena, const char *directory, bk_tensorboard **out)
{
    static const char version[] = "brain.Event:2";
    bk_tensorboard *b = BK_ZNEW(arena, bk_tensorboard, 1);
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    BK_TRY(bk_make_directories(directory));
    b->path = bk_arena_printf(arena, "%s/events.out.tfevents.%010lld.%s.%d", directory,
                              (long long)time(NULL), host, (int)getpid());
    b->file = fopen(b->path, "wb");
    if (!b->file)
        return bk_fail(BK_USAGE, "the events cannot be written (%s): %s", b->path, strerror(errno));
    message event = event_at(now());
    put_bytes(&event, 3, version, sizeof version - 1); /* Event.file_version */
    write_record(b->file, &event);
    *out = b;
    return BK_OK;
}

void bk_tensorboard_scalar(bk_tensorboard *b, const char *tag, int64_t step, double value)
{
    if (!b)
        return;
    float simple = (float)value;
    message one = {.length = 0}, summary = {.length = 0}, event = event_at(now());
    put_bytes(&one, 1, tag, strlen(tag)); /* Summary.Value.tag */
    put_key(&one, 2, FIXED32);            /* Summary.Value.simple_value */
    put(&one, &simple, sizeof simple);
    put_bytes(&summary, 1, one.data, one.length);
    put_key(&event, 2, VARINT); /* Event.step */
    put_varint(&event, (uint64_t)step);
    put_bytes(&event, 5, summary.data, summary.length);
    write_record(b->file, &event);
}

void bk_tensorboard_flush(bk_tensorboard *b)
{
    if (b)
        fflush(b->file);
}

bk_status bk_tensorboard_close(bk_tensorboard *b)
{
    if (!b)
        return BK_OK;
    bool good = !ferror(b->file);
    good = fclose(b->file) == 0 && good;
    return good ? BK_OK
                : bk_fail(BK_FAULT, "the events are not whole (%s): check the disk", b->path);
}
