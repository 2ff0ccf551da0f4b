#!/bin/bash
# test: labels=io,mpi timeout=600
# inspect and verify: a data set, its checkpoint in two shards, the run; then everything damaged in
# turn.  Damage is exit 3 with one line, never a crash, never silence.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1

expect 0 1 data listops a.h5 preset=tiny train=60 validation=20 test=0
cat >c.yaml <<'EOF'
run: {dir: run, steps: 4, seed: 3}
data: {train: a.h5, batch: 8}
model: {layers: 2, width: 8, heads: 2, moe: {experts: 2, k: 1, router: {kind: ssr}}}
checkpoint: {every: 2, writers: 2}
EOF
expect 0 2 train c.yaml --quiet
last=run/checkpoints/step-00000004
first=run/checkpoints/step-00000002

# ---- whole ----

expect 0 1 inspect a.h5
says out 'samples      80'
says out 'train        60 samples, majority'
says out 'ladder of shortcuts by visible depth  0: '
says out 'preset: tiny'
says out '/tokens                               u8   ['
expect 0 1 inspect a.h5 --json
says out '"splits": [{"name": "train", "samples": 60, "majority": 0.'
expect 0 1 inspect run
says out 'checkpoints  2 4'
says out 'step         4'
says out "run/checkpoints/step-00000004"
says out 'model/block1/moe/w1                   f32  [2, 32, 8]'
says out '    dir: "'
expect 0 1 inspect run/checkpoints
says out 'step         4'
expect 0 1 inspect "$first"
says out 'step         2'
says out 'files        2, '
expect 0 1 inspect "$first" --json
says out '"world_size": 2, "lanes": 2'
says out '{"name": "model/head/w", "dtype": "f32", "shape": [10, 8]}'
says out "\"payload_sha256\": \"$(payload run step-00000002)\""
expect 0 1 inspect "$last/shard-00001.h5"
says out 'shard        1 of 2, complete'
expect 0 3 inspect a.h5
[ "$(grep -c '^samples' out)" -eq 1 ] || fail "inspect prints more than once under mpirun"

expect 0 1 verify a.h5
says out 'valid'
for ranks in 1 3; do
    expect 0 "$ranks" verify run
    [ "$(grep -c '^valid$' out)" -eq 2 ] || fail "verify run ($ranks ranks): $(cat out)"
    says out "payload_sha256  $(payload run)"
    says out 'shard-00001.h5'
done
expect 0 2 verify "$last"
[ "$(grep -c '^valid$' out)" -eq 1 ] || fail "verify $last: $(cat out)"

# ---- not there, or not ours ----

refuses 3 1 'nothing does not exist' inspect nothing
refuses 3 1 'there is no run, checkpoint or data set' verify nothing
refuses 3 1 'is not an HDF5 file' inspect c.yaml
refuses 3 1 'there is no checkpoint in the directory' inspect .
refuses 3 1 'name its directory' verify "$last/shard-00000.h5"
: >empty.h5
refuses 3 1 'is empty' inspect empty.h5
expect 3 1 verify empty.h5
says err 'is empty'

# ---- damaged ----

# flip FILE BYTE: one bit.
flip() {
    local old
    old=$(od -An -tu1 -j "$2" -N 1 "$1" | tr -d ' ')
    printf "$(printf '\\%03o' $((old ^ 16)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# damaged TEXT ARGUMENTS...: verify finds it, and says so on both outputs.
damaged() {
    local text=$1
    shift
    expect 3 1 verify "$@"
    says out "$text"
    grep -qx damaged out || fail "verify $* does not end in damaged"
    [ "$(grep -c '^birkhoff: error: ' err)" -eq 1 ] || fail "verify $*: $(cat err)"
}

# In the data: found by HDF5's checksum or the content's digest, wherever it is read.
size=$(stat -c %s a.h5)
tokens=$(h5dump -p -H -d /tokens a.h5 2>/dev/null | sed -n 's/.*OFFSET \([0-9]*\).*/\1/p')
for byte in 8 200 ${tokens:-$((size / 2))} $((size * 3 / 4)); do
    cp a.h5 b.h5
    flip b.h5 "$byte"
    birkhoff 1 verify b.h5
    case $? in
    3) says out damaged ;;
    0) birkhoff 1 inspect b.h5 && cp out harmed && birkhoff 1 inspect a.h5 && sed 's/^b.h5/a.h5/' harmed | cmp -s - out ||
        fail "byte $byte is changed, and nobody noticed" ;;
    *) fail "verify ends with another status when byte $byte is changed: $(cat err)" ;;
    esac
done
for bytes in 0 100 $((size / 2)) $((size - 1)); do
    head -c "$bytes" a.h5 >b.h5
    expect 3 1 verify b.h5
    refuses 3 1 'b.h5' inspect b.h5
done

# A checkpoint: every byte counts.
for byte in 8 5000 $(($(stat -c %s "$last/shard-00001.h5") - 1)); do
    cp -r "$last" copy
    flip copy/shard-00001.h5 "$byte"
    damaged 'shard-00001.h5: digest differs' copy
    says out 'shard-00000.h5  0.'
    refuses 3 1 'shard-00001.h5: digest differs' inspect copy
    rm -r copy
done
cp -r "$last" copy
truncate -s -1 copy/shard-00000.h5
rm copy/shard-00001.h5
damaged 'bytes, the manifest says' copy
says out 'shard-00001.h5 is missing'
refuses 3 1 'shard-00000.h5' inspect copy
rm -r copy
cp -r "$last" copy
flip copy/manifest.json 40
damaged 'manifest' copy
rm -r copy
cp -r "$last" copy
mv copy/shard-00000.h5 x && mv copy/shard-00001.h5 copy/shard-00000.h5 && mv x copy/shard-00001.h5
expect 3 2 verify copy
[ "$(grep -c 'finding' out)" -eq 2 ] || fail "two shards swapped: $(cat out)"
rm -r copy

# A run with a damaged newest checkpoint: both are looked at, inspect goes on with the older one.
flip "$last/shard-00000.h5" 6000
expect 3 1 verify run
[ "$(grep -cx valid out)" -eq 1 ] && [ "$(grep -cx damaged out)" -eq 1 ] || fail "verify run: $(cat out)"
says err '1 of 2 checkpoints'
expect 0 1 inspect run
says out 'step         2'
says err 'using step-00000002'
rm "$first/manifest.json"
refuses 3 1 'no checkpoint is valid' inspect run

finish
