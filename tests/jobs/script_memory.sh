#!/bin/bash
# test: labels=unit,mpi timeout=300
# What saves memory changes no bit: blocks made again in backward, lanes walked one by one, on any power of two of
# ranks, with dropout, a tied embedding and a teacher; and it does save memory.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

cat >encoder.yaml <<'Y'
run: {seed: 3, steps: 6}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 2, width: 16, heads: 2, ffn: 32, dropout: 0.1}
optim: {lr: 0.01}
parallel: {lanes: 8, threads: 1}
log: {interval: 1}
Y
cat >decoder.yaml <<'Y'
run: {seed: 3, steps: 4}
data: {train: text.h5, batch: 8, length: 32}
model: {kind: decoder, layers: 2, width: 16, heads: 2, dropout: 0.1}
parallel: {lanes: 4, threads: 1}
log: {interval: 1}
Y
sed 's/layers: 2/layers: 1/' encoder.yaml >student.yaml
cat >>student.yaml <<'Y'
distill: {teacher: encoder.plain}
loss: [{kind: cross_entropy, weight: 0.2}, {kind: kl, weight: 0.8}]
Y
listops_data listops.h5
head -c 6000 "$BIRKHOFF_SOURCE/LICENSE" >text.txt
expect 0 1 data lines text.txt text.h5

for name in encoder decoder student; do
    expect 0 1 train $name.yaml run.dir=$name.plain
    expect 0 1 train $name.yaml run.dir=$name.walk parallel.walk=true
    expect 0 2 train $name.yaml run.dir=$name.both parallel.walk=true model.recompute=block
    expect 0 4 train $name.yaml run.dir=$name.again model.recompute=block
    for way in walk both again; do
        same_run $name.$way $name.plain
    done
done

# activations LINE...: megabytes that a dry run names.
activations() {
    expect 0 1 train decoder.yaml --dry-run run.dir=dry data.length=512 data.batch=16 model.layers=8 "$@"
    sed -nE 's/^memory of rank 0.*activations and scratch ([0-9]+)\..*/\1/p' out
}
plain=$(activations)
[ "$(activations model.recompute=block)" -lt $((plain / 2)) ] || fail "recomputed: $(grep memory out), plain $plain"
[ "$(activations parallel.walk=true)" -lt $((plain / 2)) ] || fail "walked: $(grep memory out), plain $plain"

refuses 2 1 'does not go with model.moe' train encoder.yaml run.dir=none parallel.walk=true model.moe.every=1
sed 's/kind: kl,/kind: sinkd,/' student.yaml >sinkd.yaml
refuses 2 2 'does not go with the loss sinkd' train sinkd.yaml run.dir=none parallel.walk=true
finish
