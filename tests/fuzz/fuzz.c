#include "tests/fuzz/fuzz.h"

#include "core/log.h"
#include "io/digest.h"
#include "io/yaml.h"
#include "jobs/config.h"
#include "models/internal.h"

#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the directory ---- */

static char directory[64];

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *walk)
{
    (void)s;
    (void)type;
    (void)walk;
    return remove(path);
}

static void remove_directory(void)
{
    nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    bk_log_setup(BK_LOG_QUIET, false, false);
    snprintf(directory, sizeof directory, "/dev/shm/birkhoff-fuzz-XXXXXX");
    if (!mkdtemp(directory))
        bk_fuzz_wrong("no directory in memory: %s", directory);
    atexit(remove_directory);
    return 0;
}

const char *bk_fuzz_path(bk_arena *arena, const char *name)
{
    return bk_arena_printf(arena, "%s/%s", directory, name);
}

void bk_fuzz_write(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file) != 0)
        bk_fuzz_wrong("%s cannot be written", path);
}

/* ---- the rule ---- */

void bk_fuzz_wrong(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("fuzz: ", stderr);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    abort();
}

bool bk_fuzz_read(bk_status status)
{
    if (status == BK_OK)
        return true;
    const char *text = bk_status_text();
    if (status != BK_USAGE && status != BK_INPUT)
        bk_fuzz_wrong("status %d: %s", (int)status, text);
    if (!*text)
        bk_fuzz_wrong("a refusal without a text");
    for (const char *at = text; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 0x7f)
            bk_fuzz_wrong("byte %d in the text of a refusal: %s", *at, text);
    return false;
}

/* ---- configurations ---- */

static void write_model(const void *model, int indent, void *file)
{
    bk_model_write_options(model, indent, file);
}

static char *resolved(const bk_config *config, const bk_model *model)
{
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    bk_config_write(config, write_model, model, stream);
    fclose(stream);
    return text;
}

/* A model of millions of experts is a wish, not an input that means harm. */
static bool modest(const bk_value *root)
{
    const bk_value *model = bk_value_get(root, "model");
    const bk_value *experts = bk_value_get(bk_value_get(model, "moe"), "experts");
    int64_t count;
    return !experts || experts->kind != BK_SCALAR || !bk_parse_i64(experts->text, &count) ||
           count <= 64;
}

/* NULL: refused. */
static char *read_configuration(bk_arena *arena, bk_value *root)
{
    static const bk_world alone = {.size = 1, .nodes = 1, .expert = 1};
    const bk_model_data data = {.vocabulary = 17, .classes = 5, .max_length = 32};
    bk_config *config;
    bk_model *model;
    if (!bk_fuzz_read(bk_config_read(arena, root, &config)) || !modest(root))
        return NULL;
    bk_status status = bk_model_new(arena, bk_value_get(root, "model"), &data, &alone, &model);
    return bk_fuzz_read(status) ? resolved(config, model) : NULL;
}

void bk_fuzz_configuration(bk_arena *arena, bk_value *root)
{
    char *first = read_configuration(arena, root);
    if (!first)
        return;
    bk_value *again;
    bk_status status = bk_yaml_parse(arena, "resolved", first, strlen(first), &again);
    char *second = status == BK_OK ? read_configuration(arena, again) : NULL;
    if (!second)
        bk_fuzz_wrong("the resolved configuration is refused: %s\n%s", bk_status_text(), first);
    if (strcmp(first, second) != 0)
        bk_fuzz_wrong("the resolved configuration reads as another:\n%s\n%s", first, second);
    free(first);
    free(second);
}

/* ---- manifests ---- */

void bk_fuzz_sign_manifest(char *text, size_t length)
{
    static const char key[] = "\"manifest_sha256\":\"";
    enum { DIGITS = BK_SHA256_TEXT - 1 };
    char digest[BK_SHA256_TEXT];
    char *place = memmem(text, length, key, strlen(key));
    if (!place || (size_t)(text + length - place) < strlen(key) + DIGITS)
        return;
    place += strlen(key);
    memset(place, '0', DIGITS);
    bk_sha256_text(text, length, digest);
    memcpy(place, digest, DIGITS);
}

/* ---- numbers ---- */

uint8_t bk_fuzz_byte(bk_fuzz_input *in)
{
    return in->at < in->end ? *in->at++ : 0;
}

int64_t bk_fuzz_integer(bk_fuzz_input *in)
{
    uint8_t form = bk_fuzz_byte(in);
    if (form < 240)
        return form - 8;
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 8 | bk_fuzz_byte(in);
    return (int64_t)value;
}
