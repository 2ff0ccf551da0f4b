#include "io/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum { BUFFER = 1 << 20 };

struct bk_sha256 {
    EVP_MD_CTX *context;
};

static void begin(bk_sha256 *s)
{
    if (EVP_DigestInit_ex(s->context, EVP_sha256(), NULL) != 1)
        bk_fatal("SHA-256 is not available in libcrypto");
}

bk_sha256 *bk_sha256_new(void)
{
    bk_sha256 *s = malloc(sizeof *s);
    if (!s || !(s->context = EVP_MD_CTX_new()))
        bk_fatal("out of memory: SHA-256");
    begin(s);
    return s;
}

void bk_sha256_add(bk_sha256 *s, const void *data, size_t bytes)
{
    if (EVP_DigestUpdate(s->context, data, bytes) != 1)
        bk_fatal("SHA-256 failed in libcrypto");
}

/* Reinitialising with the same digest skips libcrypto's lookup, which costs more than a leaf. */
void bk_sha256_finish(bk_sha256 *s, uint8_t out[BK_SHA256])
{
    if (EVP_DigestFinal_ex(s->context, out, NULL) != 1 ||
        EVP_DigestInit_ex(s->context, NULL, NULL) != 1)
        bk_fatal("SHA-256 failed in libcrypto");
}

void bk_sha256_finish_text(bk_sha256 *s, char out[BK_SHA256_TEXT])
{
    uint8_t digest[BK_SHA256];
    bk_sha256_finish(s, digest);
    bk_hex(digest, sizeof digest, out);
}

void bk_sha256_free(bk_sha256 *s)
{
    if (s)
        EVP_MD_CTX_free(s->context);
    free(s);
}

void bk_sha256_text(const void *data, size_t bytes, char out[BK_SHA256_TEXT])
{
    bk_sha256 *s = bk_sha256_new();
    bk_sha256_add(s, data, bytes);
    bk_sha256_finish_text(s, out);
    bk_sha256_free(s);
}

void bk_hex(const uint8_t *data, size_t bytes, char *out)
{
    static const char digit[] = "0123456789abcdef";
    for (size_t i = 0; i < bytes; i++) {
        out[2 * i] = digit[data[i] >> 4];
        out[2 * i + 1] = digit[data[i] & 15];
    }
    out[2 * bytes] = '\0';
}

void bk_digest_leaves(const void *data, int64_t count, size_t element, uint8_t *out)
{
    bk_sha256 *s = bk_sha256_new();
    const char *from = data;
    for (int64_t done = 0; done < count; done += BK_LEAF, out += BK_SHA256) {
        int64_t length = count - done < BK_LEAF ? count - done : BK_LEAF;
        bk_sha256_add(s, from + (size_t)done * element, (size_t)length * element);
        bk_sha256_finish(s, out);
    }
    bk_sha256_free(s);
}

/* ---- files ---- */

static ssize_t read_some(int descriptor, char *buffer)
{
    ssize_t got;
    do
        got = read(descriptor, buffer, BUFFER);
    while (got < 0 && errno == EINTR);
    return got;
}

/* sha: NULL for XXH64 alone. */
static ssize_t digest_descriptor(int descriptor, char *buffer, bk_sha256 *sha, bk_file_digest *out)
{
    XXH64_state_t *xxh = XXH64_createState();
    if (!xxh)
        bk_fatal("out of memory: XXH64");
    XXH64_reset(xxh, 0);
    ssize_t got;
    *out = (bk_file_digest){0};
    while ((got = read_some(descriptor, buffer)) > 0) {
        if (sha)
            bk_sha256_add(sha, buffer, (size_t)got);
        XXH64_update(xxh, buffer, (size_t)got);
        out->size += got;
    }
    if (sha)
        bk_sha256_finish_text(sha, out->sha256);
    snprintf(out->xxh64, sizeof out->xxh64, "%016llx", (unsigned long long)XXH64_digest(xxh));
    XXH64_freeState(xxh);
    return got;
}

static bk_status digest_file(const char *path, bk_sha256 *sha, bk_file_digest *out)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return bk_fail(BK_INPUT, "the file cannot be read (%s): %s", path, strerror(errno));
    char *buffer = malloc(BUFFER);
    if (!buffer)
        bk_fatal("out of memory: a buffer for %s", path);
    ssize_t got = digest_descriptor(descriptor, buffer, sha, out);
    int reason = errno;
    free(buffer);
    close(descriptor);
    return got < 0 ? bk_fail(BK_INPUT, "the file cannot be read (%s): %s", path, strerror(reason))
                   : BK_OK;
}

bk_status bk_digest_file(const char *path, bk_file_digest *out)
{
    bk_sha256 *sha = bk_sha256_new();
    bk_status status = digest_file(path, sha, out);
    bk_sha256_free(sha);
    return status;
}

bk_status bk_digest_file_fast(const char *path, bk_file_digest *out)
{
    return digest_file(path, NULL, out);
}
