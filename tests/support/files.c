#include "tests/support/files.h"

#include "io/files.h"
#include "tests/support/check.h"

#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH = 4096, BUFFERS = 16 };

static char directory[PATH];

static int make_below(const char *above)
{
    snprintf(directory, sizeof directory, "%s/birkhoff-test-XXXXXX", above);
    return mkdtemp(directory) ? 0 : -1;
}

int bk_test_directory_make(void **state)
{
    (void)state;
    const char *above = getenv("TMPDIR");
    return make_below(above ? above : "/tmp");
}

int bk_test_directory_make_in_memory(void **state)
{
    return make_below("/dev/shm") == 0 ? 0 : bk_test_directory_make(state);
}

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *walk)
{
    (void)s;
    (void)type;
    (void)walk;
    return remove(path);
}

void bk_test_remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

int bk_test_directory_remove(void **state)
{
    (void)state;
    bk_test_remove_tree(directory);
    return 0;
}

const char *bk_test_path(const char *format, ...)
{
    static char buffer[BUFFERS][PATH];
    static int next;
    char *out = buffer[next++ % BUFFERS];
    int used = snprintf(out, PATH, "%s/", directory);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(out + used, (size_t)(PATH - used), format, arguments);
    va_end(arguments);
    char *slash = strrchr(out, '/');
    *slash = '\0';
    assert_int_equal(bk_make_directories(out), BK_OK);
    *slash = '/';
    return out;
}

void bk_test_write(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

void bk_test_write_text(const char *path, const char *text)
{
    bk_test_write(path, text, strlen(text));
}

char *bk_test_read(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        fail_msg("%s cannot be read", path);
    *bytes = (size_t)bk_file_size(path);
    char *data = malloc(*bytes + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *bytes, file), *bytes);
    data[*bytes] = '\0';
    fclose(file);
    return data;
}

void bk_test_flip(const char *path, size_t byte, int bit)
{
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    fseek(file, (long)byte, SEEK_SET);
    int value = fgetc(file);
    assert_true(value != EOF);
    fseek(file, (long)byte, SEEK_SET);
    fputc(value ^ 1 << bit, file);
    assert_int_equal(fclose(file), 0);
}

void bk_test_cut(const char *path, size_t bytes)
{
    assert_int_equal(truncate(path, (off_t)bytes), 0);
}

void bk_test_copy_directory(const char *from, const char *to)
{
    bk_arena *arena = bk_arena_new("copy");
    assert_int_equal(bk_make_directories(to), BK_OK);
    for (char **names = bk_list_directory(arena, from); *names; names++) {
        size_t bytes;
        char *data = bk_test_read(bk_arena_printf(arena, "%s/%s", from, *names), &bytes);
        bk_test_write(bk_arena_printf(arena, "%s/%s", to, *names), data, bytes);
        free(data);
    }
    bk_arena_free(arena);
}
