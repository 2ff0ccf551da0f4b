#!/bin/bash
# test: labels=unit,mpi timeout=600
# What train and eval print and write: dry run, resolved configuration, metrics, notes and warnings, the best
# checkpoint; and that an evaluation counts the same for every batch, rank count and way to name the run.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

mkdir -p configs data
cat >configs/run.yaml <<'Y'
run: {dir: ../runs/plain, seed: 3, steps: 6, stop_margin: 0.25}
data: {train: ../data/listops.h5, batch: 8}
model: {kind: encoder, layers: 1, width: 16, heads: 2, ffn: 32}
optim: {lr: 0.01}
parallel: {lanes: 4, threads: 1}
checkpoint: {every: 2, keep: 2, async_busy: wait}
log: {interval: 2, eval_interval: 3, eval_batches: 2}
Y
listops_data data/listops.h5

# ---- a dry run: figures, and nothing is written ----
sent() { sed -nE 's/^sent a step by rank 0 ([0-9]+) bytes in [0-9]+ messages, ([0-9]+) of.*/\1 \2/p' out; }
# Attention 16 x 16, feed-forward 16 x 32, embeddings of 16 tokens and 64 positions, a head of 10 classes: 3,642 numbers,
# in one bucket that is padded to a multiple of 64: n = 4 x 3,648 bytes.
declare -a counted
for ranks in 1 2 4; do
    expect 0 $ranks train configs/run.yaml --dry-run
    says out 'parameters            3642'
    says out 'flops a step '
    says out 'checkpoint            0.044 MB'
    read -r all reduction <<<"$(sent)"
    [ "$reduction" -eq $((2 * 4 * 3648 * (ranks - 1) / ranks)) ] || fail "$reduction bytes by the formula on $ranks ranks"
    parts=$(awk '/^  [a-z]+ +[0-9]+ bytes in/ { sum += $2 } END { print sum + 0 }' out)
    [ "$all" -eq "$parts" ] || fail "$all bytes in all, $parts in parts on $ranks ranks"
    [ $ranks -eq 1 ] && [ "$all" -eq 0 ] || [ "$all" -gt "$reduction" ] || fail "$all bytes counted, $reduction by the formula"
    counted[ranks]=$all
done
grep -q '^memory of rank 0 .*moments 0\.00[78]' out || fail "a quarter of the moments: $(grep memory out)"
expect 0 4 train configs/run.yaml --dry-run parallel.zero=0
grep -q '^memory of rank 0 .*moments 0\.029' out || fail "all moments: $(grep memory out)"
[ ! -e runs ] || fail 'a dry run wrote something'
for ranks in 1 2 4; do # a training counts the same bytes in every step
    expect 0 $ranks train configs/run.yaml run.dir=counts$ranks
    [ "$(grep -c "\"bytes_sent\": ${counted[ranks]}, " counts$ranks/metrics.jsonl)" -eq 3 ] ||
        fail "${counted[ranks]} bytes in the dry run on $ranks ranks, and then: $(grep -o '"bytes_sent": [0-9]*' counts$ranks/metrics.jsonl)"
done

# ---- paths: of the file relative to the file, of the command line relative to here; what stands in config.yaml ----
expect 0 2 train configs/run.yaml
says err 'birkhoff: step 2/6  loss '
says err 'birkhoff: step 6/6  loss '
grep -q 'step 1/6' err && fail 'a line off the interval'
says err 'birkhoff: saved step 4 ('
says err ' of the ladder'
[ "$(ls runs/plain/checkpoints | tr '\n' ' ')" = 'latest step-00000004 step-00000006 ' ] ||
    fail "kept: $(ls runs/plain/checkpoints)"
