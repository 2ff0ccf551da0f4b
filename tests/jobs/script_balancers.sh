#!/bin/bash
# test: labels=unit,mpi timeout=300
# Balancers in training: their state goes on in a resumed run on other ranks, a step that is not applied leaves no trace
# in it, the lines of training tell the load, and report draws it.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

cat >run.yaml <<'Y'
run: {seed: 3, steps: 7}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 2, width: 16, heads: 2, ffn: 32, moe: {every: 1, experts: 8, k: 2}}
optim: {lr: 0.01}
schedule: {kind: constant}
parallel: {lanes: 4, threads: 1}
checkpoint: {every: 4, async: false}
log: {interval: 1}
Y
listops_data listops.h5

aux() { case $1 in noisy_topk) echo cv ;; expert_choice) echo none ;; *) echo seq ;; esac }

for kind in bias quantile noisy_topk expert_choice; do
    keys="model.moe.router.kind=$kind model.moe.aux=$(aux $kind)"
    # shellcheck disable=SC2086
    expect 0 2 train run.yaml run.dir=$kind parallel.expert=2 $keys
    # shellcheck disable=SC2086
    BIRKHOFF_FAULT='step.forward:*:kill9:5' birkhoff 4 train run.yaml run.dir=$kind.resumed parallel.expert=4 $keys
    # shellcheck disable=SC2086
    expect 0 1 train run.yaml run.dir=$kind.resumed $keys
    says err 'resuming from step 4'
    same_run $kind.resumed $kind
done
grep -q '"name":"model/block1/moe/router_bias"' bias/checkpoints/step-00000007/manifest.json || fail 'no bias is kept'
grep -q '"name":"model/block0/moe/noise_gate"' noisy_topk/checkpoints/step-00000007/manifest.json ||
    fail 'no noise gate is kept'
grep -q router_ot_steps bias/checkpoints/step-00000007/manifest.json && fail 'a counter of steps that are not there'

# what a step would have made of the state is forgotten when the step is not applied
for kind in ssr bias quantile; do
    keys="model.moe.router.kind=$kind optim.lr=1e30"
    [ $kind = ssr ] && keys="$keys model.moe.router.probability=1"
    # shellcheck disable=SC2086
    expect 4 2 train run.yaml run.dir=$kind.broken $keys
    # shellcheck disable=SC2086
    expect 0 2 train run.yaml run.dir=$kind.one run.steps=1 $keys
    [ "$(newest $kind.broken)" = step-00000001 ] || fail "$kind broke at $(newest $kind.broken)"
    [ "$(payload $kind.broken)" = "$(payload $kind.one)" ] || fail "the state of $kind moved without its step"
done

expect 0 1 train run.yaml run.dir=both run.steps=1 model.moe.router.kind=bias model.moe.aux=switch
says err 'two balancers act'

line=$(grep '"split": "train"' bias/metrics.jsonl | tail -n 1)
[ "$(grep -o '"load": \[\([0-9.e-]*, \)\{7\}[0-9.e-]*\]' <<<"$line" | wc -l)" -eq 2 ] || fail "loads: $line"
for word in '"over": "p50"' '"over": "p90"' '"over": "max"' '"router_held": 0'; do
    grep -q "$word" <<<"$line" || fail "no $word in $line"
done
expect 0 1 report bias load.svg figure=load
says load.svg '>layer 0<'
says load.svg '>layer 1<'
[ "$(grep -c 'height="24.0"' load.svg)" -eq $((2 * 7 * 8)) ] || fail 'not a cell for each expert, layer and line'
refuses 2 1 'did you mean load?' report bias out.svg figure=loda
expect 0 1 train run.yaml run.dir=dense run.steps=1 model.moe.every=3 model.layers=3 model.moe.router.kind=topk
sed -i 's/, "moe": .*/}/' dense/metrics.jsonl
refuses 3 1 'no line holds the load of experts' report dense out.svg figure=load
# what is done lane by lane is evaluated in the lanes of the run, on any number of ranks
expect 0 2 train run.yaml run.dir=local model.moe.router.kind=expert_choice model.moe.router.scope=local \
    model.moe.capacity_factor=1.5
for ranks in 1 2 4; do
    expect 0 $ranks eval local --json
    cp out eval.$ranks
    cmp -s eval.1 eval.$ranks || fail "evaluated on $ranks ranks: $(cat eval.1 eval.$ranks)"
done
finish
