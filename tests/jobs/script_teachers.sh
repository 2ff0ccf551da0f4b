#!/bin/bash
# test: labels=unit,mpi timeout=600
# Where a teacher runs changes nothing: on every rank, on ranks of its own, or before the training, into a file; across
# kill -9 and resume, and from one place to another.  Files of another teacher, data set or form are refused.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

cat >teacher.yaml <<'Y'
run: {dir: teacher, seed: 3, steps: 12}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 2, width: 16, heads: 2, ffn: 32}
optim: {lr: 0.01}
parallel: {lanes: 4, threads: 1}
Y
cat >student.yaml <<'Y'
run: {dir: student, seed: 5, steps: 24}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 1, width: 8, heads: 2, ffn: 16}
distill: {teacher: teacher}
loss:
  - {kind: cross_entropy, weight: 0.2}
  - {kind: kl, weight: 0.8, temperature: 2}
  - {kind: sinkd, weight: 0.8, temperature: 2}
parallel: {lanes: 4, threads: 1}
checkpoint: {every: 8, async: false, keep: 100}
log: {interval: 1, eval_interval: 8}
Y
sed '/sinkd/d' student.yaml >rows.yaml
sed 's/temperature: 2}/temperature: 2, top_k: 4}/' student.yaml >top.yaml
listops_data listops.h5
head -c 6000 "$BIRKHOFF_SOURCE/LICENSE" >text.txt
expect 0 1 data lines text.txt text.h5
expect 0 2 train teacher.yaml

split() { echo "distill.placement=split distill.teacher_ranks=$1"; }
cached() { echo "distill.placement=cached distill.cache=$1"; }

# ---- the same bits in every place ----

# places NAME FILE key=value...: colocated on one rank; split into 1 + 1, 1 + 2, 2 + 1 and 2 + 2 ranks; from a file.
places() {
    local name=$1 file=$2 ranks
    shift 2
    expect 0 1 train "$file" run.dir="$name" "$@"
    for ranks in '2 1' '3 1' '3 2' '4 2'; do
        # shellcheck disable=SC2046
        expect 0 "${ranks% *}" train "$file" run.dir="$name.$ranks" $(split "${ranks#* }") "$@"
        same_run "$name" "$name.$ranks"
    done
    for ranks in 1 2; do
        # shellcheck disable=SC2046
        expect 0 $ranks train "$file" run.dir="$name.file$ranks" $(cached "$name.h5") "$@"
        same_run "$name" "$name.file$ranks"
    done
}
places plain student.yaml
expect 0 1 train teacher.yaml run.dir=words data.train=text.h5 data.length=24 model.kind=decoder
places words.student rows.yaml distill.teacher=words data.train=text.h5 data.length=24 model.kind=decoder parallel.walk=true
expect 0 1 train teacher.yaml run.dir=experts model.moe.experts=5 model.moe.every=2 model.moe.hidden=16
places experts.student student.yaml distill.teacher=experts # 24 steps are less than an epoch
says plain.file1/metrics.jsonl '"teacher_wait": '
grep -q '"teacher_wait"' plain/metrics.jsonl && fail 'a colocated teacher is waited for'
says plain/metrics.jsonl '"teacher_agreement": '
# shellcheck disable=SC2046,SC2086
for where in 'distill.placement=colocated' "$(split 1)" "$(cached plain.h5)"; do
    expect 0 2 train student.yaml run.dir=silent $where distill.evaluate=false
    grep -q '"teacher_agreement"' silent/metrics.jsonl && fail "$where: figures that are not wanted"
    [ "$(payload plain)" = "$(payload silent)" ] || fail "$where: another payload without figures"
    rm -r silent
done

# Rows of the largest logits: the same from a file and from other ranks, and those of a colocated teacher to rounding.
expect 0 1 train top.yaml run.dir=top
# shellcheck disable=SC2046
{
    expect 0 3 train top.yaml run.dir=top.split $(split 1)
    expect 0 2 train top.yaml run.dir=top.file $(cached top.h5)
}
[ "$(payload top.split)" = "$(payload top.file)" ] || fail 'largest logits differ between a file and other ranks'
for step in 1 24; do close_at $step top top.split loss kl sinkd teacher_tail; done
says err 'the largest 4 at 1 temperature'

