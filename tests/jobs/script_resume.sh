#!/bin/bash
# test: labels=unit,mpi timeout=600
# Training is the same to the bit on any power of two of ranks, at any expert degree, and across kill -9 and resume;
# on 3 ranks to rounding.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

cat >run.yaml <<'Y'
run: {seed: 3, steps: 24}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 2, width: 16, heads: 2, ffn: 32, dropout: 0.1}
optim: {lr: 0.01}
schedule: {kind: constant, warmup: 5}
parallel: {lanes: 4, threads: 1}
checkpoint: {every: 8, keep: 1000000}
log: {interval: 1, eval_interval: 8}
Y
sed '/^model/d; /^data/d' run.yaml >student.yaml
cat >>student.yaml <<'Y'
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 1, width: 8, heads: 2, ffn: 16, moe: {every: 1, experts: 5, k: 2, router: {kind: ssr, probability: 0.5}}}
distill: {teacher: dense.whole}
loss:
  - {kind: cross_entropy, weight: 0.2}
  - {kind: kl, weight: 0.8, temperature: 2}
  - {kind: kl, weight: 0.1, temperature: 1}
  - {kind: sinkd, weight: 0.8, temperature: 2}
Y
listops_data listops.h5
head -c 6000 "$BIRKHOFF_SOURCE/LICENSE" >text.txt
expect 0 1 data lines text.txt text.h5

is_saved() { [ -f "$1/checkpoints/latest" ]; }

# case NAME FILE KILLED "RANKS..." key=value...: an uninterrupted run on 1 rank; a run that is killed after its save of
# step 8; and that one resumed on each of RANKS.  "4,2" is 4 ranks at expert degree 2, there with experts in chunks.
case_of() {
    local name=$1 file=$2 killed=$3 resumed=$4 ranks run chunks
    shift 4
    expect 0 1 train "$file" run.dir="$name.whole" "$@"
    start "${killed%,*}" train "$file" run.dir="$name.killed" run.steps=1000000 parallel.expert="${killed#*,}" "$@"
    wait_until is_saved "$name.killed"
    kill_job
    for run in "$name".killed/checkpoints/step-*; do
        [ "${run##*/}" = step-00000008 ] || rm -r "$run" # the kill came in the middle of steps 9 to 15
    done
    for ranks in $resumed; do
        run=$name.$ranks
        cp -r "$name.killed" "$run"
        chunks=()
        [ "${ranks#*,}" -eq 1 ] || chunks=(model.moe.chunks=2)
        expect 0 "${ranks%,*}" train "$file" run.dir="$run" parallel.expert="${ranks#*,}" "${chunks[@]}" "$@" || continue
        says err 'resuming from step 8'
        if [ "${ranks%,*}" -eq 3 ]; then
            says err 'results agree with other rank counts to rounding'
            close_at 9 "$run" "$name.whole" loss grad_norm
        else
            same_run "$run" "$name.whole"
        fi
    done
}

moe='model.moe.experts=5 model.moe.every=2 model.moe.hidden=16 model.moe.aux=switch model.moe.z_weight=0.001'
case_of dense run.yaml 2,1 '1,1 2,1 4,1 3,1'
case_of decoder run.yaml 2,1 '1,1 4,1 3,1' data.train=text.h5 data.length=24 model.kind=decoder model.attention.dropout=0.1
# shellcheck disable=SC2086
{
    case_of ssr run.yaml 2,2 '1,1 2,1 4,2 4,4 3,1 3,3' $moe model.moe.router.kind=ssr model.moe.router.probability=0.5
    case_of topk run.yaml 2,1 '1,1 2,2 4,4' $moe model.moe.router.kind=topk
    case_of sinkhorn run.yaml 4,2 '1,1 2,2 4,1' $moe model.moe.router.kind=sinkhorn
    # two ranks are a node: at degree 4 rows go in two hops
    BIRKHOFF_NODE_RANKS=2 case_of layer run.yaml 4,2 '1,1 2,2 4,4 3,3' $moe model.moe.capacity_factor=0.8 model.moe.shared=8 \
        model.moe.shared_gate=true model.moe.wire=bf16
}
case_of student student.yaml 2,2 '1,1 4,2 3,3'
for term in cross_entropy kl kl.2 sinkd moe_aux teacher_agreement; do
    says student.whole/metrics.jsonl "\"$term\": "
done

# Where the optimizer state lies, when buckets start, how they are cut and how many threads work changes nothing.
same_anyhow() {
    local four=$1 three=$2
    shift 2
    rm -rf wide.*
    set -- model.width=96 model.heads=4 log.eval_interval=0 "$@"
    expect 0 1 train run.yaml run.dir=wide.1 run.steps=4 "$@"
    expect 0 2 train run.yaml run.dir=wide.2 run.steps=4 "$@" parallel.zero=0 parallel.bucket_mb=0.25
    expect 0 2 train run.yaml run.dir=wide.3 run.steps=4 "$@" parallel.overlap=false parallel.bucket_mb=0.5 parallel.threads=2
    expect 0 4 train run.yaml run.dir=wide.4 run.steps=4 "$@" parallel.zero=0 parallel.overlap=false parallel.expert="$four"
    expect 0 3 train run.yaml run.dir=wide.5 run.steps=1 "$@" parallel.zero=0 parallel.expert="$three"
    for i in 2 3 4; do same_run wide.1 wide.$i; done
    close_at 1 wide.1 wide.5 loss grad_norm
}
same_anyhow 1 1
# shellcheck disable=SC2086
same_anyhow 2 3 $moe model.moe.router.kind=ssr
finish
