/* birkhoff verify: re-reads every byte of a checkpoint, a run or a data set. */
#include "dist/comm.h"
#include "io/checkpoint.h"
#include "jobs/command.h"

static bk_status run(bk_context *context)
{
    bk_world *world;
    if (context->argc != 1)
        return bk_fail(BK_USAGE,
                       "verify takes one directory or file (%d given): birkhoff verify "
                       "DIR|FILE",
                       context->argc);
    BK_TRY(bk_world_open(context->arena, 1, &world));
    bk_status status = bk_verify(world->checkpoint, context->argv[0]);
    bk_world_close(world);
    return status;
}

const bk_command bk_command_verify = {
    .name = "verify",
    .summary = "re-read every byte of a checkpoint or data set against its digests",
    .usage = "verify DIR|FILE",
    .help =
        "DIR: a run directory (each of its checkpoints) or a checkpoint; FILE: a data set, or a "
        "teacher's logits.\n"
        "Prints one line a file, what is wrong with it, and \"valid\" or \"damaged\".  Under "
        "MPI the ranks share the files.\n"
        "Status: 0 valid, 3 something is wrong.\n",
    .run = run,
};
