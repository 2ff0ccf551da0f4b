/* io/digest.h - SHA-256 (libcrypto) and XXH64 (libxxhash) of memory, files and tensors. */
#ifndef BK_IO_DIGEST_H
#define BK_IO_DIGEST_H

#include "core/status.h"

enum { BK_SHA256 = 32, BK_SHA256_TEXT = 65, BK_XXH64_TEXT = 17, BK_LEAF = 4096 };

typedef struct bk_sha256 bk_sha256;

/* A running digest; finish gives the digest of what was added and starts anew. */
bk_sha256 *bk_sha256_new(void);
void bk_sha256_add(bk_sha256 *s, const void *data, size_t bytes);
void bk_sha256_finish(bk_sha256 *s, uint8_t out[BK_SHA256]);
void bk_sha256_finish_text(bk_sha256 *s, char out[BK_SHA256_TEXT]);
void bk_sha256_free(bk_sha256 *s);

/* The digest of one piece of memory, as lower-case hex. */
void bk_sha256_text(const void *data, size_t bytes, char out[BK_SHA256_TEXT]);

/* out[2 bytes + 1]: lower-case hex and NUL. */
void bk_hex(const uint8_t *data, size_t bytes, char *out);

/* The leaves of a tensor: out[32 ceil(count/4096)], SHA-256 of each 4096 elements (the last leaf
 * may be short). Pieces that begin at a multiple of 4096 elements have the leaves of the whole. */
void bk_digest_leaves(const void *data, int64_t count, size_t element, uint8_t *out);
static inline int64_t bk_leaves(int64_t count)
{
    return (count + BK_LEAF - 1) / BK_LEAF;
}

typedef struct bk_file_digest {
    int64_t size;
    char sha256[BK_SHA256_TEXT];
    char xxh64[BK_XXH64_TEXT];
} bk_file_digest;

/* Size and both digests in one pass.  BK_INPUT when the file cannot be read. */
BK_CHECKED bk_status bk_digest_file(const char *path, bk_file_digest *out);
/* The same without SHA-256, which takes most of the time; out->sha256 is empty. */
BK_CHECKED bk_status bk_digest_file_fast(const char *path, bk_file_digest *out);

#endif
