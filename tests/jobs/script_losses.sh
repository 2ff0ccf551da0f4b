#!/bin/bash
# test: labels=unit,mpi timeout=300
# Losses in training: the same bits on 1, 2 and 4 ranks at 4 lanes, with blocks made again and after a kill, for losses
# over the whole batch, over groups that straddle ranks and over the classes that a teacher finds likely; what is said.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

cat >teacher.yaml <<'Y'
run: {dir: teacher, seed: 3, steps: 3}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 2, width: 16, heads: 2, ffn: 32}
Y
cat >student.yaml <<'Y'
run: {seed: 5, steps: 6}
data: {train: listops.h5, batch: 12}
model: {kind: encoder, layers: 1, width: 8, heads: 2, ffn: 16}
distill: {teacher: teacher}
loss:
  - {kind: kl, top_k: 4}
  - {kind: sinkd, debias: true}
  - {kind: sinkd, group: 5, top_k: 3, gradient: implicit}
  - {kind: sinkd, group: lane, gradient: envelope, debias: true}
optim: {lr: 0.01}
parallel: {lanes: 4, threads: 1}
checkpoint: {every: 3}
log: {interval: 1}
Y
listops_data listops.h5 60 20
expect 0 1 train teacher.yaml

expect 0 1 train student.yaml run.dir=one
says err "teacher's classes outside top_k hold"
[ "$(grep -c "classes outside top_k" err)" -eq 1 ] || fail "the tail is warned of more than once"
same_over_ranks student.yaml 6 "loss kl sinkd sinkd.2 sinkd.3 teacher_tail grad_norm" model.recompute=block
for key in rows groups row_violation cg_iterations.2 cg_residual.2 teacher_tail kl_share sinkd.3_share; do
    [ -n "$(number one 6 "$key")" ] || fail "no $key in the metrics"
done
[ "$(number one 6 groups.2)" = 3 ] && [ "$(number one 6 groups.3)" = 4 ] || fail "groups: $(tail -n 2 one/metrics.jsonl)"

# Rows of a decoder: many a sample.
head -c 6000 "$BIRKHOFF_SOURCE/LICENSE" >text.txt
expect 0 1 data lines text.txt text.h5
expect 0 1 train teacher.yaml run.dir=writer data.train=text.h5 data.length=16 model.kind=decoder
sed 's/group: lane/group: sequence/; s/kind: encoder/kind: decoder/' student.yaml >decoder.yaml
for ranks in 1 2; do
    expect 0 $ranks train decoder.yaml run.dir=decoder.$ranks data.train=text.h5 data.length=16 distill.teacher=writer
done
same_run decoder.2 decoder.1
[ "$(number decoder.1 6 groups.3)" = 12 ] || fail "12 samples are not 12 groups: $(number decoder.1 6 groups.3)"

# Lists by name, with a temperature that falls; the resolved configuration has the entries.
sed '/^  - {kind/d; s/^loss:/loss: [{kind: preset, name: official, task: mnli}]/' student.yaml >official.yaml
expect 0 1 train official.yaml run.dir=official
expect 0 2 train official.yaml run.dir=official.two
same_run official.two official
for line in 'temperature_end: 1' 'weight: 0.0008' 'group: "lane"' 'reduction: sum'; do says official/config.yaml "$line"; done
sed 's/official, task: mnli/default/' official.yaml >default.yaml
expect 0 1 train default.yaml run.dir=default
refuses 2 3 'did you mean default?' train default.yaml run.dir=none loss.0.name=defalt

# A loss that cannot know which sample is which.
sed '/^  - {kind/d; s/^loss:/loss: [{kind: cross_entropy, weight: 0}, {kind: sinkd}]/' student.yaml >alone.yaml
expect 0 1 train alone.yaml run.dir=alone run.steps=1
says err 'it cannot know which sample is which'
expect 0 2 train student.yaml --dry-run run.dir=none
says out 'loss sinkd.2          12 rows in 3 groups of 4'
[ ! -e none ] || fail "a dry run wrote something"
finish
