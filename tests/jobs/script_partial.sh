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

# near A B: cross-entropies to three digits.
near() { awk -v a="$1" -v b="$2" 'BEGIN { d = (a - b) / b; exit !(b > 0 && d * d < 1e-6) }'; }

# first_step NAME KEY...: what a new run gives after its first step.
first_step() {
    expect 0 1 train run.yaml run.dir="$1" data.train=one.h5 run.steps=1 "${@:2}" && entropy "$1"
}

# late NAME KEY...: the same from the old run's tensors, at step 1501; then on, in one piece and in two.
late() {
    local name=$1
    shift
    rm -rf "$name" "$name.whole"
    cp -r old "$name"
    cp -r old "$name.whole"
    expect 0 2 train run.yaml run.dir="$name" data.train=one.h5 run.steps=1501 checkpoint.partial=true "$@"
    cp err "$name.err"
    after=$(entropy "$name")
    expect 0 1 train run.yaml run.dir="$name" data.train=one.h5 run.steps=1503 "$@"
    expect 0 1 train run.yaml run.dir="$name.whole" data.train=one.h5 run.steps=1503 checkpoint.partial=true "$@"
    [ -n "$(payload "$name")" ] && [ "$(payload "$name")" = "$(payload "$name.whole")" ] || fail "$name: other moments after a resume"
}

# Moments begin anew: so does the correction of their bias, and the first step is that of a new run, as nothing changed
# before (optim.lr=0) and every batch is the whole data set.
listops_data one.h5 8
for kind in adamw sgd; do
    rm -rf old
    expect 0 1 train run.yaml run.dir=old data.train=one.h5 run.steps=1500 checkpoint.every=0 log.interval=1000 optim.kind=$kind
    case $kind in
    sgd) other='optim.kind=adamw optim.lr=0.01' ;;
    *) other='optim.kind=sgd optim.lr=0.1' ;;
    esac
    # shellcheck disable=SC2086
    {
        new=$(first_step "first-$kind" $other)
        again kind 2 1 "optim.kind was $kind when this run began" data.train=one.h5 $other
        late "late-$kind" $other
    }
    near "$after" "$new" || fail "from $kind: cross-entropy $after after a step, $new of a new run"
    says "late-$kind.err" "all moments of the optimizer begin anew: those of the checkpoint are of $kind"
    grep -q 'not in the checkpoint' "late-$kind.err" && fail "parameters count as lacking: $(cat "late-$kind.err")"
done
rm -rf old
expect 0 1 train run.yaml run.dir=old data.train=one.h5 run.steps=1500 checkpoint.every=0 log.interval=1000 model.positions=none
new=$(first_step first-learned optim.lr=0.01)
late late-learned optim.lr=0.01
near "$after" "$new" || fail "with another table: cross-entropy $after after a step, $new of a new run"
says late-learned.err 'all moments of the optimizer begin anew: optim/m/embed/positions is not in the checkpoint'

# What is there and does not fit; keys that change the model and none of its tensors.
rm -rf old
expect 0 1 train run.yaml run.dir=old
again heads 2 1 'model.heads was 2 when this run began and is 4 now' model.heads=4 checkpoint.partial=true
again wide 2 2 'model.width was 16 when this run began and is 24 now' model.width=24 checkpoint.partial=true
again wide 3 2 'does not fit the model' model.width=24 model.layers=2 checkpoint.partial=true
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

# The same for an evaluation of a run or a checkpoint.
BIRKHOFF_FAULT=load.digest:0:eio expect 0 1 eval old && says err 'checkpoint step-00000002 is damaged'
for path in old old/checkpoints/step-00000002; do
    BIRKHOFF_FAULT=load.digest:0:eio expect 0 2 eval $path checkpoint.verify=size && says out 'step              2'
    [ ! -s err ] || fail "eval $path checkpoint.verify=size reads digests: $(cat err)"
done
refuses 2 1 'checkpoint.verify' eval old checkpoint.verify=sizes
finish
