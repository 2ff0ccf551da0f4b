#!/bin/bash
# test: labels=slurm,slow timeout=800
# A job of two nodes under a real Slurm reaches its time limit twice: the program finds the limit by itself, stops in
# time, the job script requeues the job, and the run ends as one that nothing came between.  srun and mpirun; both ways
# to requeue.
. "$BIRKHOFF_SOURCE/tests/slurm/jobs.inc" || exit 1
lab_up 2
listops_data listops.h5

for launcher in srun mpirun; do
    [ $launcher = srun ] || configure 's/^# RequeueExit.*/RequeueExit=75/'
    set_steps 1000000
    sed -i 's/seed: 3/stop_margin: 105, &/' run.yaml # of two minutes; the signal comes in the second one
    RANKS=1 LAUNCHER=$launcher submit limit-$launcher nodes.sbatch -t 2 -N2 --signal=B:USR1@1
    wait_for was_requeued 1
    wait_for was_requeued 2
    [ "$(grep -c 'on the time limit' limit-$launcher.log)" -eq 2 ] || fail "not stopped twice: $(tail -n 20 limit-$launcher.log)"
    says limit-$launcher.log 'birkhoff: Slurm ends this job in'
    ends_like_whole
done
finish
