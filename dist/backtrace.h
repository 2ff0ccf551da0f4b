/* dist/backtrace.h - SIGUSR2 writes what the main thread does to a file.  Not collective. */
#ifndef BK_DIST_BACKTRACE_H
#define BK_DIST_BACKTRACE_H

#include <stdbool.h>

/* The main thread.  Appends to `path`; `where` writes a line that says where the work stands, with
 * async-signal-safe calls only. */
void bk_backtrace_install(const char *path, void (*where)(int file));
/* Any thread but the main one: has the main thread write; false when it did not within two seconds.
 */
bool bk_backtrace_ask(void);

#endif
