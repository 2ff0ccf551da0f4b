#!/bin/bash
# test: labels=unit,mpi timeout=300
# Losses between layers of student and teacher: the same bits on any power of two of ranks, with blocks made again, lanes
# walked one by one and after a kill; the learned maps are in the checkpoint and move; what does not fit is refused.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

cat >teacher.yaml <<'Y'
run: {dir: teacher, seed: 3, steps: 3}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 3, width: 16, heads: 2, ffn: 32}
Y
cat >student.yaml <<'Y'
run: {seed: 5, steps: 8}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 2, width: 8, heads: 2, ffn: 16}
distill: {teacher: teacher}
loss:
  - {kind: kl}
  - {kind: hidden}
  - {kind: hidden, layers: "0:0,2:2", measure: cosine, weight: 0.3}
  - {kind: attention, measure: kl, layers: "1:2,2:3"}
optim: {lr: 0.01}
parallel: {lanes: 4, threads: 1}
checkpoint: {every: 4}
log: {interval: 1}
Y
listops_data listops.h5 60 20
expect 0 1 train teacher.yaml

expect 0 1 train student.yaml run.dir=one
same_over_ranks student.yaml 8 "loss kl hidden hidden.2 attention grad_norm"
expect 0 2 train student.yaml run.dir=walk parallel.walk=true
same_run walk one

for i in 0 1 2 3; do
    grep -q "distill/hidden$i/w" one/checkpoints/step-00000008/manifest.json one/checkpoints/step-00000008/*.h5 ||
        fail "no map $i in the checkpoint"
done
grep -q "distill/hidden4/w" one/checkpoints/step-00000008/*.h5 && fail "more maps than pairs of hidden states"
grep -q "optim/m/distill/hidden0/w" one/checkpoints/step-00000008/manifest.json || fail "no moments of a map"
expect 0 1 inspect one/checkpoints/step-00000008
says out 'distill/hidden0/w'
# Such a student can teach; a loss that comes later has no map in the checkpoint yet.
sed '/^  - {kind/d; s/^loss:/loss: [{kind: kl}]/; s/teacher: teacher/teacher: one/' student.yaml >pupil.yaml
sed 's/{kind: kl}/{kind: kl}, {kind: hidden, projection: linear}/' pupil.yaml >later.yaml
expect 0 2 train pupil.yaml run.dir=pupil run.steps=4
refuses 3 2 'distill/hidden0/w is missing' train later.yaml run.dir=pupil
expect 0 2 train later.yaml run.dir=pupil checkpoint.partial=true
says err 'initialised as for a new run'
shares=$(number one 8 'kl_share'),$(number one 8 'hidden_share'),$(number one 8 'hidden.2_share'),$(number one 8 'attention_share')
echo "$shares" | awk -F, '{ exit !($1 > 0 && $2 > 0 && $3 > 0 && $4 > 0 && $1 + $2 + $3 + $4 > 0.999999 && $1 + $2 + $3 + $4 < 1.000001) }' ||
    fail "shares of the loss: $shares"
expect 0 2 eval one
[ "$(number one 1 hidden)" != "$(number one 8 hidden)" ] || fail "hidden does not move"

# Hidden states go with blocks made again, matrices do not.
sed '/kind: attention/d' student.yaml >hidden.yaml
expect 0 1 train hidden.yaml run.dir=kept
expect 0 2 train hidden.yaml run.dir=made model.recompute=block
same_run made kept

# A class position in front, samples of different length, another precision.
sed 's/ffn: 32/ffn: 32, pool: cls/' teacher.yaml >class.yaml
expect 0 1 train class.yaml run.dir=class
expect 0 1 train student.yaml run.dir=class.one model.pool=cls distill.teacher=class run.precision=bf16
expect 0 2 train student.yaml run.dir=class.two model.pool=cls distill.teacher=class run.precision=bf16
same_run class.two class.one

refuses_all() { # TEXT KEY=VALUE...
    local text=$1 ranks
    shift
    for ranks in 1 3; do refuses 2 $ranks "$text" train student.yaml run.dir=none "$@"; done
    [ ! -e none ] || fail "written in spite of '$text'"
}
refuses_all 'give both the same model.pool' model.pool=cls
refuses_all 'student has 4, the teacher 2: use heads=mean' model.heads=4
refuses_all 'model.recompute=none keeps them' model.recompute=block
refuses_all 'the student has layers 0 to 2, the teacher 0 to 3' loss.1.layers=3:3
refuses_all 'the student has layers 1 to 2' loss.3.layers=0:1
refuses_all 'layers=first of hidden is not known' loss.1.layers=first
refuses_all 'the student is 8 wide and the teacher 16: use projection=linear' loss.1.projection=none
refuses_all 'use distill.placement=colocated' distill.placement=cached distill.cache=none.h5
expect 0 1 train student.yaml run.dir=heads model.heads=4 loss.3.heads=mean run.steps=2
sed '/^distill/d' student.yaml >alone.yaml
refuses 2 1 'loss kl needs a teacher' train alone.yaml run.dir=none
finish
