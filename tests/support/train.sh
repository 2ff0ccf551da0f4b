# tests/support/train.sh - training runs for script tests: small configurations, jobs in the background, and what two
# runs must have in common.  Source lib.sh first.

# listops_data FILE [TRAIN VALIDATION]: a small data set, of so many samples.
listops_data() {
    expect 0 1 data listops "$1" preset=tiny train="${2:-200}" validation="${3:-40}" test=20 || exit 1
}

# start RANKS ARGUMENTS...: birkhoff in the background under mpirun, which is $job; its output in ./job.out.  A request
# to stop that comes before the program looks for one is ignored, as in the job scripts.
start() {
    local ranks=$1
    shift
    # shellcheck disable=SC2016
    mpirun --oversubscribe -n "$ranks" bash -c 'trap "" USR1; exec "$0" "$@"' "$BIRKHOFF" "$@" >job.out 2>&1 </dev/null &
    job=$!
    wait_until has_ranks "$ranks"
}

has_ranks() { [ "$(children "$job" | wc -w)" -ge "$1" ]; }

# children PID: the processes that it started; under mpirun on one machine these are the ranks, rank 0 first.
children() {
    cat "/proc/$1"/task/*/children 2>/dev/null
}

# wait_until COMMAND...: tries again until it succeeds; gives up when the job has ended, or after a minute.
wait_until() {
    local i
    for ((i = 0; i < 1200; i++)); do
        "$@" && return 0
        kill -0 "$job" 2>/dev/null || { "$@" && return 0; break; }
        sleep 0.05
    done
    fail "never: $* ($(tail -n 3 job.out))"
    return 1
}

# ended: waits for $job; its exit status in $status.
ended() {
    wait "$job" 2>/dev/null
    status=$?
}

# kill_job: mpirun and all ranks at once, with no chance to react.
kill_job() {
    local ranks
    ranks=$(children "$job")
    # shellcheck disable=SC2086
    kill -9 "$job" $ranks 2>/dev/null
    ended
}

# values RUN [FROM]: the lines of metrics.jsonl of steps above FROM without what depends on the clock or the ranks.
values() {
    sed -E 's/"(tokens_per_second|seconds|model_flops_utilization|route|exchange|gemm|pack|combine|rank_load_max_over_mean|bytes_sent|messages_sent|seconds_blocked|teacher_wait|peak_bytes)": [^,}]*(, )?//g' \
        "$1/metrics.jsonl" | awk -v from="${2:-0}" -F '[:,]' '$2 > from'
}

# same_run A B: equal parameters and moments at the end, equal values in the metrics.
same_run() {
    [ -n "$(payload "$1")" ] && [ "$(payload "$1")" = "$(payload "$2")" ] || fail "the payloads of $1 and $2 differ"
    values "$1" >a.values
    values "$2" >b.values
    cmp -s a.values b.values || fail "the metrics of $1 and $2 differ: $(diff a.values b.values | head -n 4)"
}

# number RUN STEP KEY: of the training line of that step.
number() {
    sed -nE "s/^\{\"step\": $2, \"split\": \"train\".* ?\"$3\": ([^,}]*).*/\1/p" "$1/metrics.jsonl"
}

# close_at STEP A B KEY...: relative difference at most 1e-5.
close_at() {
    local step=$1 a=$2 b=$3 key x y
    shift 3
    for key; do
        x=$(number "$a" "$step" "$key")
        y=$(number "$b" "$step" "$key")
        awk -v x="$x" -v y="$y" 'BEGIN { d = x - y; d = d < 0 ? -d : d; exit !(x != "" && y != "" && d <= 1e-5 * (y < 0 ? -y : y)) }' ||
            fail "$key at step $step: $x in $a, $y in $b"
    done
}

# same_over_ranks CONFIG STEP "KEY..." ARGUMENTS...: holds other ways to train against the run `one`, that of CONFIG on one
# rank, whose last line is that of STEP: on 2 and 4 ranks with the arguments, on 3 by the keys, and what was killed behind
# the last checkpoint but one on 2 ranks and goes on with 4.
same_over_ranks() {
    local config=$1 step=$2 keys=$3 ranks
    shift 3
    for ranks in 2 4; do
        expect 0 $ranks train "$config" run.dir=many.$ranks "$@"
        same_run many.$ranks one
    done
    expect 0 3 train "$config" run.dir=three
    # shellcheck disable=SC2086
    close_at "$step" three one $keys

    expect 0 2 train "$config" run.dir=again
    rm -rf "again/checkpoints/$(newest again)" again/checkpoints/latest
    expect 0 4 train "$config" run.dir=again
    says err 'resuming from step'
    [ "$(payload again)" = "$(payload one)" ] || fail "another end after a resume"
}
