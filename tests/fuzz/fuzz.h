/* tests/fuzz/fuzz.h - what the fuzz targets share.  A target is one file target_<name>.c with
 * LLVMFuzzerTestOneInput; its seeds are written by seeds.c or by the script `run`.
 *
 * The rule of all targets: an input is read, or refused with BK_USAGE or BK_INPUT and one printable
 * line.  Anything else, a fatal end included, is a finding. */
#ifndef BK_TESTS_FUZZ_FUZZ_H
#define BK_TESTS_FUZZ_FUZZ_H

#include "core/option.h"
#include "io/dataset.h"

/* libFuzzer's side of a target. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

/* "DIRECTORY/NAME" in a directory of this process in memory, which is removed at exit. */
const char *bk_fuzz_path(bk_arena *arena, const char *name);
void bk_fuzz_write(const char *path, const void *data, size_t size);

/* True when the input was read; aborts unless a refusal follows the rule. */
bool bk_fuzz_read(bk_status status);
/* Aborts with the text: the reader believed what it should not. */
_Noreturn void bk_fuzz_wrong(const char *format, ...) BK_PRINTF(1, 2);

/* Reads a whole configuration, makes its model, and checks that what is written back reads as the
 * same run. */
void bk_fuzz_configuration(bk_arena *arena, bk_value *root);

/* Aborts unless labels, tokens and splits lie in their ranges; draws samples of every split. */
void bk_fuzz_data(const bk_dataset *d);

/* Puts the right manifest_sha256 into the text of a manifest, where there is a place for it. */
void bk_fuzz_sign_manifest(char *text, size_t length);

/* Numbers from the front of an input; 0 when it is used up. */
typedef struct bk_fuzz_input {
    const uint8_t *at, *end;
} bk_fuzz_input;
uint8_t bk_fuzz_byte(bk_fuzz_input *in);
int64_t bk_fuzz_integer(bk_fuzz_input *in); /* small ones and extreme ones alike */

#endif
