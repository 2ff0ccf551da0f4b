/* io/program.h - running another program, never through a shell. */
#ifndef BK_IO_PROGRAM_H
#define BK_IO_PROGRAM_H

#include "core/arena.h"

/* Whether PATH has it. */
bool bk_program_found(const char *name);

/* Not collective.  Runs argv (NULL-ended, the program's name first, looked up in PATH) in
 * `directory` and waits; its output goes to the file `log` there, its input is empty.  BK_FAULT
 * when it cannot be started or does not end in 0, with the last line that it wrote. */
BK_CHECKED bk_status bk_program_run(const char *directory, const char *const *argv,
                                    const char *log);

#endif
