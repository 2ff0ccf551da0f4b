# tests/support/lib.sh - what the script tests share.  A script begins with
#   . "$BIRKHOFF_SOURCE/tests/support/lib.sh"
# works in a directory of its own that is removed at the end, and ends with `finish`.
set -u
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0

fail() {
    echo "FAILED: $*"
    failures=$((failures + 1))
}

# The test cannot run here: says why; CTest counts it as skipped.
skip() {
    echo "skipped: $*"
    exit 77
}

finish() {
    [ "$failures" -eq 0 ] || exit 1
    exit 0
}

# birkhoff RANKS ARGUMENTS...: its exit status; standard output in ./out, standard error in ./err.
birkhoff() {
    local ranks=$1
    shift
    if [ "$ranks" -eq 1 ]; then
        "$BIRKHOFF" "$@" >out 2>err </dev/null
    else
        mpirun --oversubscribe -n "$ranks" "$BIRKHOFF" "$@" >out 2>err </dev/null
    fi
}

# expect STATUS RANKS ARGUMENTS...: runs birkhoff and holds the status against the one expected.
expect() {
    local wanted=$1 status
    shift
    birkhoff "$@"
    status=$?
    [ "$status" -eq "$wanted" ] && return 0
    fail "status $status, not $wanted: birkhoff (${1} ranks) ${*:2}"
    sed 's/^/    /' out err
    return 1
}

# refuses STATUS RANKS TEXT ARGUMENTS...: one error line that holds TEXT, and nothing on standard output.
refuses() {
    local wanted=$1 ranks=$2 text=$3 lines
    shift 3
    expect "$wanted" "$ranks" "$@" || return 1
    lines=$(grep -c '^birkhoff: error: ' err)
    [ "$lines" -eq 1 ] || fail "$lines error lines, not 1: birkhoff ${*}: $(cat err)"
    grep '^birkhoff: error: ' err | grep -qF -- "$text" || fail "no '$text' in the error of birkhoff ${*}: $(cat err)"
    [ ! -s out ] || fail "an error, yet results on standard output: birkhoff ${*}"
}

# says FILE TEXT: FILE (out or err) holds TEXT.
says() {
    grep -qF -- "$2" "$1" || fail "no '$2' in $1: $(head -c 600 "$1")"
}

# newest RUN: its newest committed checkpoint; `latest` is a hint only, and a kill may leave it one behind.
newest() { find "$1/checkpoints" -name 'step-*' -printf '%f\n' | sort | tail -n 1; }

# payload RUN [STEP]: digest of all parameters and moments of the newest checkpoint (or of a step).
payload() {
    local step=${2:-$(newest "$1")}
    sed -n 's/.*"payload_sha256": *"\([0-9a-f]*\)".*/\1/p' "$1/checkpoints/$step/manifest.json"
}
