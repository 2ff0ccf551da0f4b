#!/bin/bash
# test: labels=mpi timeout=600
# Pairs of texts and single ones: trained, killed and resumed on several rank counts, with the metrics of their tasks;
# and data sets that do not fit a model.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

# paraphrases FIRST LAST: rows of the paraphrase corpus; a pair means the same when its numbers do.
paraphrases() {
    printf 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n'
    awk -v a="$1" -v b="$2" 'BEGIN {
        for (i = a; i < b; i++) {
            same = i % 3 != 0
            printf "%d\t%d\t%d\tthe number is %d here\tit is %d\n", same, i, i, i % 7, same ? i % 7 : (i + 1) % 7
        }
    }'
}

# sentences FIRST LAST: rows of the acceptability corpus.
sentences() {
    awk -v a="$1" -v b="$2" 'BEGIN {
        for (i = a; i < b; i++) printf "xy%d\t%d\t\t%s %d.\n", i, i % 2, i % 2 ? "He saw it" : "Saw he it it", i
    }'
}

paraphrases 0 200 >train.tsv
paraphrases 200 241 >dev.tsv
sentences 0 120 >in_domain_train.tsv
sentences 120 160 >in_domain_dev.tsv
sentences 160 200 >out_of_domain_dev.tsv
expect 0 1 data glue train.tsv dev.tsv mrpc.h5 layout=mrpc
says out '241 samples, pair_classification, 2 classes'
sum=$(sed -n 's/^sha256 *//p' out)
expect 0 3 data glue train.tsv dev.tsv again.h5 layout=mrpc
says out "$sum"
expect 0 1 data glue in_domain_train.tsv in_domain_dev.tsv out_of_domain_dev.tsv cola.h5 layout=cola
says out 'validation_out_of_domain 40 samples'
expect 0 1 inspect mrpc.h5
says out 'metric       f1'
says out '/tokens2'
expect 0 1 verify mrpc.h5

cat >mrpc.yaml <<'Y'
run: {seed: 3, steps: 12}
data: {train: mrpc.h5, batch: 8, max_length: 30}
model: {kind: encoder, layers: 1, width: 16, heads: 2, ffn: 32, pool: cls, dropout: 0.1}
optim: {lr: 0.01}
schedule: {kind: constant}
parallel: {lanes: 4, threads: 1}
checkpoint: {every: 4, async: false, best: 'max:f1'}
log: {interval: 1, eval_interval: 4}
Y
sed -e 's/mrpc.h5/cola.h5/' -e 's/pool: cls/pool: mean/' -e 's/max:f1/max:matthews/' mrpc.yaml >cola.yaml

# ---- the same bits on 1, 2 and 4 ranks, killed or not ----
for name in mrpc cola; do
    expect 0 1 train $name.yaml run.dir=$name.1
    for ranks in 2 4; do
        BIRKHOFF_FAULT='step.forward:*:kill9:7' birkhoff $ranks train $name.yaml run.dir=$name.$ranks
        [ -d $name.$ranks/checkpoints/step-00000004 ] || fail "$name on $ranks ranks: no checkpoint"
        expect 0 $((6 - ranks)) train $name.yaml run.dir=$name.$ranks
        says err 'resuming from step 4'
        same_run $name.$ranks $name.1
    done
    expect 0 3 train $name.yaml run.dir=$name.3
    close_at 2 $name.3 $name.1 loss
    [ "$(grep -c '"split": "validation"' $name.1/metrics.jsonl)" -eq 3 ] || fail "$name: not three evaluations"
    [ -e $name.1/checkpoints/best ] || fail "$name: no best checkpoint"
done
grep -q '"split": "validation".*"f1": ' mrpc.1/metrics.jsonl || fail "no f1 in the metrics"
grep -q '"split": "validation".*"matthews": ' cola.1/metrics.jsonl || fail "no matthews in the metrics"

# figures RANKS ARGUMENTS...: what eval counts, on so many ranks.
figures() {
    local ranks=$1
    shift
    expect 0 "$ranks" eval "$@"
    grep -E '^(rows|accuracy|f1|matthews|spearman) ' out
}
whole=$(figures 1 mrpc.1)
[[ $whole == *f1* ]] || fail "eval shows no f1: $whole"
for ranks in 2 3 4; do
    [ "$(figures $ranks mrpc.1)" = "$whole" ] || fail "eval on $ranks ranks: $(figures $ranks mrpc.1), not $whole"
done
figures 1 cola.1 data.eval_split=validation_out_of_domain >counted
says counted 'rows              40'
says counted 'matthews '
expect 0 1 eval mrpc.1 --json
says out '"metric": "f1", "f1": 0.'
says out '"matthews": '
says out '"spearman": '
expect 0 1 eval mrpc.1 data.metric=spearman
says out 'spearman  '
expect 0 1 eval mrpc.1 data.metric=accuracy
! grep -q f1 out || fail "f1 is shown in spite of data.metric=accuracy"

# ---- what does not fit ----
refuses 3 1 'the model has texts a sample 2, the data set 0' eval mrpc.1 data.train=cola.h5
refuses 3 3 'holds pairs of texts, the other does not' train mrpc.yaml run.dir=none data.eval=cola.h5
echo 'to be or not to be, that is the question' >hamlet
expect 0 1 data lines hamlet lines.h5
sed -e 's/mrpc.h5/lines.h5, length: 8/' -e 's/kind: encoder/kind: decoder/' -e 's/, pool: cls//' mrpc.yaml >lines.yaml
refuses 2 1 'checkpoint.best=max:f1 is for 1 to' train lines.yaml run.dir=none
refuses 2 1 'data.metric=f1 is for 1 to' train lines.yaml run.dir=none checkpoint.best=none data.metric=f1
refuses 2 1 'did you mean matthews?' train mrpc.yaml run.dir=none checkpoint.best=max:mathews
sed -e 's/kind: encoder/kind: decoder/' -e 's/, pool: cls//' mrpc.yaml >decoder.yaml
refuses 2 1 'needs a language-model data set' train decoder.yaml run.dir=none
[ ! -e none ] || fail "written in spite of an error"

# ---- subwords ----
if command -v spm_train >/dev/null && command -v spm_encode >/dev/null; then
    expect 0 2 data glue train.tsv dev.tsv pieces.h5 layout=mrpc tokens=subwords vocabulary=320
    says out 'of 320 subwords'
    expect 0 1 verify pieces.h5
    expect 0 2 train mrpc.yaml run.dir=pieces data.train=pieces.h5 run.steps=2
    for what in pieces.h5 pieces; do
        expect 0 1 inspect $what
        says out 'subwords     sha256'
    done
    expect 0 1 data glue dev.tsv train.tsv other.h5 layout=mrpc tokens=subwords vocabulary=pieces.h5
    expect 0 1 eval pieces data.train=other.h5
    paraphrases 50 230 | sed 's/here/there/' >new-train.tsv
    expect 0 1 data glue new-train.tsv dev.tsv changed.h5 layout=mrpc tokens=subwords vocabulary=320
    refuses 3 1 'subwords' train mrpc.yaml run.dir=none data.train=pieces.h5 data.eval=changed.h5
fi
finish
