#!/bin/bash
# test: labels=unit,mpi timeout=600
# Bad input to train and eval: one clear line, the right status on 1 and on 3 ranks, nothing written, nothing lost.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1
mpirun() { timeout 60 mpirun "$@"; } # a hang is status 124

cat >run.yaml <<'Y'
run: {dir: none, steps: 2}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 1, width: 16, heads: 2, ffn: 32}
Y
cat >student.yaml <<'Y'
run: {dir: none, steps: 2}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 1, width: 8, heads: 2, ffn: 16}
distill: {teacher: teacher}
loss: [{kind: cross_entropy}, {kind: kl}]
Y
listops_data listops.h5

# refuses_all STATUS TEXT ARGUMENTS...: on 1 and on 3 ranks, and nothing is written.
refuses_all() {
    local wanted=$1 text=$2 ranks
    shift 2
    for ranks in 1 3; do
        refuses "$wanted" $ranks "$text" "$@"
        [ ! -e none ] || fail "written in spite of '$text'"
    done
}
bad_key() { # STATUS TEXT KEY=VALUE...: on one rank; the reading is done by the same code everywhere
    local wanted=$1 text=$2
    shift 2
    refuses "$wanted" 1 "$text" train run.yaml "$@"
    [ ! -e none ] || fail "written in spite of '$text'"
}

# ---- the configuration ----
refuses_all 2 'the configuration cannot be read (nowhere.yaml)' train nowhere.yaml
refuses_all 2 'unknown key optim.learning_rate' train run.yaml optim.learning_rate=1
refuses_all 2 'did you mean layers?' train run.yaml model.layer=3
bad_key 2 'did you mean optim?' optm.lr=1
bad_key 2 'unknown key model.moe.expert ' model.moe.expert=4 model.layers=2
bad_key 2 "run.steps is 'many'" run.steps=many
bad_key 2 'optim.lr=-1 is out of range' optim.lr=-1
bad_key 2 'checkpoint.keep=1 is out of range' checkpoint.keep=1
bad_key 2 'checkpoint.writers is' checkpoint.writers=some
bad_key 2 'checkpoint.verify=md5 is not one of sha256|xxh64|size' checkpoint.verify=md5
bad_key 2 "unknown optimizer kind 'adam'" optim.kind=adam
bad_key 2 'did you mean cosine' schedule.kind=cosin
bad_key 2 'no list of increasing steps' schedule.kind=drop 'schedule.at=9 3'
bad_key 2 'schedule.at' schedule.at=3
bad_key 2 'section optim is not a mapping' optim=5
bad_key 2 'section model is not a mapping' model=5
bad_key 2 'data.train is missing' data.train=
bad_key 2 'run.dir is missing' run.dir=
bad_key 2 'optim.lr is given twice on the command line' optim.lr=1 optim.lr=2
bad_key 2 'did you mean accuracy?' checkpoint.best=max:acuracy
bad_key 2 'checkpoint.best=min:teacher_kl needs a teacher' checkpoint.best=min:teacher_kl
sed 's/^loss.*/loss: [{kind: cross_entrop}]/' student.yaml >wrong_loss.yaml
refuses 2 1 "unknown loss kind 'cross_entrop' (wrong_loss.yaml:5): did you mean cross_entropy" train wrong_loss.yaml
refuses 2 1 'one configuration file is wanted (2 given)' train run.yaml run.yaml
{ cat run.yaml; echo 'run: {seed: 2}'; } >twice.yaml
refuses 2 1 'twice.yaml:4' train twice.yaml
printf 'run: {dir: none\ndata: [' >broken.yaml
refuses_all 2 'not YAML (broken.yaml:' train broken.yaml

