/* jobs/command.h - what a command is.  One command = one file jobs/<name>.c and one line in
 * jobs/commands.def. */
#ifndef BK_JOBS_COMMAND_H
#define BK_JOBS_COMMAND_H

#include "core/arena.h"

/* One key=value argument. */
typedef struct bk_override {
    const char *path, *text;
    bool used; /* for commands that read them one by one */
} bk_override;

typedef struct bk_context {
    bk_arena *arena; /* run arena */
    int argc;        /* positional arguments behind the command */
    const char **argv;
    int overrides;
    bk_override *override;
    bool quiet, json, dry_run, help, list;
    const char *in, *out; /* --in FILE, --out FILE */
} bk_context;

typedef struct bk_command {
    const char *name, *summary;
    /* "train CONFIG.yaml [--dry-run] [key=value ...]".  It is the rule, too: options and key=value
     * that it does not name are refused, --help among them (else --help prints this text). */
    const char *usage;
    const char *help;         /* text under the usage */
    void (*print_keys)(void); /* the keys, under the text; may be NULL */
    bool local;               /* needs no MPI: every rank could do it, rank 0 alone prints */
    bool stops; /* looks at the requests to stop (dist/signal.h); a signal ends the others */
    /* Collective.  All ranks return the same status. */
    bk_status (*run)(bk_context *context);
} bk_command;

extern const bk_command *const bk_commands[]; /* ended by NULL */

#endif
