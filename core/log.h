/* core/log.h - what the program says while it works.  Only rank 0 prints; progress and notes go to
 * stderr. */
#ifndef BK_CORE_LOG_H
#define BK_CORE_LOG_H

#include "core/status.h"

typedef enum bk_log_level { BK_LOG_QUIET, BK_LOG_NORMAL, BK_LOG_VERBOSE } bk_log_level;

/* `speaks`: this rank prints (rank 0 only).  `color`: terminal colours are wanted. */
void bk_log_setup(bk_log_level level, bool speaks, bool color);
bool bk_log_speaks(void);

/* One line each on stderr: "birkhoff: ...", "birkhoff: warning: ...", "birkhoff: error: ...".
 * Notes are silent under --quiet; warnings and errors are not. */
void bk_note(const char *format, ...) BK_PRINTF(1, 2);
void bk_warn(const char *format, ...) BK_PRINTF(1, 2);
void bk_error_line(const char *text);

/* Warns the first time `*done` is false, then sets it. */
void bk_warn_once(bool *done, const char *format, ...) BK_PRINTF(2, 3);

/* Seconds of a monotonic clock. */
double bk_seconds(void);

#endif