# ---- losses and teachers ----
sed '/^loss/d' student.yaml >no_loss.yaml
sed '/^distill/d' student.yaml >no_teacher.yaml
refuses_all 2 'loss kl needs a teacher (loss.1)' train no_teacher.yaml
refuses_all 2 'section distill without a distillation loss' train no_loss.yaml
refuses_all 3 'there is no run or checkpoint' train student.yaml
bad_teacher() { # RUN TEXT
    refuses_all 3 "$2" train student.yaml distill.teacher="$1"
}
mkdir -p teacher/checkpoints
bad_teacher teacher 'there is no checkpoint in the directory'
rm -r teacher
expect 0 1 train run.yaml run.dir=teacher
mkdir -p words/spam words/ham
for i in 1 2 3 4 5 6 7 8 9; do
    echo "good day $i $i" >words/ham/$i
    echo "buy $i $i" >words/spam/$i
done
expect 0 1 data text words words.h5
expect 0 1 train run.yaml run.dir=words.run data.train=words.h5 data.batch=4
bad_teacher words.run 'the teacher has classes 2, the data set 10'
expect 0 1 data listops deep.h5 preset=small train=30 validation=20 test=5
refuses_all 3 'the teacher cannot be used here' train student.yaml data.train=deep.h5
sed 's/kind: kl/kind: sinkd, group: sequence/' student.yaml >sequence.yaml
refuses_all 2 'group=sequence of sinkd matches the rows of one sample' train sequence.yaml

# ---- ranks, experts, lanes ----
refuses_all 2 'parallel.lanes=3 is not a power of two' train run.yaml parallel.lanes=3
refuses_all 2 'parallel.lanes=16 does not divide data.batch=8' train run.yaml parallel.lanes=16
refuses 2 3 '4 does not divide data.batch=6' train run.yaml data.batch=6
refuses_all 2 'parallel.expert=2 does not divide the number of ranks' train run.yaml parallel.expert=2
limit='model.moe.experts=4 model.moe.every=1 model.moe.max_receive_factor=1'
# shellcheck disable=SC2086
for run in train eval; do # an evaluation without a limit passes, one with it is refused like a step
    expect 70 2 $run run.yaml run.dir=crowded parallel.expert=2 $limit
    [ "$(grep -c '^birkhoff: error: ' err)" -eq 1 ] || fail "not one error line: $(cat err)"
    says err 'times its even share'
    says err 'in layer 0'
    [ $run = eval ] || expect 0 2 train run.yaml run.dir=crowded parallel.expert=2 ${limit/_factor=1/_factor=2}
done
expect 0 2 train run.yaml run.dir=crowded parallel.expert=2 ${limit/_factor=1/_factor=3} run.steps=3
says err 'resuming from step 2'
refuses 2 3 'parallel.expert=3 is more than model.moe.experts=2' train run.yaml \
    parallel.expert=3 model.moe.experts=2 model.moe.every=1

# ---- data sets ----
refuses_all 3 'data set nowhere.h5 does not exist' train run.yaml data.train=nowhere.h5
: >empty.h5
head -c 3000 listops.h5 >short.h5
cp run.yaml foreign.h5
bad_data() { refuses_all 3 "$2" train run.yaml data.train="$1"; }
bad_data empty.h5 'data set empty.h5'
bad_data short.h5 'data set short.h5'
bad_data foreign.h5 'data set foreign.h5'
bad_data "$PWD" 'data set'
bad_data teacher/checkpoints/step-00000002/shard-00000.h5 'birkhoff-checkpoint'
refuses_all 3 'has no split dev (' train run.yaml data.eval_split=dev
says err 'it has test, train, validation'
refuses_all 3 'differ in vocabulary (16, 257), classes (10, 2)' train run.yaml data.eval=words.h5
printf 'ab' >ab.txt
expect 0 1 data lines ab.txt ab.h5 validation=0.5
refuses_all 3 'split train holds nothing to train on' train run.yaml data.train=ab.h5 model.kind=decoder
refuses 2 1 'model.kind decoder needs a language-model data set' train run.yaml model.kind=decoder
expect 0 1 data lines "$BIRKHOFF_SOURCE/LICENSE" text.h5
refuses 2 1 'model.kind encoder needs a data set with classes' train run.yaml data.train=text.h5

