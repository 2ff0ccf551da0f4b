/* tests/support/checkpoint.h - a small run whose tensors are functions of their index, saved and
 * read by any number of ranks. */
#ifndef BK_TESTS_SUPPORT_CHECKPOINT_H
#define BK_TESTS_SUPPORT_CHECKPOINT_H

#include "io/checkpoint.h"

enum { BK_TEST_TENSORS = 9 };

/* The pieces that rank `rank` of `size` owns: sharded tensors in contiguous parts of about equal
 * length, replicated ones by rank 0.  Values belong to `version`.  list[BK_TEST_TENSORS]. */
int64_t bk_test_pieces(bk_arena *arena, int rank, int size, int version, bk_piece *list);
/* Pieces for reading, data set to -1: overlapping parts of the sharded tensors, the others whole.
 */
int64_t bk_test_wishes(bk_arena *arena, int rank, int size, bk_piece *list);
/* Fails unless every element is that of `version`. */
void bk_test_check_pieces(const bk_piece *list, int64_t count, int version);

/* A state of step `step` and options: `writers`, keep 3. */
bk_run_state bk_test_state(int64_t step);
bk_save_options bk_test_options(int writers);

/* Collective over comm; fails unless it is saved.  The payload digest. */
const char *bk_test_save(const bk_comm *comm, bk_arena *arena, const char *directory, int64_t step,
                         int version, const bk_save_options *options);
/* Collective over comm; fails unless the newest checkpoint is of `step` and `version`. */
void bk_test_check_newest(const bk_comm *comm, const char *directory, int64_t step, int version);

/* Not collective.  payload_sha256 from nothing but the shards of a checkpoint directory, by the
 * library itself: pieces are put together by their attributes. */
void bk_test_payload(const char *checkpoint, char out[65]);

#endif