# ---- the command, and what is found in the file ----

for ranks in 1 2 3; do
    expect 0 $ranks cache student.yaml cache.$ranks.h5
    says out 'rows          200 of 10 classes, dense fp32'
    expect 0 1 verify cache.$ranks.h5
    says out 'valid'
done
digest() { "$BIRKHOFF" inspect "$1" | sed -n 's/^sha256 *//p'; }
for ranks in 2 3; do [ "$(digest cache.1.h5)" = "$(digest cache.$ranks.h5)" ] || fail "another file on $ranks ranks"; done
[ "$(digest cache.1.h5)" = "$(digest plain.h5)" ] || fail 'another file by the command'
expect 0 2 cache student.yaml dry.h5 --dry-run distill.cache_dtype=bf16
says out 'dense bf16'
[ ! -e dry.h5 ] || fail 'a dry run wrote a file'
expect 0 1 cache student.yaml half.h5 distill.cache_dtype=bf16
expect 0 1 cache student.yaml test.h5 data.split=test data.eval_split=none # nothing is evaluated
says out 'rows          20 of 10 classes'
# shellcheck disable=SC2046
expect 0 1 train student.yaml run.dir=half $(cached half.h5)
expect 0 1 inspect half.h5 --json
says out '"dtype": "bf16"'
# shellcheck disable=SC2046
{
    expect 0 3 train student.yaml run.dir=none --dry-run $(split 1)
    says out "teacher's ranks       1 of 3: N/(P-N) = 0.5"
    expect 0 2 train student.yaml run.dir=none --dry-run $(cached none.h5)
    says out 'to be written first'
}
[ ! -e none ] && [ ! -e none.h5 ] || fail 'a dry run wrote something'

# ---- kill -9 and resume, in one place and from one to another ----

