#!/bin/bash
# test: labels=slurm,slow timeout=300
# jobs/slurm/train.sbatch under a real Slurm on two nodes (up.sh): a job that its time limit or a signal stops requeues
# itself, resumes, and ends with the parameters of a run that was never stopped.  srun and mpirun; both ways to requeue.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1
here=$BIRKHOFF_SOURCE/tests/slurm
export PATH=$PATH:/usr/sbin:/sbin
for program in sbatch srun scontrol slurmctld slurmd munged; do
    command -v $program >/dev/null || skip "$program is not installed: apt-get install slurm-wlm munge"
done
[ "$(id -u)" = 0 ] || skip 'the Slurm lab needs root'

lab=$(mktemp -d /tmp/lab.XXXXXX) # short: Unix sockets lie in it
trap 'bash "$here/down.sh" "$lab" >/dev/null 2>&1; rm -rf "$lab" "$work"' EXIT
LAB_CTLD_PORT=$((20000 + $$ % 2000 * 5)) LAB_CPUS=2 LAB_REQUEUE_EXIT=none bash "$here/up.sh" "$lab" 2 >up.out 2>&1 ||
    { cat up.out "$lab"/log/*.out; fail 'the lab did not start'; finish; }
. "$lab/env.sh"

cat >run.yaml <<'Y'
run: {seed: 3, steps: 6}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 1, width: 16, heads: 2, ffn: 32}
schedule: {kind: constant}
parallel: {lanes: 4, threads: 1}
log: {interval: 1}
Y
listops_data listops.h5

# submit RUN MINUTES [sbatch options]... -- ARGUMENTS...: the job is $id.
submit() {
    local run=$1 minutes=$2 options=()
    shift 2
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    id=$(RUN_DIR=$run sbatch --parsable -t "$minutes" -N2 --ntasks-per-node=1 --output="$PWD/$run.log" "${options[@]}" \
        "$BIRKHOFF_SOURCE/jobs/slurm/train.sbatch" run.yaml "$@")
}
field() { scontrol show job "$id" | sed -nE "s/.*\\b$1=([^ ]*).*/\\1/p"; }
wait_for() { # up to a minute and a half
    local i
    for ((i = 0; i < 300; i++)); do
        "$@" && return 0
        sleep 0.3
    done
    fail "never: $* (state $(field JobState); $(tail -n 5 ./*.log))"
    return 1
}
is_requeued() { [ "$(field JobState),$(field Reason)" = PENDING,BeginTime ]; }

# Slurm puts a requeued job off by two minutes: ten seconds are enough for it to clear up.
hastened=
is_done() {
    local restarts
    restarts=$(field Restarts)
    if is_requeued && [ "$restarts" != "$hastened" ]; then
        scontrol update JobId="$id" StartTime=now+10 TimeLimit=10
        hastened=$restarts
    fi
    [ "$(field JobState)" = COMPLETED ]
}

expect 0 1 train run.yaml run.dir=whole
for exit_status in none 75; do
    run=limit-$exit_status
    [ $exit_status = none ] || { sed -i 's/^# RequeueExit.*/RequeueExit=75/' "$lab/etc/slurm.conf" && scontrol reconfigure; }
    submit $run 1 -- # all of one minute is run.stop_margin: the first start ends after one step
    hastened=
    wait_for is_done
    says $run.log 'on the time limit'
    says $run.log 'train.sbatch: stopped at step 1: requeued'
    says $run.log 'resuming from step 1 '
    says $run.log 'train.sbatch: done'
    same_run $run whole
done

has_line() { grep -q "$2" "$1" 2>/dev/null; }
for launcher in srun mpirun; do
    run=signal-$launcher
    LAUNCHER=$launcher submit $run 10 --signal=B:USR1@180 -- run.steps=1000000 checkpoint.every=0
    wait_for has_line "$run/metrics.jsonl" '"step": 3'
    scancel --batch --signal=USR1 "$id"
    wait_for is_requeued
    says $run.log 'on a signal'
    scancel "$id"
    steps=$(($(sed -E 's/step-0*//' $run/checkpoints/latest) + 2))
    rm -rf whole
    expect 0 2 train run.yaml run.dir=$run run.steps=$steps
    expect 0 1 train run.yaml run.dir=whole run.steps=$steps
    same_run $run whole
done
finish
