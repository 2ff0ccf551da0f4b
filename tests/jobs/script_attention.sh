#!/bin/bash
# test: labels=unit,mpi timeout=120
# jobs/attention trains each kind with each seed and ends with a table, whatever stands in its keys.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

mkdir -p jobs/configs runs/data
cp "$BIRKHOFF_SOURCE"/jobs/{attention,table} jobs
printf '#!/bin/sh\n' >jobs/prepare
chmod +x jobs/prepare
cat >jobs/configs/small.yaml <<'Y'
run: {dir: ../../runs/small, seed: 1, steps: 3}
data: {train: ../../runs/data/small.h5, batch: 4}
model: {layers: 1, width: 8, heads: 1, ffn: 8}
schedule: {kind: drop}
parallel: {lanes: 2, threads: 1}
Y
listops_data runs/data/small.h5 20 10

RANKS=1 jobs/attention small 'softmax sinkformer,half_steps=3' 1 2 'schedule.at=1 2' >table 2>err || fail "attention: $(cat err)"
for kind in softmax sinkformer-half_steps=3; do
    for seed in 1 2; do
        [ -f "runs/small/$kind-schedule.at=1-2-seed$seed/checkpoints/latest" ] || fail "no run of $kind, seed $seed: $(ls runs/small)"
    done
done
grep -qE '^softmax +[0-9]+ +[0-9]+ +0\.[0-9]+' table || fail "no row of softmax: $(cat table)"
grep -qE '^sinkformer,half_steps 3 +[0-9]+ +[0-9]+ +0\.[0-9]+' table || fail "no row of sinkformer: $(cat table)"
finish
