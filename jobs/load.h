/* jobs/load.h - from the command line to a configuration, and the small texts that commands share.
 */
#ifndef BK_JOBS_LOAD_H
#define BK_JOBS_LOAD_H

#include "jobs/command.h"
#include "jobs/job.h"

/* Collective.  Reads CONFIG.yaml (the only positional argument) on rank 0, broadcasts the text,
 * overlays key=value. */
BK_CHECKED bk_status bk_load_config(bk_context *context, bk_config **out);
/* The same for a text that is at hand: a checkpoint's resolved configuration. */
BK_CHECKED bk_status bk_load_config_text(bk_context *context, const char *name, const char *text,
                                         bk_config **out);
/* Not collective, the same on all ranks.  checkpoint.verify of the command line alone, a
 * bk_checkpoint_check, before there is a configuration.  BK_USAGE. */
BK_CHECKED bk_status bk_load_verify(bk_context *context, int *out);

/* Collective.  What `train --dry-run` prints on stdout. */
BK_CHECKED bk_status bk_dry_run(bk_job *job);

/* One line on stdout: samples, majority, ladder of shortcut accuracies. */
void bk_split_print(const bk_split *split);

/* ", between depth 0 (0.322) and 1 (0.676) of the ladder" or ", majority 0.158" or "". */
const char *bk_ladder_text(const bk_split *split, double accuracy, char text[128]);

#endif
