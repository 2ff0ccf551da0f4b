#!/bin/bash
# test: labels=fault,mpi timeout=300
# A rank that stands still ends the job with 76 and is named, and the run goes on from its last checkpoint; a run that
# works raises no alarm.  Ranks that wait for each other; ranks whose calls differ.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1
tests=$(dirname "$BIRKHOFF")/tests

cat >run.yaml <<'Y'
run: {seed: 3, steps: 1000000}
data: {train: listops.h5, batch: 8}
model: {kind: encoder, layers: 1, width: 16, heads: 2, ffn: 32, dropout: 0.1}
optim: {lr: 0.01}
schedule: {kind: constant}
parallel: {lanes: 4, threads: 1}
checkpoint: {every: 300}
log: {interval: 1}
Y
listops_data listops.h5
is_saved() { [ -f "$1/checkpoints/latest" ]; }
rank_pid() { children "$job" | awk -v rank="$1" '{ print $(rank + 1) }'; }

# one_line FILE TEXT: FILE has one error line, and it matches TEXT (an extended expression).
one_line() {
    [ "$(grep -c '^birkhoff: error: ' "$1")" -eq 1 ] || fail "not one error line: $(cat "$1")"
    grep -qE "^birkhoff: error: $2" "$1" || fail "no '$2' in $(cat "$1")"
}

# ---- one rank is stopped while all train ----
for case in '2 1' '4 0' '4 2'; do
    ranks=${case% *}
    stopped=${case#* }
    run=stopped-$ranks-$stopped
    start "$ranks" train run.yaml run.dir="$run" run.stall_seconds=4
    wait_until is_saved "$run"
    kill -STOP "$(rank_pid "$stopped")"
    ended
    [ "$status" -eq 76 ] || fail "$run: status $status, not 76: $(cat job.out)"
    one_line job.out "rank $stopped on node .* stands in [a-z]+( of [a-z0-9]+)?, step [0-9]+, for [0-9]+ s.* \(its process does not run\); ranks? .* \(.*$run/stall\): see the backtraces there"
    for ((rank = 0; rank < ranks; rank++)); do
        [ -s "$run/stall/rank-$rank.state" ] || fail "$run: no state of rank $rank"
        [ "$rank" -eq "$stopped" ] || grep -q '^rank .* since 1970: phase ' "$run/stall/rank-$rank.txt" ||
            fail "$run: no backtrace of rank $rank"
    done
    cmp -s <(grep '^birkhoff: error: ' job.out) "$run"/stall/found-*.txt || fail "$run: the finding was not kept"
done

# ---- the run goes on, asked in between where it stands, and no alarm is raised ----
expect 0 2 train run.yaml run.dir=stopped-2-1 run.steps="$(($(newest stopped-2-1 | sed -E 's/step-0*//') + 5))"
says err 'resuming from step'
start 2 train run.yaml run.dir=asked run.stall_seconds=60
wait_until is_saved asked
kill -USR2 "$(rank_pid 1)"
answered() { grep -q '^rank 1, .* phase ' asked/stall/rank-1.txt 2>/dev/null; }
wait_until answered
kill -USR1 "$job"
ended
[ "$status" -eq 75 ] || fail "a run that was asked ended with $status: $(cat job.out)"
grep -q 'nothing moves' job.out && fail "an alarm: $(cat job.out)"
ls asked/stall/found-* 2>/dev/null && fail 'a run that works was found at fault'
expect 2 1 train run.yaml run.dir=asked run.stall_seconds=86401

# job NAME RANKS ARGUMENT...: a test program under mpirun; its status in $status, what it said in ./err.
job() {
    local name=$1 ranks=$2
    shift 2
    mpirun --oversubscribe -n "$ranks" "$tests/$name" "$@" >out 2>err </dev/null
    status=$?
}

# ---- a rank that sleeps; ranks in different calls, which MPI alone would let wait for ever ----
mkdir stall
job test_watchdog 3 asleep "$PWD/stall"
[ "$status" -eq 76 ] || fail "asleep: status $status: $(cat err)"
one_line err 'rank 2 on node .* stands in agree, step 1, for [0-9]+ s; ranks 0 1 wait in barrier [0-9]+ on loss \(0 B\)'
rm -r stall
mkdir stall
job test_watchdog 3 apart "$PWD/stall"
[ "$status" -eq 76 ] || fail "apart: status $status: $(cat err)"
one_line err 'no rank goes on for [0-9]+ s; rank 0 waits in barrier [0-9]+ on route \(0 B\); ranks 1 2 wait in barrier [0-9]+ on loss'

# ---- calls in another order that MPI lets pass: named at the next agreement ----
job test_trace 3 mismatch
[ "$status" -eq 70 ] || fail "mismatch: status $status: $(cat err)"
one_line err 'rank 2 makes other collective calls than rank 0 \(call [0-9]+: broadcast on route, 8 bytes; on rank 0: broadcast on loss, 8 bytes\)'
grep -q '^birkhoff: rank 2, call [0-9]*: broadcast on loss, 8 bytes' err || fail "the calls are not listed: $(cat err)"
grep -q '^birkhoff: rank [013],' err && fail "calls of a rank that does not differ: $(cat err)"
finish
