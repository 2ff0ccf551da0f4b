/* birkhoff: main.  Signals, command line, MPI, the command, one error line, the exit status. */
#include "core/fault.h"
#include "core/log.h"
#include "dist/comm.h"
#include "dist/signal.h"
#include "dist/topology.h"
#include "io/hdf5.h"
#include "jobs/arguments.h"
#include "jobs/help.h"
#include "jobs/start.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* mpirun makes isatty true everywhere, so a width is asked for too. */
static bool wants_color(const bk_call *call)
{
    struct winsize size = {0};
    const char *no_color = getenv("NO_COLOR");
    if (call->no_color || (no_color && *no_color))
        return false;
    return isatty(STDERR_FILENO) && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
}

static void setup_log(const bk_call *call, int rank)
{
    bk_log_setup(call->context.quiet ? BK_LOG_QUIET : BK_LOG_NORMAL, rank == 0, wants_color(call));
}

/* A page instead of the command: --version, --help where the command does not read it itself. */
static bool print_page(const bk_call *call)
{
    const bk_context *c = &call->context;
    bool own_help = call->command && c->argc > 0 && bk_command_takes(call->command, "--help");
    if (!call->version && (!c->help || own_help))
        return false;
    if (!bk_log_speaks())
        return true;
    if (call->version)
        printf("birkhoff %s\n", BIRKHOFF_VERSION);
    else
        bk_help_print(call->command);
    return true;
}

/* Without MPI only the launcher's rank 0 does it, so that nothing is printed twice. */
static bk_status run_local(bk_call *call)
{
    return bk_log_speaks() ? call->command->run(&call->context) : BK_OK;
}

static bk_status run_parallel(bk_call *call, int *argc, char ***argv)
{
    BK_TRY(bk_mpi_start(argc, argv));
    setup_log(call, bk_mpi_rank());
    BK_TRY(bk_faults_read(bk_mpi_rank()));
    bk_h5_start();
    return call->command->run(&call->context);
}

static bk_status run_command(bk_call *call, int *argc, char ***argv)
{
    if (!call->command->stops)
        bk_signals_restore();
    return call->command->local ? run_local(call) : run_parallel(call, argc, argv);
}

/* Results that did not reach their reader are a failure. */
static bk_status flush_results(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return BK_OK;
    return bk_fail(BK_FAULT, "the results cannot be written (standard output): check the disk");
}

static void report(bk_status status)
{
    if (status == BK_STOPPED)
        bk_note("%s", bk_status_text());
    else if (status != BK_OK)
        bk_error_line(bk_status_text());
}

/* A launcher ends the job when one rank ends badly, perhaps before rank 0 has said why.  All ranks
 * refuse the same words, so all of them can meet in bk_mpi_stop first. */
static void leave_together(int *argc, char ***argv)
{
    if (bk_launch_size() > 1 && bk_mpi_start(argc, argv) != BK_OK)
        bk_warn("%s", bk_status_text());
}

int main(int argc, char **argv)
{
    bk_start_again_if_needed(argv);
    bk_signals_install();
    bk_arena *arena = bk_arena_new("run");
    bk_call call;
    bk_status parsed = bk_arguments_parse(arena, argc, argv, &call), status = parsed;
    setup_log(&call, bk_launch_rank());
    if (status == BK_OK && !print_page(&call))
        status = run_command(&call, &argc, &argv);
    bk_status flushed = flush_results();
    status = status != BK_OK ? status : flushed;
    report(status);
    if (parsed != BK_OK)
        leave_together(&argc, &argv);
    bk_mpi_stop();
    bk_arena_free(arena);
    return (int)status;
}
