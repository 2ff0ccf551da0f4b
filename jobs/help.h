/* jobs/help.h - help pages on stdout. */
#ifndef BK_JOBS_HELP_H
#define BK_JOBS_HELP_H

#include "jobs/command.h"

/* All commands (NULL) or one. */
void bk_help_print(const bk_command *command);

#endif
