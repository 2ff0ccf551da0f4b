/* jobs/arguments.h - the command line: birkhoff COMMAND [OPTIONS] [key=value ...]. */
#ifndef BK_JOBS_ARGUMENTS_H
#define BK_JOBS_ARGUMENTS_H

#include "jobs/command.h"

typedef struct bk_call {
    const bk_command *command; /* NULL with version or a help without a command */
    bk_context context;
    bool version, no_color;
} bk_call;

/* Not collective: the same on every rank.  Sorts the arguments: the first plain word is the
 * command, words of the form key=value are overrides, the other plain words positional; "--" ends
 * the options.  BK_USAGE for an unknown command or option (with the nearest one), for one that the
 * command's usage does not name, for a missing or superfluous value and for what is given twice. */
BK_CHECKED bk_status bk_arguments_parse(bk_arena *arena, int argc, char **argv, bk_call *out);

/* NULL when there is none of that name. */
const bk_command *bk_command_find(const char *name);
/* BK_USAGE that names the nearest command. */
bk_status bk_command_unknown(const char *name);

/* True when the command's usage names the word ("--json", "key=value"). */
bool bk_command_takes(const bk_command *command, const char *word);

#endif
