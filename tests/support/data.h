/* tests/support/data.h - making data sets as the command does, and looking at them. */
#ifndef BK_TESTS_SUPPORT_DATA_H
#define BK_TESTS_SUPPORT_DATA_H

#include "io/data.h"

/* Runs a kind on `inputs` (NULL-ended) with options "key=value", NULL-ended. */
bk_status bk_test_make(bk_arena *arena, const char *kind, const char *const *inputs,
                       const char *const *options, bk_dataset *out);
#define BK_TEXTS(...)     \
    (const char *const[]) \
    {                     \
        __VA_ARGS__, NULL \
    }
#define BK_NONE           \
    (const char *const[]) \
    {                     \
        NULL              \
    }

/* Fails unless making gives `status` and its text holds every one of `texts` (NULL-ended). */
void bk_test_refused(const char *kind, const char *const *inputs, const char *const *options,
                     bk_status status, const char *const *texts);

/* The split of this name, or a failure of the test. */
const bk_split *bk_test_split(const bk_dataset *d, const char *name);
/* Sample i as bytes (token - 1), on the arena; the length counts from the offsets. */
const char *bk_test_bytes(bk_arena *arena, const bk_dataset *d, int64_t i);
/* The same of the second text of a pair. */
const char *bk_test_bytes2(bk_arena *arena, const bk_dataset *d, int64_t i);
/* The sample with these bytes, -1 when there is none. */
int64_t bk_test_sample(bk_arena *arena, const bk_dataset *d, const char *bytes);

/* True when two data sets are the same in everything that training sees. */
bool bk_test_same_data(const bk_dataset *a, const bk_dataset *b);

#endif