# ---- a run directory that cannot be written ----
refuses_all 2 'run.yaml/x' train run.yaml run.dir=run.yaml/x
refuses_all 2 'run.yaml)' train run.yaml run.dir=run.yaml
refuses_all 2 '/proc/none' train run.yaml run.dir=/proc/none/x

if [ "$(id -u)" -eq 0 ] && mkdir frozen && mount -t tmpfs tmpfs frozen 2>/dev/null; then
    cp -r teacher frozen
    mount -o remount,ro frozen
    for run in teacher new; do refuses_all 2 'Read-only file system' train run.yaml run.dir=frozen/$run run.steps=3; done
    expect 0 3 eval frozen/teacher
    umount frozen
fi

# ---- going on with other settings ----
expect 0 1 train run.yaml run.dir=old parallel.lanes=4 checkpoint.every=1
find old -type f -exec sha256sum {} + | grep -v run.lock | sort >before
refuses_old() {
    local text=$1 ranks
    shift
    for ranks in 1 3; do refuses 2 $ranks "$text" train run.yaml run.dir=old "$@"; done
}
refuses_old 'model.width was 16 when this run began and is 24 now' model.width=24
refuses_old 'run.seed was 1 when this run began and is 2 now' run.seed=2
refuses_old 'data.batch was 8 when this run began and is 16 now' data.batch=16
refuses_old 'parallel.lanes was 4 when this run began and is 8 now' parallel.lanes=8
refuses_old 'model.moe was absent when this run began and is given now' model.moe.experts=4 model.moe.every=1
refuses_old 'optim.kind was adamw when this run began and is sgd now' optim.kind=sgd
refuses_old 'the data set is not the one this run began with' data.train=deep.h5 model.max_length=62 data.max_length=62
refuses_old 'run.resume=fresh, but there are checkpoints' run.resume=fresh
find old -type f -exec sha256sum {} + | grep -v run.lock | sort >after
cmp -s before after || fail "a refused restart changed the run: $(diff before after)"
expect 0 3 train run.yaml run.dir=old optim.lr=0.5 run.steps=3
says err 'warning: optim.lr was 0.0003 when this run began and is 0.5 now'

# ---- damaged checkpoints ----
damage() { printf 'x' | dd of="$1" bs=1 seek="${2:-5000}" conv=notrunc status=none; }
for ranks in 1 3; do
    rm -rf torn
    cp -r old torn
    damage torn/checkpoints/step-00000003/shard-00000.h5
    refuses 3 $ranks 'checkpoint step-00000003 is damaged' train run.yaml run.dir=torn run.steps=4 checkpoint.strict=true
    expect 0 $ranks train run.yaml run.dir=torn run.steps=4 optim.lr=0.5
    says err 'warning: checkpoint step-00000003 is damaged (shard-00000.h5: digest differs); using step-00000002'
    says err 'resuming from step 2'
    for step in torn/checkpoints/step-*; do truncate -s 100 "$step/manifest.json"; done
    refuses 3 $ranks 'no checkpoint is valid' train run.yaml run.dir=torn
    says err 'step-00000004 (the manifest is damaged'
    refuses 3 $ranks 'no checkpoint is valid' eval torn
    refuses 3 $ranks 'no checkpoint is valid' train student.yaml distill.teacher=torn
done
damage teacher/checkpoints/step-00000002/shard-00000.h5
bad_teacher teacher 'step-00000002 (shard-00000.h5: digest differs)'
bad_teacher teacher/checkpoints/step-00000002 'the checkpoint is damaged'

# ---- eval ----
refuses 2 1 'eval takes one configuration, run directory or checkpoint (0 given)' eval
refuses_all 3 'there is no run or checkpoint (nowhere)' eval nowhere
refuses_all 3 'there is no checkpoint to evaluate' eval run.yaml
refuses_all 3 'the model has classes 10, the data set 2' eval old data.eval=words.h5
refuses_all 3 'has no split dev' eval old data.eval_split=dev
refuses_all 2 'unknown key data.evl' eval old data.evl=listops.h5
finish
