#!/bin/bash
# test: labels=fault,mpi timeout=900
# Nothing is lost: a kill at every point of a save, of a load and of a step, and a disk that fails at every point of a
# save.  Here each point once, with ranks and modes in turn; FAULTS=all (script_faults_all.sh) goes through all of them.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1
all=${FAULTS:-}

cat >run.yaml <<'Y'
run: {seed: 3, steps: 6}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 1, width: 16, heads: 2, ffn: 32, dropout: 0.1, moe: {every: 1, experts: 4, k: 2, router: {kind: ssr}}}
optim: {lr: 0.01}
parallel: {lanes: 4, threads: 1}
checkpoint: {every: 2, keep: 2, writers: 2, async_busy: wait}
log: {interval: 1}
Y
listops_data listops.h5
expect 0 1 train run.yaml run.dir=whole
wanted=$(payload whole)
[ -n "$wanted" ] || fail 'no payload of the undisturbed run'

acknowledged() { sed -n 's/^birkhoff: saved step \([0-9]*\) .*/\1/p' "$1" | tail -n 1; }
resumed_from() { sed -n 's/^birkhoff: resuming from step \([0-9]*\) .*/\1/p' "$1" | tail -n 1; }

# whole_again RUN RANKS: the run goes on from what was acknowledged at least, and ends like the undisturbed one.
whole_again() {
    local run=$1 ranks=$2 acked=$3 from
    expect 0 "$ranks" train run.yaml run.dir="$run" || return 1
    from=$(resumed_from err)
    [ "${from:-0}" -ge "${acked:-0}" ] || fail "$run: step $acked was acknowledged, resumed from ${from:-nothing}"
    [ "$(payload "$run")" = "$wanted" ] || fail "$run: another end than the undisturbed run"
    [ -z "$(find "$run/checkpoints" -name '.*-*')" ] || fail "$run: left behind: $(ls -A "$run/checkpoints")"
    expect 0 1 verify "$run"
    rm -rf "$run"
}

# killed POINT:RANK:NTH RANKS RESUMED ASYNC
n=0
killed() {
    local point=$1 ranks=$2 resumed=$3 async=$4 run=killed.$((++n)) status
    BIRKHOFF_FAULT=${point%:*}:kill9:${point##*:} birkhoff "$ranks" train run.yaml run.dir=$run checkpoint.async="$async"
    status=$?
    [ "$status" -eq 137 ] || fail "$point on $ranks ranks, async=$async: status $status: $(tail -n 3 err)"
    whole_again $run "$resumed" "$(acknowledged err)"
}

save_points='agree stage mkdir write write_mid close digest sync vote manifest manifest_sync rename rename_sync latest retain unlink'
# Where rank 0 alone passes, and where each writing rank does (2 of them, fewer on one rank).
turn=0
for point in $save_points; do
    nth=2
    [ $point != unlink ] || nth=1
    case $point in
    agree | stage | vote) passes='0 last every' ;;
    write | write_mid | close | digest | sync) passes='0 writer every' ;;
    *) passes='0' ;;
    esac
    for ranks in 1 2 4; do
        for who in $passes; do
            for async in true false; do
                turn=$((turn + 1))
                rank=$who
                [ "$who" != every ] || rank='*'
                [ "$who" != last ] || rank=$((ranks - 1))
                [ "$who" != writer ] || rank=$((ranks / 2))
                [ "$ranks" -gt 1 ] || [ "$who" = 0 ] || continue
                # One of each three cases of a point without FAULTS=all, another one for the next point.
                [ -n "$all" ] || [ $((turn % 7)) -eq 0 ] || continue
                killed "save.$point:$rank:$nth" $ranks $((4 / ranks)) $async
            done
        done
    done
done
for point in step.forward step.backward step.reduce step.update; do
    killed $point:0:4 2 1 true
    [ -z "$all" ] || killed "$point:*:3" 4 2 false
done

# A kill while a run is being resumed changes nothing either.
BIRKHOFF_FAULT='step.forward:*:kill9:6' birkhoff 2 train run.yaml run.dir=half checkpoint.async=false
for point in load.list load.manifest load.digest load.read; do
    rm -rf loading
    cp -r half loading
    BIRKHOFF_FAULT=$point:0:kill9 birkhoff 2 train run.yaml run.dir=loading
    [ $? -eq 137 ] || fail "$point: no kill: $(tail -n 3 err)"
    whole_again loading 2 4
done

# ---- a disk that fails: the save fails as a whole, says where and why, and the training goes on ----

