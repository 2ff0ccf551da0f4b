#!/bin/bash
# test: labels=unit,mpi timeout=600
# Requests to stop, wherever they come in: 75 on all ranks, a checkpoint, and a restart that ends like the run that was
# never stopped.  The lock.  Losses that are not finite.  Saves that fail.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

cat >run.yaml <<'Y'
run: {seed: 3, steps: 1000000}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 1, width: 16, heads: 2, ffn: 32, dropout: 0.1}
optim: {lr: 0.01}
schedule: {kind: constant}
parallel: {lanes: 2, threads: 1}
checkpoint: {every: 0}
log: {interval: 1}
Y
listops_data listops.h5
has_line() { grep -q "$2" "$1" 2>/dev/null; }
step_of() { newest "$1" | sed -E 's/step-0*([0-9]+)/\1/'; }

# stopped RUN [STATUS]: the job ended with 75 (or STATUS) after a committed checkpoint, and said so.
stopped() {
    ended
    [ "$status" -eq "${2:-75}" ] || fail "$1 ended with $status, not ${2:-75}: $(tail -n 12 job.out)"
    says job.out 'birkhoff: stopped after step'
    expect 0 1 eval "$1" # which checks every byte first
}

# goes_on RUN KEY...: two more steps, and the same in one piece.
goes_on() {
    local run=$1 last
    shift
    last=$(($(step_of "$run") + 2))
    expect 0 2 train run.yaml run.dir="$run" run.steps=$last "$@"
    rm -rf whole
    expect 0 1 train run.yaml run.dir=whole run.steps=$last "$@"
    same_run "$run" whole
}

# ---- to mpirun, to one rank, to all; TERM, USR1, INT ----
for how in 'TERM mpirun' 'USR1 mpirun' 'INT mpirun' 'USR1 one' 'TERM one' 'INT all'; do
    run=stop-${how// /-}
    case $how in
    'TERM mpirun' | 'INT mpirun') export OMPI_MCA_odls_base_sigkill_timeout=5 ;; # seconds to save in
    *) unset OMPI_MCA_odls_base_sigkill_timeout ;;
    esac
    start 2 train run.yaml run.dir="$run"
    wait_until has_line "$run/metrics.jsonl" '"step": 3'
    # shellcheck disable=SC2046
    case $how in
    *mpirun) kill "-${how% *}" "$job" ;;
    *one) kill "-${how% *}" $(children "$job" | awk '{ print $2 }') ;;
    *all) kill "-${how% *}" $(children "$job") ;;
    esac
    case $how in
    'TERM mpirun' | 'INT mpirun') stopped "$run" 1 ;; # mpirun hands on TERM, and ends with a status of its own
    *) stopped "$run" ;;
    esac
    says job.out 'on a signal'
done
goes_on stop-USR1-one

