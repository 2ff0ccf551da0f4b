#!/bin/bash
# test: labels=unit,mpi timeout=300
# checkpoint.partial: a run goes on with tensors that its checkpoint lacks, says which, and refuses all else that does not
# fit.  checkpoint.verify: what a start reads of the checkpoints.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

cat >run.yaml <<'Y'
run: {seed: 3, steps: 2}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 1, width: 16, heads: 2, ffn: 32}
optim: {lr: 0}
schedule: {kind: constant}
parallel: {lanes: 4, threads: 1}
log: {interval: 1}
Y
listops_data listops.h5
expect 0 1 train run.yaml run.dir=old

# again NAME STATUS RANKS TEXT KEY...: the old run goes on as NAME.
again() {
    local name=$1 wanted=$2 ranks=$3 text=$4
    shift 4
    rm -rf "$name"
    cp -r old "$name"
    expect "$wanted" "$ranks" train run.yaml run.dir="$name" run.steps=3 "$@"
    says err "$text"
}
entropy() { expect 0 1 eval "$1" && sed -n 's/^cross_entropy *//p' out; }

# Nothing is lacking: partial changes nothing.
again plain 0 1 'resuming from step 2' optim.lr=0.01
again full 0 2 'resuming from step 2' optim.lr=0.01 checkpoint.partial=true
grep -q 'not in the checkpoint' err && fail "nothing is lacking: $(cat err)"
same_run plain full

# Another layer: refused, or as in a new run; the same on any ranks.
again deeper 2 1 'model.layers was 1 when this run began and is 2 now' model.layers=2
for ranks in 1 2; do
    again deeper.$ranks 0 $ranks 'warning: model.layers was 1 when this run began and is 2 now' model.layers=2 checkpoint.partial=true
    grep 'warning: not in the checkpoint, so initialised as for a new run' err >lacking
    says lacking ' model/block1/attention/wq'
    grep -q 'block0\|embed' lacking && fail "what was there counts as lacking: $(cat lacking)"
done
same_run deeper.1 deeper.2

# Another table of the embedding, which nothing else depends on: the whole is a new run's, as no step changed anything.
rm -rf old
expect 0 1 train run.yaml run.dir=old model.positions=none
again learned 0 2 'initialised as for a new run' checkpoint.partial=true
expect 0 1 train run.yaml run.dir=new
before=$(entropy old) after=$(entropy learned) new=$(entropy new)
[ -n "$new" ] && [ "$after" = "$new" ] && [ "$before" != "$new" ] || fail "cross-entropy $after, $new of a new run, $before before"

# Another optimizer: its moments.
rm -rf old
expect 0 1 train run.yaml run.dir=old optim.kind=sgd
again kind 2 1 'optim.kind was sgd when this run began and is adamw now'
again kind 0 2 ' optim/v/block0/attention/wq' checkpoint.partial=true
grep -q 'not in the checkpoint.* model/' err && fail "parameters count as lacking: $(cat err)"

# What is there and does not fit.
again wide 3 2 'does not fit the model' model.width=24 checkpoint.partial=true
rm -rf old
expect 0 1 train run.yaml run.dir=old model.layers=2
again shallow 3 1 'model/block1/attention/wq is unexpected' checkpoint.partial=true

# A disk that cannot be read to the end: known from a digest, not from sizes.
rm -rf old
expect 0 1 train run.yaml run.dir=old checkpoint.every=1
for verify in sha256 xxh64; do
    BIRKHOFF_FAULT=load.digest:0:eio again digest 0 1 'checkpoint step-00000002 is damaged' checkpoint.verify=$verify
    says err 'resuming from step 1'
done
BIRKHOFF_FAULT=load.digest:0:eio again digest 0 1 'resuming from step 2' checkpoint.verify=size
finish