expect 0 2 train configs/run.yaml run.dir=here
same_run here runs/plain
sed "s#runs/plain#again#; s#run.dir.*##" runs/plain/config.yaml >again.yaml
expect 0 1 train again.yaml
same_run again runs/plain
expect 0 1 train again/config.yaml run.steps=8
says err 'resuming from step 6'
expect 0 1 train again/config.yaml
says err 'all 8 steps are done'
expect 0 1 train again/config.yaml --quiet run.steps=9 log.tensorboard=true
[ ! -s err ] && [ ! -s out ] || fail "not quiet: $(cat err out)"
ls again/tb/* >/dev/null 2>&1 || fail 'no TensorBoard events'

# ---- metrics.jsonl: two training lines, an evaluation of two batches, one of the whole split ----
[ "$(cut -d, -f1,2 runs/plain/metrics.jsonl | tr -d ' {"' | tr '\n' ' ')" = \
    'step:2,split:train step:3,split:validation step:4,split:train step:6,split:train step:6,split:validation ' ] ||
    fail "lines: $(cut -d, -f1,2 runs/plain/metrics.jsonl)"
for key in loss cross_entropy lr grad_norm tokens_per_second seconds model_flops_utilization peak_bytes; do
    [ "$(grep -c "train.*\"$key\": [0-9]" runs/plain/metrics.jsonl)" -eq 3 ] || fail "no $key on training lines"
done
says runs/plain/metrics.jsonl '"rows": 16'
says runs/plain/metrics.jsonl '"rows": 40'

# ---- warnings ----
cat >student.yaml <<'Y'
run: {dir: student, steps: 2}
data: {train: data/listops.h5, batch: 8}
model: {kind: encoder, layers: 1, width: 8, heads: 2, ffn: 16, moe: {experts: 4, k: 2, every: 1, router: {kind: topk}}}
distill: {teacher: runs/plain}
loss: [{kind: sinkd, weight: 0.5}, {kind: sinkd, weight: 0.5, epsilon: 0.2}]
parallel: {threads: 1}
Y
expect 0 2 train student.yaml
says err 'warning: sinkd is the only loss'
says err 'teacher of 3642 parameters'
says student/metrics.jsonl '"sinkd.1": '
says student/metrics.jsonl '"row_violation.1": '
for key in load_max_over_mean load_cv token_entropy dead router_iterations ot_steps; do
    says student/metrics.jsonl "\"$key\": "
done
cp -r runs/plain runs/longer
expect 0 1 train configs/run.yaml run.dir=runs/longer run.steps=10
expect 0 1 train student.yaml distill.teacher=runs/longer run.steps=3
says err 'warning: distill.teacher was '
says err 'warning: the teacher is not the one this run began with'

# ---- the best checkpoint is kept and named ----
expect 0 2 train configs/run.yaml run.dir=best run.steps=12 log.eval_interval=1 checkpoint.best=min:cross_entropy
best=$(cat best/checkpoints/best)
wanted=$(sed -nE 's/.*"step": ([0-9]+), "split": "validation".*"cross_entropy": ([0-9.]+).*/\2 \1/p' best/metrics.jsonl |
    awk '!n++ || $1 < least { least = $1; step = $2 } END { printf "step-%08d", step }')
[ "$best" = "$wanted" ] || fail "best is $best, not $wanted"
[ -d "best/checkpoints/$best" ] || fail 'the best checkpoint is gone'
expect 0 1 eval "best/checkpoints/$best"

# ---- eval: the same counts for every batch, rank count and name of the run ----
counts() { sed -E 's/.*("rows": [0-9]+, "correct": [0-9]+).*/\1/' out; }
for run in runs/plain student; do
    expect 0 1 eval $run --json data.eval_split=test
    wanted=$(counts)
    [ "${wanted%%,*}" = '"rows": 20' ] || fail "not the whole split: $wanted"
    for batch in 1 7 64; do
        for ranks in 1 2 3; do
            expect 0 $ranks eval $run --json data.eval_split=test data.batch=$batch
            [ "$(counts)" = "$wanted" ] || fail "$(counts) for batch $batch on $ranks ranks of $run, not $wanted"
        done
    done
done
says out '"teacher_agreement": '
says out '"teacher_kl": '
says out '"ladder": ['
n=0
for name in runs/plain runs/plain/checkpoints runs/plain/checkpoints/step-00000006 configs/run.yaml; do
    expect 0 2 eval $name
    says out 'step              6'
    n=$((n + 1))
    grep -E '^(rows|accuracy|cross_entropy)' out >named.$n
    cmp -s named.1 named.$n || fail "another result for $name"
done
mv runs/longer away
expect 0 1 eval student
says err 'warning: evaluated without the teacher: there is no run or checkpoint'
mv data/listops.h5 data/other.h5
expect 0 1 eval student data.eval=data/other.h5 # the training set is not needed
finish
