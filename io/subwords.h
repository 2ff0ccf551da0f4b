/* io/subwords.h - subwords instead of bytes, by the programs spm_train and spm_encode of
 * SentencePiece (Kudo and Richardson 2018, arXiv 1808.06226; Debian: sentencepiece).
 *
 * Unigram pieces with byte fallback: symbol 0 is padding, 1 never occurs, 2 + b is byte b, learned
 * pieces follow.  No text is normalised; bytes that are no UTF-8 become U+FFFD.  Line ends and zero
 * bytes separate what is encoded and stay as bytes.  The model is learned from the training split
 * alone and kept in the data set, so that other files can be encoded with it. */
#ifndef BK_IO_SUBWORDS_H
#define BK_IO_SUBWORDS_H

#include "core/option.h"
#include "io/dataset.h"

typedef struct bk_subword_config {
    int tokens;             /* BK_TOKENS_* */
    const char *vocabulary; /* a size to learn, or a data set that has subwords */
} bk_subword_config;

enum { BK_TOKENS_BYTES, BK_TOKENS_SUBWORDS };

#define BK_SUBWORD_VOCABULARY "8000"

/* Rows for the table of a kind that makes texts of bytes; `member_` is its bk_subword_config. */
#define BK_SUBWORD_OPTIONS(type_, member_)                                                        \
    {.name = "tokens",                                                                            \
     .type = BK_OPT_CHOICE,                                                                       \
     .offset = offsetof(type_, member_.tokens),                                                   \
     .text = "bytes|subwords",                                                                    \
     .help = "symbols: bytes + 1, or pieces learned from the training split (sentencepiece)"},    \
    {                                                                                             \
        .name = "vocabulary", .type = BK_OPT_TEXT, .offset = offsetof(type_, member_.vocabulary), \
        .text = BK_SUBWORD_VOCABULARY,                                                            \
        .help = "subwords to learn (300 to 1000000), or a data set whose subwords to use"         \
    }

/* The first of the programs that PATH does not have; NULL: all are there. */
const char *bk_subwords_missing(void);

/* Before the work.  BK_USAGE when vocabulary is no size and no file, is given for bytes, or when
 * the programs are not in PATH. */
BK_CHECKED bk_status bk_subwords_check(const bk_subword_config *c);

/* Not collective.  Puts subwords in the place of the bytes (+ 1) of a data set that has its splits;
 * does nothing for bytes.  BK_INPUT when the texts are too few for the vocabulary, BK_FAULT when a
 * program fails otherwise. */
BK_CHECKED bk_status bk_subwords_apply(bk_arena *arena, const bk_subword_config *c, bk_dataset *d);

#endif
