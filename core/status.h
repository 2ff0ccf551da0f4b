/* core/status.h - the one status type, its text, and the two ways a function may give up.
 *
 * A user, a file or a machine caused it: return bk_fail(...).  Only our own mistake: BK_ASSERT.
 * Status values are the exit codes of the program. */
#ifndef BK_CORE_STATUS_H
#define BK_CORE_STATUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BK_CHECKED __attribute__((warn_unused_result))
/* Argument `text` is a printf format for the arguments from `first` on. */
#define BK_PRINTF(text, first) __attribute__((__format__(__printf__, text, first)))

typedef enum bk_status {
    BK_OK = 0,
    BK_USAGE = 2,     /* wrong usage or configuration; nothing was started or written */
    BK_INPUT = 3,     /* a data set, checkpoint or file is missing, damaged or of another shape */
    BK_NONFINITE = 4, /* loss or gradient not finite */
    BK_FAULT = 70,    /* a fault inside Birkhoff, MPI or the machine */
    BK_STOPPED = 75,  /* stopped on request after a checkpoint was committed */
    BK_STALLED = 76,  /* a rank stalled */
} bk_status;

/* Control characters of a text become '?': what a file holds must neither break the line of a
 * message nor steer a terminal. */
void bk_plain_text(char *text);
/* The same for a text of many lines, whose line ends and tabs stay. */
void bk_plain_lines(char *text);

/* Records the text of a failure for this thread, made plain, and returns `status`.
 * The text reads "<what> (<where>): <what to do>". */
bk_status bk_fail(bk_status status, const char *format, ...) BK_PRINTF(2, 3);

/* Adds one line of context ("while reading runs/a/shard-00000.h5") to the trail of the current
 * failure and returns `status`.  Does nothing when status is BK_OK. */
bk_status bk_within(bk_status status, const char *format, ...) BK_PRINTF(2, 3);

/* The text of this thread's last failure; "" when there was none.  Valid until the next bk_fail. */
const char *bk_status_text(void);

/* The context lines added by bk_within, innermost first, separated by newlines; "" when there are
 * none. */
const char *bk_status_trail(void);

/* Replaces the text (agreement hands the worst rank's text to all ranks) and clears the trail. */
void bk_status_set_text(const char *text);

/* Prints the text and the trail to stderr and aborts the job through the hook set by dist (plain
 * abort without). For broken MPI and exhausted memory: states in which no rank can go on. */
_Noreturn void bk_fatal(const char *format, ...) BK_PRINTF(1, 2);

/* What bk_fatal and BK_ASSERT call at the end; dist sets it to MPI_Abort(world, 70). */
void bk_set_abort(void (*abort_job)(int exit_code));

_Noreturn void bk_assert_failed(const char *file, int line, const char *condition,
                                const char *format, ...) BK_PRINTF(4, 5);

/* Our own mistakes: wrong shapes, broken invariants.  Always on. */
#define BK_ASSERT(condition, ...)                                          \
    do {                                                                   \
        if (!(condition))                                                  \
            bk_assert_failed(__FILE__, __LINE__, #condition, __VA_ARGS__); \
    } while (0)

#define BK_TRY(call)                    \
    do {                                \
        bk_status try_status_ = (call); \
        if (try_status_ != BK_OK)       \
            return try_status_;         \
    } while (0)

#endif
