#!/bin/bash
# test: labels=slurm,slow timeout=800
# A job of two nodes under a real Slurm gives way to one of a partition with higher priority: it stops within the grace
# time, goes back into the queue, and ends as one that nothing came between.  Slurm sends TERM to the ranks of srun, or
# the signal that the job asked for to the script, which hands it to mpirun.
. "$BIRKHOFF_SOURCE/tests/slurm/jobs.inc" || exit 1
lab_up 2
listops_data listops.h5

preempt() {
    wait_for has_line "$run_of_job/metrics.jsonl" '"step": 700,'
    gives_way 1 && ends_like_whole
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