# ---- in the middle of a save, beside the training or not; asked twice ----
is_saving() { compgen -G "$run/checkpoints/.tmp-*/shard-00001.h5" >/dev/null; }
for how in 'USR1 true' 'USR1 false' 'USR1-twice true'; do
    run=stop-saving-${how// /-}
    BIRKHOFF_FAULT=save.sync:1:sleep=2 start 2 train run.yaml run.dir="$run" checkpoint.every=3 checkpoint.writers=2 checkpoint.async="${how#* }"
    wait_until is_saving
    kill -USR1 "$job"
    [[ $how != *twice* ]] || kill -USR1 "$job"
    stopped "$run"
    says job.out 'birkhoff: saved step 3 '
    [ -z "$(find "$run/checkpoints" -name '.*-*')" ] || fail "$run: left behind: $(ls -A "$run/checkpoints")"
    goes_on "$run" checkpoint.every=3
done

# ---- a reader that does not read: progress lines are left out, and the run ends ----
mkfifo silent
sleep 300 <silent &
reader=$!
timeout 120 "$BIRKHOFF" train run.yaml run.dir=unread run.steps=2000 >out 2>silent </dev/null ||
    fail "a reader that does not read held up the training: status $?"
kill "$reader"
[ "$(step_of unread)" -eq 2000 ] || fail "not trained to the end: step $(step_of unread)"

# ---- a request that comes before the program can hear it is lost, and harmless ----
start 2 train run.yaml run.dir=early
# shellcheck disable=SC2046
kill -USR1 $(children "$job")
heard_or_on() { ! kill -0 "$job" 2>/dev/null || has_line early/metrics.jsonl '"step": 3'; }
wait_until heard_or_on
kill -USR1 "$job" 2>/dev/null
stopped early

# ---- during an evaluation: it is cut short, and made up for after the restart ----
rm -rf whole
slow='log.eval_interval=2 data.eval=long.h5'
listops_data long.h5 20 20000
# shellcheck disable=SC2086
{
    start 2 train run.yaml run.dir=evaluating $slow
    wait_until has_line evaluating/metrics.jsonl '"step": 2,'
    kill -USR1 "$(children "$job" | awk '{ print $1 }')"
    stopped evaluating
    [ "$(step_of evaluating)" -eq 2 ] || fail "an evaluation was not cut short: step $(step_of evaluating)"
    grep -q validation evaluating/metrics.jsonl && fail 'a part of an evaluation was written'
    expect 0 2 train run.yaml run.dir=evaluating run.steps=3 $slow log.eval_batches=3
    expect 0 2 train run.yaml run.dir=whole run.steps=3 $slow log.eval_batches=3
    same_run evaluating whole
}

# ---- during a probe: it is left out, the evaluation is not ----
expect 0 1 data listops wide.h5 preset=medium min_length=500 max_length=700 train=20 validation=80 test=20
start 2 train run.yaml run.dir=probing data.train=wide.h5 log.eval_interval=2 log.eval_batches=1 log.probe=80
is_probing() { grep -q probe probing/stall/rank-0.state; } 2>/dev/null
wait_until is_probing
kill -USR1 "$(children "$job" | awk '{ print $2 }')"
stopped probing
[ "$(step_of probing)" -eq 2 ] || fail "a probe was not cut short: step $(step_of probing)"
grep '"split": "validation"' probing/metrics.jsonl >line
says line '"step": 2, "split": "validation", "loss": '
grep -q probe line && fail "a part of a probe was written: $(cat line)"
expect 0 1 train run.yaml run.dir=probing data.train=wide.h5 run.steps=3
[ "$(grep -c '"step": 2, "split": "validation"' probing/metrics.jsonl)" -eq 1 ] || fail 'an evaluation was made twice'

# ---- the time limit ----
expect 75 2 train run.yaml run.dir=limit run.time_limit=1 run.stop_margin=0.5
says err 'on the time limit'
goes_on limit
expect 75 1 train run.yaml run.dir=tight run.time_limit=1
says err 'warning: run.time_limit=1 is not above run.stop_margin=60: the run stops after one step'
[ "$(step_of tight)" -eq 1 ] || fail "not one step: $(step_of tight)"

# ---- the end of the Slurm job, asked for when there is no limit of one's own ----
mkdir bin
printf '#!/bin/sh\ncat "%s"\n' "$work/left" >bin/squeue
chmod +x bin/squeue
in_job() { SLURM_JOB_ID=17 PATH=$work/bin:$PATH "$@"; }
echo 1:00 >left
in_job expect 75 2 train run.yaml run.dir=slurm run.stop_margin=59
says err 'Slurm ends this job in 60 s'
says err 'on the time limit'
goes_on slurm
in_job expect 75 1 train run.yaml run.dir=slurm-tight
says err 'warning: the time left=60 is not above run.stop_margin=60: the run stops after one step'
in_job expect 75 1 train run.yaml run.dir=slurm-own run.time_limit=1 run.stop_margin=0.5
grep -q 'Slurm ends this job' err && fail "run.time_limit does not win: $(cat err)"
for left in UNLIMITED INVALID; do
    echo $left >left
    in_job expect 0 1 train run.yaml run.dir=slurm-$left run.steps=2
    [ "$(grep -c 'warning: Slurm does not say when it ends this job' err)" -eq $((${#left} == 7)) ] ||
        fail "the warning with $left: $(cat err)"
done

# ---- two jobs in one directory; a lock whose owner was killed ----
start 2 train run.yaml run.dir=locked checkpoint.every=2
wait_until has_line locked/checkpoints/latest step
refuses 2 1 'another job is running in this directory' train run.yaml run.dir=locked
refuses 2 3 'another job is running in this directory' train run.yaml run.dir=locked
kill -0 "$job" || fail 'the first job ended'
kill_job
refuses 2 1 'run.resume=fresh, but there are checkpoints' train run.yaml run.dir=locked run.resume=fresh
goes_on locked

# ---- a loss that is not finite: nothing of it is applied, the last good state is kept ----
expect 0 1 train run.yaml run.dir=good run.steps=3
for ranks in 1 2; do
    rm -rf bad
    cp -r good bad
    expect 4 $ranks train run.yaml run.dir=bad optim.lr=1e6 run.steps=40
    says err 'loss or gradient is not finite at step'
    says err 'warning: optim.lr was 0.01 when this run began and is 1000000 now'
    expect 0 1 eval bad
    [ "$(step_of bad)" -gt 3 ] || fail 'the steps before were not kept'
done
expect 4 1 train run.yaml run.dir=bad run.steps=40
expect 4 1 train run.yaml run.dir=bad run.steps=40 optim.skip_nonfinite=2
[ "$(grep -c 'skipped: ' err)" -eq 2 ] || fail "not two steps skipped: $(cat err)"
# What led to it: the step, its samples, the configuration.
report=$(find bad/repro -name 'step-*.json' | sort | tail -n 1)
[ -f "$report" ] || fail "no report: $(ls bad)"
says "$report" "\"step\": $((10#$(basename "$report" .json | cut -d- -f2)))"
says "$report" '"data_digest": "'
samples=$(sed -nE 's/.*"samples": \[([^]]*)\].*/\1/p' "$report" | tr ',' '\n' | grep -c '[0-9]')
[ "$samples" -eq "$(sed -nE 's/^data:.*batch: ([0-9]+).*/\1/p' run.yaml)" ] || fail "$samples samples in $report"

# ---- steps whose gradient is far off are left out: the same ones on any ranks and after a resume ----
spikes() { # RUN RANKS ARGUMENTS...
    expect 0 "$2" train run.yaml run.dir="$1" optim.spike_zscore=0.1 run.steps=150 checkpoint.every=50 "${@:3}"
}
spikes spiky.1 1
[ "$(grep -c 'standard deviations above' err)" -gt 3 ] || fail "no step was left out: $(cat err)"
# The newest reports are kept.
skipped=$(sed -nE 's/.*warning: step ([0-9]+) skipped: .*/\1/p' err)
[ "$(wc -w <<<"$skipped")" -gt 8 ] || fail "not more than 8 steps were left out: $(cat err)"
[ "$(find spiky.1/repro -type f -printf '%f\n' | sort)" = "$(tail -n 8 <<<"$skipped" | xargs printf 'step-%08d.json\n')" ] ||
    fail "other reports than of the last 8 of $skipped: $(ls spiky.1/repro)"
# Set back, the run writes a report that stays: those of steps to come go first.
cp -r spiky.1 back
rm -rf back/checkpoints/step-00000100 back/checkpoints/step-00000150
next=$(awk '$1 > 50 { print; exit }' <<<"$skipped")
expect 0 1 train run.yaml run.dir=back optim.spike_zscore=0.1 run.steps="$next"
report=$(printf 'step-%08d.json' "$next")
[ -f "back/repro/$report" ] && [ ! -f "spiky.1/repro/$report" ] || fail "no report of step $next: $(ls back/repro spiky.1/repro)"
[ "$(find back/repro -type f | wc -l)" -eq 8 ] || fail "not 8 reports: $(ls back/repro)"
spikes spiky.2 2
BIRKHOFF_FAULT='step.forward:*:kill9:82' birkhoff 2 train run.yaml run.dir=spiky.3 optim.spike_zscore=0.1 run.steps=150 \
    checkpoint.every=50 checkpoint.async=false
[ "$(step_of spiky.3)" -eq 50 ] || fail "not killed behind step 50: $(step_of spiky.3)"
spikes spiky.3 1
for run in spiky.2 spiky.3; do
    [ "$(payload $run)" = "$(payload spiky.1)" ] || fail "$run ends otherwise than spiky.1"
done

# ---- a disk that takes no more: a save in between may fail, the last one may not ----
full() { # no file may grow above 512 KiB; the checkpoint would have 1.2 MB
    (
        trap '' XFSZ
        ulimit -f 512
        export PMIX_MCA_gds=hash # else Open MPI itself needs larger files
        exec "$BIRKHOFF" train run.yaml run.dir=full model.layers=2 model.width=64 model.ffn=256 "$@" >out 2>err </dev/null
    )
    status=$?
}
full run.steps=7 checkpoint.every=2 log.interval=100 checkpoint.async_busy=wait
[ "$status" -eq 70 ] || fail "status $status, not 70, after three saves that failed"
[ "$(grep -c 'warning: the checkpoint of step' err)" -eq 2 ] || fail "not two warnings: $(cat err)"
says err 'birkhoff: error: the checkpoint of step 6 was not saved'
says err 'File too large'
full run.steps=2 log.interval=100
[ "$status" -eq 70 ] || fail "status $status, not 70, without the last save"
[ -z "$(ls full/checkpoints)" ] || fail "left behind: $(ls -a full/checkpoints)"
finish
