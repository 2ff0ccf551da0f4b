#!/bin/bash
# test: labels=unit,mpi timeout=300
# A mixture of experts that begins as a dense model: the same output at step 0, whatever the ranks; the dense checkpoint
# is not needed again; what does not fit is refused before anything is written.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

cat >dense.yaml <<'Y'
run: {seed: 3, steps: 12, dir: dense}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 2, width: 16, heads: 2, ffn: 32}
optim: {lr: 0.01}
parallel: {lanes: 4, threads: 1}
log: {interval: 1}
Y
sed 's/run: .*/run: {seed: 3, steps: 1}/
     s/ffn: 32/ffn: 32, moe: {every: 1, experts: 8, k: 4, upcycle: {from: dense}}/; s/lr: 0.01/lr: 0/' dense.yaml >moe.yaml
listops_data listops.h5
expect 0 1 train dense.yaml || exit 1

# figure RUN KEY: of its evaluation.
figure() {
    expect 0 1 eval "$1" --json
    sed -n "s/.*\"$2\": \([^,}]*\).*/\1/p" out
}
# same_figure A B: cross entropies to 1e-5.
same_figure() {
    awk -v x="$(figure "$1" cross_entropy)" -v y="$(figure "$2" cross_entropy)" \
        'BEGIN { d = x - y; exit !(x > 0 && y > 0 && d < 1e-5 * y && d > -1e-5 * y) }' ||
        fail "the evaluations of $1 and $2 differ: $(figure "$1" cross_entropy), $(figure "$2" cross_entropy)"
}

for granularity in 1 2 4; do
    for grid in 1,1 3,3 4,2; do
        run=moe.$granularity.$grid
        expect 0 "${grid%,*}" train moe.yaml run.dir="$run" model.moe.upcycle.granularity=$granularity \
            parallel.expert="${grid#*,}" || continue
        says err 'the experts begin as the dense feed-forward of'
        says err '/dense/checkpoints/step-00000012'
        [ "$grid" = 1,1 ] && same_figure dense "$run"
        [ "$(payload "$run")" = "$(payload "moe.$granularity.1,1")" ] || fail "another payload in $run"
    done
done
expect 0 2 train moe.yaml run.dir=shared model.moe.shared=8 model.moe.shared_gate=true
same_figure dense shared
[ "$(figure shared parameters)" -gt "$(figure dense parameters)" ] || fail "no more parameters than the dense model"

# Learned maps to a teacher's layers are of the student, not of the dense model.
{ cat moe.yaml; echo 'distill: {teacher: dense}'; echo 'loss: [{kind: kl}, {kind: hidden, projection: linear}]'; } >taught.yaml
for ranks in 1 2; do expect 0 $ranks train taught.yaml run.dir=taught.$ranks; done
same_run taught.2 taught.1
same_figure dense taught.1

# ---- it goes on without the dense model ----
mv dense gone
expect 0 2 train moe.yaml run.dir=moe.2.1,1 run.steps=3 model.moe.upcycle.granularity=2
says err 'resuming from step 1'
refuses 3 3 'there is no run or checkpoint' train moe.yaml run.dir=none
mv gone dense

# ---- what does not fit ----
wrong() { # STATUS TEXT KEY=VALUE...
    local status=$1 text=$2
    shift 2
    refuses "$status" 1 "$text" train moe.yaml run.dir=none "$@"
    [ ! -e none ] || fail "written in spite of '$text'"
}
wrong 2 'model.moe.k=4 is no multiple of model.moe.upcycle.granularity=8' model.moe.upcycle.granularity=8
wrong 2 'model.moe.experts=6 is no multiple of' model.moe.experts=6 model.moe.upcycle.granularity=4
wrong 2 'model.ffn=30 is no multiple of' model.ffn=30 model.moe.upcycle.granularity=4
wrong 2 'model.moe.hidden=32 is not model.ffn' model.moe.hidden=32 model.moe.upcycle.granularity=2
wrong 2 'renormalize=true' model.moe.router.renormalize=false
wrong 2 'renormalize=true and scale=1' model.moe.router.scale=2
wrong 2 'renormalize=true' model.moe.router.kind=sinkhorn
wrong 2 'router expert_choice do not sum to 1' model.moe.router.kind=expert_choice
wrong 2 'model.moe.activation is not model.activation' model.moe.activation=relu
wrong 2 'model.moe.upcycle.from is missing' model.moe.upcycle.from=
wrong 2 'did you mean granularity' model.moe.upcycle.granularty=2
wrong 3 'model/block1/ffn/w1 is f32[32,16], not f32[64,16]' model.ffn=64
wrong 3 'model/block1/norm1/gain is unexpected' model.layers=1
wrong 3 'model/block2/norm1/gain is missing' model.layers=3
wrong 3 'model/block0/ffn/w1 is missing' model.moe.upcycle.from=moe.1.1,1
finish
