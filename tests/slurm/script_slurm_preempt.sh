#!/bin/bash
# test: labels=slurm,slow timeout=800
# A job of two nodes under a real Slurm gives way to one of a partition with higher priority: it stops within the grace
# time, goes back into the queue, and ends as one that nothing came between.  Slurm sends TERM to the ranks of srun, or
# the signal that the job asked for to the script, which hands it to mpirun.
. "$BIRKHOFF_SOURCE/tests/slurm/jobs.inc" || exit 1
lab_up 2
listops_data listops.h5

preempt() {
    local urgent
    wait_for has_line "$run_of_job/metrics.jsonl" '"step": 700,'
    urgent=$(sbatch --parsable -p urgent --exclusive -N2 -t 1 --output=/dev/null --wrap 'sleep 2')
    wait_for is_requeued 1 || return
    says "$run_of_job.log" 'on a signal'
    grep -q 'DUE TO PREEMPTION' "$run_of_job.log" && fail "not stopped within the grace time: $(tail -n 20 "$run_of_job.log")"
    ends_like_whole
    [ "$(id=$urgent field JobState)" = COMPLETED ] || fail "the urgent job did not run: $(id=$urgent field JobState)"
}

configure 's/^SlurmctldParameters=preempt_send_user_signal/# &/'
set_steps 1000000
RANKS=1 submit preempt-srun nodes.sbatch -t 10 -N2
preempt

configure 's/^# \(SlurmctldParameters=preempt_send_user_signal\)/\1/; s/^# RequeueExit.*/RequeueExit=75/'
set_steps 1000000
RANKS=1 LAUNCHER=mpirun submit preempt-mpirun nodes.sbatch -t 10 -N2 --signal=B:USR1@180
preempt
finish
