#!/bin/bash
# test: labels=slurm,slow timeout=800
# Under a real Slurm: the tasks of an array are stopped and requeued one by one, each in a directory of its own; a chain
# of jobs that may not be requeued ends a run, and the job that ends it cancels those behind it.
. "$BIRKHOFF_SOURCE/tests/slurm/jobs.inc" || exit 1
lab_up 2
listops_data listops.h5
set_steps 2 # and a minute that is run.stop_margin: each start makes one step, and the last one the evaluation

array=$(RUNS=many sbatch --parsable -t 1 --ntasks-per-node=1 --array=1-2 --output="$PWD/many-%a.log" \
    "$BIRKHOFF_SOURCE/jobs/slurm/array.sbatch" run.yaml)
for task in 1 2; do
    id=${array}_$task
    run_of_job=many-$task
    hastened=0
    wait_for is_done
    [ "$(field Restarts)" -eq 2 ] || fail "task $task was started anew $(field Restarts) times"
    says many-$task.log "job $id: stopped at step 1, to go on"
    expect 0 1 train run.yaml run.dir=whole-$task run.seed=$task
    same_run many/$task whole-$task
done

mapfile -t link < <(RUN_DIR=chain bash "$BIRKHOFF_SOURCE/jobs/slurm/chain.sh" 5 -t 1 --ntasks-per-node=1 \
    --output="$PWD/chain.log" "$BIRKHOFF_SOURCE/jobs/slurm/train.sbatch" run.yaml | sed 's/^job //')
id=${link[2]}
run_of_job=chain
wait_for is_done
is_cancelled() { [ "$(field JobState)" = CANCELLED ]; }
for id in "${link[@]:3}"; do wait_for is_cancelled; done
for id in "${link[@]:0:2}"; do says chain.log "job $id: left to the next job of the chain"; done
says chain.log "job ${link[2]}: done"
expect 0 1 train run.yaml run.dir=whole
same_run chain whole
finish