# killed NAME "RANKS WHERE" "RANKS WHERE": killed in step 21, resumed from step 16.
killed() {
    local name=$1 before=$2 after=$3
    # shellcheck disable=SC2086
    BIRKHOFF_FAULT=step.backward:0:kill9:21 birkhoff ${before%% *} train student.yaml run.dir="$name" ${before#* }
    [ -d "$name/checkpoints/step-00000016" ] || fail "$name: no checkpoint before the kill: $(cat err)"
    # shellcheck disable=SC2086
    expect 0 ${after%% *} train student.yaml run.dir="$name" ${after#* }
    says err 'resuming from step'
    [ "$(payload plain)" = "$(payload "$name")" ] || fail "$name: another payload after the kill"
}
killed same "2 $(split 1)" "4 $(split 2)"
grep -q warning: err && grep warning: err | grep -v binding && fail 'a warning of the number of ranks'
killed away "3 $(split 1)" '2 distill.placement=colocated'
says err 'warning: distill.placement was split'
killed back "1 $(cached plain.h5)" "3 $(split 2)"
killed file "2 $(cached plain.h5)" "1 $(cached plain.h5)"

# A file whose writing was killed is written anew.
# shellcheck disable=SC2046
{
    BIRKHOFF_FAULT=cache.write:0:kill9:40 birkhoff 2 train student.yaml run.dir=torn $(cached torn.h5)
    [ -f torn.h5.part ] && [ ! -f torn.h5 ] || fail 'a file although its writing was killed'
    expect 0 2 train student.yaml run.dir=torn $(cached torn.h5)
}
[ ! -f torn.h5.part ] || fail 'torn.h5.part is still there'
[ "$(payload plain)" = "$(payload torn)" ] || fail 'another payload after a file was written anew'

# ---- requests to stop reach both sides, whoever sees them ----

# shellcheck disable=SC2046,SC2086
for who in 1 4; do # the first student, the last rank of the teacher
    run=stopped.$who
    start 4 train student.yaml run.dir=$run run.steps=1000000 $(split 2)
    wait_until test -d $run/checkpoints/step-00000008
    kill -USR1 "$(children "$job" | cut -d ' ' -f $who)"
    ended
    [ $status -eq 75 ] || fail "status $status, not 75, after a signal to rank $((who - 1)): $(tail -n 3 job.out)"
done
# In an evaluation, too, which is made up for after the restart: lines of a training with sinkd have rows of their own.
listops_data long.h5 20 20000
long='data.eval=long.h5 data.max_length=60 log.eval_interval=2 checkpoint.every=0 schedule.kind=constant'
# shellcheck disable=SC2046,SC2086
{
    start 3 train student.yaml run.dir=evaluating run.steps=1000000 $(split 1) $long
    wait_until grep -qs '"step": 2,' evaluating/metrics.jsonl
    kill -USR1 "$(children "$job" | cut -d ' ' -f 3)"
    ended
    [ $status -eq 75 ] || fail "status $status, not 75, after a signal in an evaluation"
    [ "$(newest evaluating)" = step-00000002 ] || fail "an evaluation was not cut short: $(newest evaluating)"
    expect 0 4 train student.yaml run.dir=evaluating run.steps=3 $(split 2) $long log.eval_batches=3
    expect 0 1 train student.yaml run.dir=evaluated run.steps=3 $long log.eval_batches=3
    same_run evaluating evaluated
}
BIRKHOFF_FAULT=cache.write:0:sleep=1:20 start 2 cache student.yaml slow.h5
wait_until test -f slow.h5.part
kill -USR1 "$job"
ended
[ $status -eq 75 ] && [ ! -e slow.h5 ] && [ ! -e slow.h5.part ] || fail "status $status, $(ls slow*) after a signal"
# shellcheck disable=SC2046
expect 4 3 train student.yaml run.dir=nan optim.lr=1e30 optim.clip=0 schedule.kind=constant $(split 1)

# ---- what is refused ----

# shellcheck disable=SC2046
{
    refuses 2 2 'leaves no rank for the student (of 2)' train student.yaml run.dir=bad $(split 2)
    refuses 2 1 'leaves no rank for the student (of 1)' train student.yaml run.dir=bad $(split 1)
    refuses 2 3 'does not divide the number of student ranks (2)' train student.yaml run.dir=bad $(split 1) parallel.expert=3
    refuses 3 3 'there is no run or checkpoint' train student.yaml run.dir=bad $(split 1) distill.teacher=nowhere
    refuses 3 3 'does not exist' train student.yaml run.dir=bad $(split 1) data.train=none.h5
    refuses 3 3 'the teacher has classes 0' train student.yaml run.dir=bad $(split 1) distill.teacher=words
    refuses 2 3 'run.seed was 5' train student.yaml run.dir='plain.3 1' $(split 1) run.seed=6
    refuses 2 2 'needs the teacher in evaluations' train student.yaml run.dir=bad $(cached plain.h5) checkpoint.best=min:teacher_kl \
        distill.evaluate=false
    refuses 3 2 'of another teacher' train student.yaml run.dir=bad $(cached plain.h5) distill.teacher=experts
    refuses 3 2 'of another split' train student.yaml run.dir=bad $(cached plain.h5) data.split=validation
    refuses 3 2 'of another data.max_length' train student.yaml run.dir=bad $(cached plain.h5) data.max_length=20
    refuses 3 2 'of another form' train top.yaml run.dir=bad $(cached top.h5) distill.cache_form=dense
    refuses 3 2 'has temperature 3, the file' train top.yaml run.dir=bad $(cached top.h5) loss.1.temperature=3
    refuses 3 2 'top_k=5, the file' train top.yaml run.dir=bad $(cached top.h5) loss.1.top_k=5
    refuses 3 2 'birkhoff-dataset' train student.yaml run.dir=bad $(cached listops.h5)
    listops_data other.h5 208
    refuses 3 2 'of another data set' train student.yaml run.dir=bad $(cached plain.h5) data.train=other.h5
    head -c 5000 plain.h5 >short.h5
    refuses 3 2 'truncated' train student.yaml run.dir=bad $(cached short.h5)
}
refuses 2 1 'cache takes a configuration and the file' cache student.yaml
refuses 2 2 'no section distill' cache teacher.yaml x.h5
refuses 2 2 'directory does not exist' cache student.yaml none/x.h5
[ ! -e bad ] || fail 'a refused training made its directory'
finish
