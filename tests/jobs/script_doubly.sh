#!/bin/bash
# test: labels=unit,mpi timeout=600
# Doubly stochastic attention in training: the same to the bit on one, two and four ranks and across a resume, theta
# among it; what cannot be trained is refused.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

# big_endian NUMBER ...: four bytes each.
big_endian() {
    local number
    for number in "$@"; do
        printf "\\x$(printf %02x $((number >> 24 & 255)))\\x$(printf %02x $((number >> 16 & 255)))"
        printf "\\x$(printf %02x $((number >> 8 & 255)))\\x$(printf %02x $((number & 255)))"
    done
}

# idx NAME COUNT: images of 28 x 28 (the bytes of a program serve as pixels) and labels 0..9.
idx() {
    { big_endian 2051 "$2" 28 28; head -c $(($2 * 784)) "$BIRKHOFF"; } >"$1-images"
    { big_endian 2049 "$2"; for ((i = 0; i < $2; i++)); do printf "\\x0$((i % 10))"; done; } >"$1-labels"
}

# Seven stripes and the CLS position: eight tokens.
idx train 100
idx test 20
expect 0 1 data images train-images train-labels test-images test-labels stripes.h5 \
    layout=stripes patch=7 values=real validation=20 || exit 1
cat >run.yaml <<'Y'
run: {seed: 3, steps: 6}
data: {train: stripes.h5, batch: 8}
model: {kind: encoder, layers: 2, width: 16, heads: 2, ffn: 16, pool: cls}
optim: {lr: 0.01, weight_decay: 0.1}
schedule: {kind: constant}
parallel: {lanes: 4, threads: 1}
checkpoint: {every: 3, keep: 1000000}
log: {interval: 1, eval_interval: 3}
Y

# theta RUN: the tensors of its last checkpoint that are theta, or belong to it.
theta() { grep -ohE '"(model|optim)/[^"]*/theta"' "$1/checkpoints/$(newest "$1")/manifest.json" | sort -u; }

# kind NAME key=value...: whole on one rank; begun on one, resumed on two and on four.
kind() {
    local name=$1 ranks
    shift
    expect 0 1 train run.yaml run.dir="$name.whole" "$@" || return
    expect 0 2 train run.yaml run.dir="$name.half" run.steps=3 "$@"
    for ranks in 2 4; do
        cp -r "$name.half" "$name.$ranks"
        expect 0 "$ranks" train run.yaml run.dir="$name.$ranks" "$@"
        says err 'resuming from step 3'
        same_run "$name.$ranks" "$name.whole"
    done
}

kind sinkformer model.attention.kind=sinkformer model.attention.dropout=0.1
kind qr model.attention.kind=qr
says qr.whole/metrics.jsonl '"clamped": '
kind recomputed model.attention.kind=qr model.recompute=block
kind qds model.attention.kind=qds model.attention.ancilla=0 model.attention.circuit_layers=1
kind trained model.attention.kind=qds model.attention.circuit_layers=1 model.attention.angles=trained

same_parameters() { [ "$(payload "$1")" = "$(payload "$2")" ] || fail "the payloads of $1 and $2 differ"; }
same_parameters qr.whole recomputed.whole

# Static angles are in the checkpoint, and nothing of an optimizer with them.
[ "$(theta qds.whole | wc -l)" -eq 2 ] || fail "qds.whole holds $(theta qds.whole)"
[ "$(theta trained.whole | grep -c '"optim/')" -ge 2 ] || fail "trained.whole holds $(theta trained.whole)"

refuses 2 1 "not 7: make them 8, or set pad=zero" train run.yaml run.dir=no model.attention.kind=qds model.pool=mean
expect 0 1 train run.yaml run.dir=padded run.steps=1 model.attention.kind=qds model.pool=mean model.attention.pad=zero \
    model.attention.circuit_layers=1
expect 0 1 data images train-images train-labels test-images test-labels rows.h5 layout=stripes patch=28 values=real \
    validation=20
refuses 2 1 "at most 10 qubits, not 11: 5 for 29 positions and 6 of ancilla" train run.yaml run.dir=no data.train=rows.h5 \
    model.attention.kind=qds model.attention.pad=zero model.attention.ancilla=6
refuses 2 1 "gradient=implicit with half_steps=3" train run.yaml run.dir=no model.attention.kind=sinkformer \
    model.attention.gradient=implicit
head -c 6000 "$BIRKHOFF_SOURCE/LICENSE" >text.txt
expect 0 1 data lines text.txt text.h5
for kind in sinkformer qr qds; do
    refuses 2 1 "attention kind '$kind' cannot be causal (model.attention): a causal doubly stochastic matrix is the identity; use softmax" \
        train run.yaml run.dir=no data.train=text.h5 data.length=16 model.kind=decoder model.attention.kind=$kind
done
listops_data listops.h5
refuses 2 1 "attention kind 'qds' takes no padding" train run.yaml run.dir=no data.train=listops.h5 model.attention.kind=qds
finish
