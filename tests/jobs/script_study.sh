#!/bin/bash
# test: labels=unit,mpi timeout=300
# jobs/study tunes the variants that have alternatives, trains every seed and ends with a table; a key that is wrong
# ends it.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

mkdir -p jobs/configs runs/data
cp "$BIRKHOFF_SOURCE"/jobs/study jobs
printf '#!/bin/sh\n' >jobs/prepare
chmod +x jobs/prepare
cat >jobs/configs/small.yaml <<'Y'
run: {dir: ../../runs/small, seed: 1, steps: 3}
data: {train: ../../runs/data/small.h5, batch: 4}
model: {layers: 1, width: 8, heads: 1, ffn: 8, moe: {every: 1, experts: 4, hidden: 8}}
parallel: {lanes: 2, threads: 1}
Y
cat >jobs/configs/small.study <<'S'
# Two routers.
prepare small
split validation     # what is reported
measure accuracy cross_entropy
corrupted runs/data/other.h5 other data
keys log.interval=1
variant plain: small optim.lr=1e-3|0.5
variant every step: small model.moe.router.kind=sinkhorn
S
listops_data runs/data/small.h5 20 10
listops_data runs/data/other.h5 20 10
export RANKS=1

jobs/study small 1 2 run.steps=2 >table 2>err || fail "study: $(cat err)"
for run in plain-optim.lr-1e-3 plain-optim.lr-0.5 plain-seed1 plain-seed2 every-step-seed1 every-step-seed2; do
    [ -f "runs/studies/small/$run/checkpoints/latest" ] || fail "no run $run: $(ls runs/studies/small)"
done
number='[0-9.]+ \+- [0-9.]+'
grep -qE "^\| plain \| optim.lr=(1e-3|0.5) \| $number \| $number \| $number \| $number \| $number \|$" table ||
    fail "no row of plain: $(cat table)"
grep -qE "^\| every step \| - \| $number \| $number \| $number \| $number \| $number \|$" table ||
    fail "no row of every step: $(cat table)"
grep -qF '| variant | tuned | accuracy, validation | cross_entropy, validation | other data |' table || fail "header: $(cat table)"

sed -i 's/kind=sinkhorn/kind=sinkhron/' jobs/configs/small.study
jobs/study small 3 run.steps=2 >table 2>err && fail "a wrong kind passed"
grep -q sinkhorn err || fail "the error names no likeness: $(cat err)"
jobs/study nothing >out 2>err && fail "a study that is not there passed"

# refused WORD LINE: such a line ends the study before it begins.
refused() {
    { echo 'variant x: small'; echo "$2"; } >jobs/configs/bad.study
    jobs/study bad 1 run.steps=1 >out 2>err && fail "passed: $2"
    grep -q "$1" err || fail "no '$1' in: $(cat err)"
}
refused 'lines begin with .* not: 2:variants y: small' 'variants y: small'
refused 'alternatives of two keys' 'variant y: small optim.lr=1|2 run.seed=1|2'
finish
