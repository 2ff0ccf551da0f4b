#!/bin/bash
# test: labels=unit,mpi timeout=300
# Glyphs in stripes are learnt with every attention kind; log.probe writes the same figures on any ranks; report draws
# them, and jobs/table sums runs up.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1

expect 0 1 data images glyphs.h5 glyphs=true layout=stripes train=2000 test=20 validation=200
cat >run.yaml <<'Y'
run: {dir: run, seed: 1, steps: 270, stop_margin: 0.25}
data: {train: glyphs.h5, batch: 20}
model: {kind: encoder, layers: 2, width: 32, heads: 2, ffn: 32, pool: cls}
optim: {lr: 0.002, weight_decay: 0, clip: 0}
schedule: {kind: drop, at: "180", factor: 0.1}
parallel: {lanes: 4, threads: 1}
log: {interval: 30, eval_interval: 90, probe: 6}
Y
for ranks in 1 2; do expect 0 $ranks train run.yaml run.dir=run$ranks; done
same_run run1 run2
grep -q '"lr": 0.002,' run1/metrics.jsonl && grep -q '"lr": 0.0002,' run1/metrics.jsonl || fail 'the rate does not drop'

learns() { # RUN: better than three times chance
    sed -n 's/.*"accuracy": \([0-9.]*\).*/\1/p' "$1/metrics.jsonl" | tail -n 1 | awk '{ exit !($1 > 0.3) }' ||
        fail "$1 is not better than three times chance: $(tail -n 1 "$1/metrics.jsonl")"
}
learns run1
for kind in $(sed -n 's/^ATTENTION(\(.*\))$/\1/p' "$BIRKHOFF_SOURCE/models/attention/kinds.def"); do
    expect 0 1 train run.yaml run.dir="$kind" model.layers=1 model.attention.kind="$kind"
    learns "$kind"
    grep -q '"probe": \[{"layer": 0, "birkhoff_distance": [0-9]' "$kind/metrics.jsonl" || fail "$kind shows no matrix"
done
[ "$(grep -c '"probe": \[{"layer": 0, "birkhoff_distance": ' run1/metrics.jsonl)" -eq 3 ] || fail 'not a probe an evaluation'
# 7 stripes and the class position: as many eigenvalues
probe=$(grep '"probe"' run1/metrics.jsonl | tail -n 1)
[ "$(grep -o '"eigenvalues": \[[^]]*' <<<"$probe" | head -n 1 | tr -cd , | wc -c)" -eq 7 ] || fail "eigenvalues: $probe"
[ "$(grep -o '"layer": ' <<<"$probe" | wc -l)" -eq 2 ] || fail "layers: $probe"
# more samples than the split has, ranks that do not divide the lanes
expect 0 3 train run.yaml run.dir=run3 run.steps=1 log.probe=1000
grep -q '"probe": \[{"layer": 0, "birkhoff_distance": 0\.' run3/metrics.jsonl || fail 'no probe on 3 ranks'

expect 0 1 report run1 out.svg
[ "$(grep -c '^<svg' out.svg)" -eq 1 ] || fail 'no SVG'
for word in '>loss<' '>accuracy<' 'doubly stochastic' 'moduli' '>layer 1<' '>step 90<' '>step 270<'; do
    says out.svg "$word"
done
expect 0 2 report run2 out2.svg # once, whatever the launcher starts
sed 's/run2/run1/' out2.svg | cmp -s - out.svg || fail 'equal runs give different reports'
sed 's/, "probe": \[.*\], "seconds"/, "seconds"/' run1/metrics.jsonl >metrics && mkdir plain && mv metrics plain/metrics.jsonl
expect 0 1 report plain plain.svg
grep -q stochastic plain.svg && fail 'panels without points'

JUMP=0.2 bash "$BIRKHOFF_SOURCE/jobs/table" validation both=run1,run2 >out 2>err
grep -qE '^both .* 0\.0000 +0\.[0-9]+ .* 2 of 2 \([123]\.0\)$' out || fail "the table: $(cat out err)"

refuses 2 1 'RUN_DIR OUT.svg' report run1
refuses 3 1 'nowhere/metrics.jsonl' report nowhere out3.svg
refuses 2 1 'nowhere/out.svg' report run1 nowhere/out.svg
mkdir torn && printf '{"step": 1, "split": "train", "loss": 1}\nnonsense\n' >torn/metrics.jsonl
refuses 3 1 'byte 41' report torn out3.svg
: >torn/metrics.jsonl
refuses 3 1 'nothing to draw' report torn out3.svg
[ ! -e out3.svg ] || fail 'written in spite of errors'
finish
