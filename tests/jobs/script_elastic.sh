#!/bin/bash
# test: labels=fault,mpi timeout=900
# A run saved on P ranks goes on on P' ranks, P and P' in {1, 2, 3, 4, 8}, at other expert degrees and with the optimizer
# state sharded or not: to the bit where both are powers of two, to 1e-5 in the first loss where one is not.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

cat >dense.yaml <<'Y'
run: {seed: 3, steps: 7}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 1, width: 16, heads: 2, ffn: 32, dropout: 0.1}
optim: {lr: 0.01}
schedule: {kind: constant}
parallel: {lanes: 8, threads: 1}
checkpoint: {every: 4, async: false}
log: {interval: 1}
Y
sed 's/dropout: 0.1/dropout: 0.1, moe: {every: 1, experts: 8, k: 2, router: {kind: ssr, probability: 0.5}}/' dense.yaml >moe.yaml
listops_data listops.h5

exact() { [ "$1" -ne 3 ] && [ "$2" -ne 3 ]; }
# The expert degree of a rank count: all ranks where a run is saved, half of them where it goes on.
degree() {
    case $1,$2 in
    dense,*) echo 1 ;;
    moe,*) echo $(($2 > 3 && $3 ? $2 / 2 : $2)) ;;
    esac
}

for model in dense moe; do
    expect 0 1 train $model.yaml run.dir=$model.whole
    zero=0
    for saved in 1 2 3 4 8; do
        BIRKHOFF_FAULT='step.forward:*:kill9:5' birkhoff $saved train $model.yaml run.dir=$model.$saved \
            parallel.expert="$(degree $model $saved 0)" parallel.zero=$zero
        [ -d $model.$saved/checkpoints/step-00000004 ] || fail "$model on $saved ranks: no checkpoint: $(tail -n 2 err)"
        for ranks in 1 2 3 4 8; do
            zero=$((1 - zero))
            rm -rf resumed
            cp -r $model.$saved resumed
            expect 0 $ranks train $model.yaml run.dir=resumed parallel.expert="$(degree $model $ranks 1)" parallel.zero=$zero ||
                continue
            says err 'resuming from step 4'
            if exact $saved $ranks; then
                same_run resumed $model.whole
            else
                close_at 5 resumed $model.whole loss
            fi
        done
    done
done
finish