# fails POINT:RANK:ACTION:NTH RANKS ASYNC TEXT
fails() {
    local fault=$1 ranks=$2 async=$3 text=$4 run=failing.$((++n))
    BIRKHOFF_FAULT=$fault expect 0 "$ranks" train run.yaml run.dir=$run checkpoint.async="$async" || return 1
    [ "$(grep -c 'warning: the checkpoint of step 4 was not saved: ' err)" -eq 1 ] || fail "$fault: not one warning: $(cat err)"
    grep 'warning: the checkpoint of step 4 was not saved: ' err | grep -qF -- "$text" || fail "$fault: no '$text' in $(grep warning err)"
    [ "$(ls -A "$run/checkpoints" | tr '\n' ' ')" = 'latest step-00000002 step-00000006 ' ] || fail "$fault: $(ls -A "$run/checkpoints")"
    [ "$(payload $run)" = "$wanted" ] || fail "$fault: another end"
    rm -rf $run
}
space='No space left on device' io='Input/output error' lost='check the disk'
fails 'save.mkdir:0:enospc:2' 2 true "$space"
fails 'save.write:0:enospc:2' 1 false "$space"
fails 'save.write_mid:1:eio:2' 2 true "$io"
fails 'save.close:*:enospc:2' 4 true "$space"
fails 'save.digest:0:short:2' 1 true truncated
fails 'save.sync:1:short:2' 2 false 'is truncated'
fails 'save.sync:*:eio:2' 2 true "$io"
fails 'save.vote:0:eio:2' 2 false "$io"
fails 'save.manifest:0:enospc:2' 2 true "$space"
fails 'save.manifest_sync:0:eio:2' 1 true "$io"
fails 'save.rename:0:eio:2' 2 true "$io"
fails 'save.rename_sync:0:eio:2' 4 false "$io"
BIRKHOFF_FAULT=save.latest:0:enospc:2 expect 0 2 train run.yaml run.dir=hint # a hint only
says err "hint/checkpoints/latest): $space"
[ "$(cat hint/checkpoints/latest)" = step-00000006 ] || fail "latest: $(cat hint/checkpoints/latest)"
# Failures in a row end the run, and the last checkpoint stays.
BIRKHOFF_FAULT=save.write:0:enospc:2,save.write:0:eio:3 expect 70 2 train run.yaml run.dir=row checkpoint.failures=2
says err 'error: the checkpoint of step 6 was not saved'
whole_again row 1 2

# ---- a run that was set back saves a step again: the older checkpoint of this step or its own always stands ----

# set_back FAULT STATUS: step 6 cannot be read this once, and from step 4 another rate leads to another step 6.
set_back() {
    rm -rf back
    cp -r whole back
    BIRKHOFF_FAULT=load.digest:0:eio$1 birkhoff 2 train run.yaml run.dir=back optim.lr=0.02 checkpoint.failures=1
    status=$?
    [ $status -eq "$2" ] || fail "set back$1: status $status, not $2: $(tail -n 3 err)"
    [ "$(resumed_from err)" = 4 ] || fail "not set back: $(cat err)"
}
# stands PAYLOAD: of step 6, which a restart finds and leaves alone.
stands() {
    expect 0 1 train run.yaml run.dir=back optim.lr=0.02
    [ "$(resumed_from err)" = 6 ] || fail "not from step 6: $(cat err)"
    [ "$(payload back)" = "$1" ] || fail "set back: another step 6 than expected: $(ls -A back/checkpoints)"
    [ "$(ls -A back/checkpoints | tr '\n' ' ')" = 'latest step-00000004 step-00000006 ' ] || fail "set back: $(ls -A back/checkpoints)"
    expect 0 1 verify back
}
set_back '' 0
own=$(payload back)
[ "$own" != "$wanted" ] || fail 'the run that was set back ended the same'
stands "$own"
for point in manifest_sync aside rename; do
    set_back ,save.$point:0:kill9 137
    stands "$wanted"
done
for point in rename_sync unlink latest retain; do
    set_back ,save.$point:0:kill9 137
    stands "$own"
done
for point in aside rename rename_sync; do
    set_back ,save.$point:0:eio 70
    stands "$wanted"
done

# ---- below HDF5: calls of the system fail in files whose path has a text ----
if [ -f "${BIRKHOFF_SHIM_LIBRARY:-}" ]; then
    runtime=$(ldd "$BIRKHOFF" | awk '/lib[a-z]*san\.so/ { printf "%s:", $3 }') # of a sanitizer, which must come first
    shim() { # CALL:ERROR:TEXT:NTH ARGUMENTS...
        LD_PRELOAD=$runtime$BIRKHOFF_SHIM_LIBRARY BIRKHOFF_SHIM=$1 birkhoff 1 train run.yaml run.dir=below "${@:2}"
        status=$?
    }
    for call in write:enospc write:eio fsync:eio; do
        rm -rf below
        shim $call:step-00000004:1 checkpoint.writers=1
        [ $status -eq 0 ] || fail "$call below the library: status $status: $(cat err)"
        grep 'warning: the checkpoint of step 4 was not saved: ' err | grep -qE "$space|$io" || fail "$call: $(grep warning err)"
        [ "$(payload below)" = "$wanted" ] || fail "$call below the library: another end"
    done
    rm -rf below
    shim write:short:step-00000004:1 checkpoint.writers=1 # a short write is no error: the rest follows
    [ $status -eq 0 ] && [ -d below/checkpoints/step-00000004 ] || fail "a short write: status $status: $(cat err)"
    expect 0 1 verify below
fi

# ---- a file system that is too small ----
if [ "$(id -u)" -eq 0 ] && mkdir small && mount -t tmpfs -o size=400k tmpfs small 2>/dev/null; then
    birkhoff 2 train run.yaml run.dir=small/run checkpoint.failures=100 model.width=32
    status=$?
    grep -q "$space" err || fail "a full disk: $(cat err)"
    [ $status -eq 70 ] || fail "a full disk at the end: status $status"
    cp -r small/run grown && umount small
    expect 0 1 train run.yaml run.dir=grown model.width=32
    expect 0 1 train run.yaml run.dir=large model.width=32
    same_payload=$(payload large)
    [ "$(payload grown)" = "$same_payload" ] || fail 'after the full disk: another end'
fi

# ---- what cannot be listed is not empty, and a fault that does not exist is refused ----
BIRKHOFF_FAULT=load.list:0:eio refuses 3 2 'the checkpoints cannot be listed' train run.yaml run.dir=half
BIRKHOFF_FAULT=save.nothing:0:kill9 refuses 2 2 'there is no such point' train run.yaml run.dir=other
BIRKHOFF_FAULT=save.write:0:explode refuses 2 1 'there is no such action' train run.yaml run.dir=other
finish
