/* TensorBoard events: records with both checksums right, and the fields of tensorflow.Event. */
#include "io/files.h"
#include "io/metrics.h"
#include "io/tensorboard.h"
#include "tests/support/check.h"
#include "tests/support/files.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bk_arena *arena;

/* ---- CRC-32C by a table, other than the code under test ---- */

static uint32_t crc_of(const void *data, size_t bytes)
{
    uint32_t table[256], crc = 0xFFFFFFFFu;
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int k = 0; k < 8; k++)
            table[i] = table[i] & 1 ? table[i] >> 1 ^ 0x82F63B78u : table[i] >> 1;
    }
    for (size_t i = 0; i < bytes; i++)
        crc = crc >> 8 ^ table[(crc ^ ((const uint8_t *)data)[i]) & 255];
    return crc ^ 0xFFFFFFFFu;
}

static uint32_t masked(const void *data, size_t bytes)
{
    uint32_t crc = crc_of(data, bytes);
    return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

static void the_checksum_of_the_test_is_right(void **state)
{
    (void)state;
    assert_int_equal(crc_of("123456789", 9), 0xE3069283u); /* RFC 3720 */
}

/* ---- reading events ---- */

typedef struct event {
    double wall_time;
    int64_t step;
    char version[32], tag[64];
    float value;
} event;

static uint64_t varint(const uint8_t **at)
{
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 127) << shift;
        if (!(byte & 128))
            return value;
    }
}

static void message(const uint8_t *at, size_t bytes, int depth, event *e)
{
    for (const uint8_t *end = at + bytes; at < end;) {
        uint64_t key = varint(&at), field = key >> 3;
        if ((key & 7) == 1) { /* fixed64 */
            memcpy(&e->wall_time, at, 8);
            at += 8;
        } else if ((key & 7) == 5) { /* fixed32: Summary.Value.simple_value */
            assert_true(depth == 2 && field == 2);
            memcpy(&e->value, at, 4);
            at += 4;
        } else if ((key & 7) == 0) {
            assert_int_equal(field, 2);
            e->step = (int64_t)varint(&at);
        } else {
            size_t length = (size_t)varint(&at);
            assert_true(at + length <= end);
            char *text = depth == 0 ? e->version : e->tag;
            if ((depth == 0 && field == 3) || (depth == 2 && field == 1))
                snprintf(text, 32, "%.*s", (int)length, (const char *)at);
            else
                message(at, length, depth + 1, e);
            at += length;
        }
    }
}

/* The events of the only file in a directory. */
static int events_of(const char *directory, event *out, int room)
{
    char **names = bk_list_directory(arena, directory);
    assert_non_null(names[0]);
    assert_null(names[1]);
    assert_non_null(strstr(names[0], "events.out.tfevents."));
    size_t bytes, at = 0;
    char *data = bk_test_read(bk_arena_printf(arena, "%s/%s", directory, names[0]), &bytes);
    int count = 0;
    while (at < bytes) {
        uint64_t length;
        uint32_t head, tail;
        assert_true(at + 16 <= bytes && count < room);
        memcpy(&length, data + at, 8);
        memcpy(&head, data + at + 8, 4);
        assert_int_equal(head, masked(data + at, 8));
        memcpy(&tail, data + at + 12 + length, 4);
        assert_int_equal(tail, masked(data + at + 12, (size_t)length));
        out[count] = (event){.value = NAN};
        message((const uint8_t *)data + at + 12, (size_t)length, 0, &out[count++]);
        at += 16 + length;
    }
    assert_int_equal(at, bytes);
    free(data);
    return count;
}

static void scalars_are_events(void **state)
{
    (void)state;
    event e[8];
    bk_tensorboard *b;
    const char *directory = bk_arena_strdup(arena, bk_test_path("tb"));
    assert_int_equal(bk_tensorboard_open(arena, directory, &b), BK_OK);
    bk_tensorboard_scalar(b, "train/loss", 1, 0.5);
    bk_tensorboard_scalar(b, "train/loss", 1LL << 40, -2.25);
    bk_tensorboard_flush(b);
    assert_int_equal(events_of(directory, e, 8), 3);
    assert_string_equal(e[0].version, "brain.Event:2");
    assert_string_equal(e[1].tag, "train/loss");
    assert_int_equal(e[1].step, 1);
    assert_true(e[1].value == 0.5f && e[2].value == -2.25f);
    assert_true(e[2].step == 1LL << 40);
    assert_true(e[1].wall_time > 1.6e9 && e[1].wall_time < 1e11);
    assert_int_equal(bk_tensorboard_close(b), BK_OK);
    bk_tensorboard_scalar(NULL, "x", 1, 1.0);
    assert_int_equal(bk_tensorboard_close(NULL), BK_OK);
}

/* The numbers of metrics.jsonl arrive under SPLIT/NAME; what is not finite does not. */
static void metrics_are_shown(void **state)
{
    (void)state;
    event e[8];
    bk_metrics *m;
    const char *run = bk_test_path("run/x");
    run = bk_arena_printf(arena, "%.*s", (int)strlen(run) - 2, run);
    assert_int_equal(bk_metrics_open(arena, run, 0, true, &m), BK_OK);
    bk_metrics_begin(m, 9, "test");
    bk_metrics_number(m, "accuracy", 0.75);
    bk_metrics_number(m, "loss", NAN);
    bk_metrics_integer(m, "count", 3);
    bk_metrics_end(m);
    assert_int_equal(bk_metrics_close(m), BK_OK);
    assert_int_equal(events_of(bk_arena_printf(arena, "%s/tb", run), e, 8), 3);
    assert_string_equal(e[1].tag, "test/accuracy");
    assert_int_equal(e[1].step, 9);
    assert_string_equal(e[2].tag, "test/count");
    assert_true(e[2].value == 3.0f);
}

static void a_directory_that_cannot_be(void **state)
{
    (void)state;
    bk_tensorboard *b;
    const char *file = bk_arena_strdup(arena, bk_test_path("file"));
    bk_test_write_text(file, "");
    assert_int_equal(bk_tensorboard_open(arena, bk_arena_printf(arena, "%s/tb", file), &b),
                     BK_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_checksum_of_the_test_is_right),
        cmocka_unit_test(scalars_are_events),
        cmocka_unit_test(metrics_are_shown),
        cmocka_unit_test(a_directory_that_cannot_be),
    };
    arena = bk_arena_new("test");
    int failed = cmocka_run_group_tests(tests, bk_test_directory_make, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
