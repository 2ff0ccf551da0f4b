# shellcheck shell=bash
# jobs/slurm/common.sh - what the job scripts share: one start of a run under Slurm, and what becomes of the job
# after it.  Sourced by train.sbatch, nodes.sbatch and array.sbatch, which set RUN_DIR and end with `train "$@"`.
#
# The program finds the end of the job by itself and stops run.stop_margin seconds before it with 75; a signal that
# Slurm sends is a second line of defence.

# ---- variables (the environment of sbatch overrides them) ----
BIRKHOFF=${BIRKHOFF:-birkhoff}         # the program
LAUNCHER=${LAUNCHER:-srun}             # srun or mpirun; with mpirun submit with --signal=B:USR1@180
LAUNCHER_OPTIONS=${LAUNCHER_OPTIONS:-} # more words for it, such as --map-by slot:PE=4
MPI=${MPI:-pmix}                       # what srun --mpi is given
INTERFACE=${INTERFACE:-}               # network interface between the nodes, where they have several
RETRIES=${RETRIES:-3}                  # restarts after a failure without progress

set -u

# The number of an array means all its tasks: a task goes by a name of its own.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
say() { echo "job $job: $*"; }

# The newest committed step; -1 without.
newest_step() {
    local step
    step=$(sed -n 's/^step-0*\([0-9][0-9]*\)$/\1/p' "$RUN_DIR/checkpoints/latest" 2>/dev/null)
    echo "${step:--1}"
}

# ---- what becomes of the job ----

# over STATUS TEXT: the run has come to an end; the jobs of a chain (chain.sh) that wait for this one are cancelled.
over() {
    say "$2"
    if [ -n "${CHAIN:-}" ] && [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
        squeue -h -t PENDING -o '%i %k' | awk -v chain="$CHAIN" '$2 == chain { print $1 }' | xargs -r scancel
    fi
    exit "$1"
}

# again STATUS: the job ends with STATUS, to be run again.
again() {
    if [ -n "${CHAIN:-}" ]; then
        say 'left to the next job of the chain'
        exit "$1"
    fi
    if [ "$state" = running ] && scontrol show config | grep -Eq '^RequeueExit *=.*\<75\>'; then
        exit 75 # Slurm requeues on that
    fi
    scontrol requeue "$job" || say 'cannot requeue: submit the job again to go on, or a chain (chain.sh)'
    exit "$1"
}

# retry STATUS: runs the job again, RETRIES times without progress.  RUN/jobs/attempts holds how many these were, and
# the step at the last of them.
retry() {
    local file=$RUN_DIR/jobs/attempts count=0 step
    step=$(newest_step)
    mkdir -p "$RUN_DIR/jobs"
    if [[ $(cat "$file" 2>/dev/null) =~ ^([0-9]+)\ (-?[0-9]+)$ ]] && [ "$step" -le "${BASH_REMATCH[2]}" ]; then
        count=${BASH_REMATCH[1]}
    fi
    count=$((count + 1))
    [ "$count" -le "$RETRIES" ] ||
        over "$1" "status $1 again, and no progress since step $step in $RETRIES restarts: giving up"
    echo "$count $step" >"$file"
    say "status $1 at step $step: restart $count of $RETRIES without progress"
    again "$1"
}

# What Slurm thinks of this job: a job that was cancelled stays so, and one that it has put back in the queue by itself
# is there already.
find_state() {
    case $(scontrol -o show job "$job") in
    *' JobState=RUNNING '*) state=running ;;
    *' Reason=TimeLimit '*) state=late ;;
    '') state=unknown ;; # no answer: it may give one to the next question
    *)
        say 'ended by Slurm: not requeued from here'
        exit 143
        ;;
    esac
}

# decide STATUS: what follows from the status of the program.
decide() {
    local state
    case $1 in
    0)
        rm -f "$RUN_DIR/jobs/attempts"
        over 0 'done'
        ;;
    75)
        find_state
        say "stopped at step $(newest_step), to go on"
        again 75
        ;;
    2 | 3 | 4) over "$1" "status $1: a restart would not help" ;;
    *)
        find_state
        retry "$1"
        ;;
    esac
}

# ---- one start ----

# A request to stop that reaches this script alone is handed on; the script lives until the program has saved.
pid=
trap '[ -z "$pid" ] || kill -USR1 "$pid" 2>/dev/null' USR1 TERM

# RANKS a node, when the script sets it: a node's cores are shared out evenly.
set_launch() {
    local ranks=${RANKS:-}
    case $LAUNCHER in
    srun)
        launch=(srun "--mpi=$MPI" --kill-on-bad-exit=1)
        [ -z "$ranks" ] || launch+=("--ntasks-per-node=$ranks" "--cpus-per-task=$((SLURM_CPUS_ON_NODE / ranks))")
        ;;
    mpirun)
        # It ends a job in two waits of this many seconds, before TERM and before KILL: enough to save in, and soon over.
        launch=(mpirun --mca odls_base_sigkill_timeout 10)
        [ -z "$ranks" ] || launch+=(--map-by "ppr:$ranks:node" --bind-to none)
        ;;
    *) over 2 "LAUNCHER=$LAUNCHER is neither srun nor mpirun" ;;
    esac
    # shellcheck disable=SC2206
    launch+=($LAUNCHER_OPTIONS)
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer reads the former
    [ -z "$INTERFACE" ] || export OMPI_MCA_btl_tcp_if_include=$INTERFACE OMPI_MCA_oob_tcp_if_include=$INTERFACE
}

# train CONFIG.yaml [key=value ...]: one start of the run in RUN_DIR.  Does not return.
train() {
    local launch status
    [ $# -ge 1 ] || over 2 'usage: sbatch SCRIPT CONFIG.yaml [key=value ...]'
    set_launch
    say "start $((${SLURM_RESTART_COUNT:-0} + 1)) of $RUN_DIR on ${SLURM_JOB_NODELIST:-this node}, newest step $(newest_step)"
    # A signal that comes before the program looks for it is ignored, not deadly.
    # shellcheck disable=SC2016
    "${launch[@]}" bash -c 'trap "" USR1; exec "$0" "$@"' "$BIRKHOFF" train "$@" "run.dir=$RUN_DIR" &
    pid=$!
    wait "$pid"
    status=$?
    while [ "$status" -gt 128 ] && kill -0 "$pid" 2>/dev/null; do # the trap ended the wait, not the program
        wait "$pid"
        status=$?
    done
    decide "$status"
}
