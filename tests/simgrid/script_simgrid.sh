#!/bin/bash
# test: labels=simgrid timeout=300
# The sources of dist/ on simulated ranks: bytes and messages are those of the formulas, and the simulated time of a step
# lies within 5 % of the formula (dense; 10 % with experts, whose exchanges meet in the switches).  Simulated
# time is the same on every machine.
program=$PWD/tests/simgrid/simulate
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
command -v smpirun >/dev/null || skip 'smpirun is not installed: apt-get install libsimgrid-dev'
[ -x "$program" ] || skip 'built without smpicc: configure again'

simulate() { # RANKS KEY=VALUE...
    bash "$BIRKHOFF_SOURCE/tests/simgrid/simulate.sh" "$program" "$@" >out || fail "simulate $*: $(cat out)"
}
value() { sed -nE "s/.*\"$1\": ([^,}]*).*/\\1/p" out; }
equal() { [ "$(value "$1")" = "$2" ] || fail "$1 is $(value "$1"), not $2: $(cat out)"; }
within() { # PERCENT: seconds against the formula
    awk -v t="$(value seconds)" -v f="$(value bound)" -v p="$1" 'BEGIN { exit !(f > 0 && t >= f * (1 - p / 100) && t <= f * (1 + p / 100)) }' ||
        fail "$(value seconds) s, $(value bound) s by the formula: $(cat out)"
}

# 124,439,808 parameters, no padding at 8 lanes; the embedding's second use is reduced too, not gathered.
parameters=124439808 embedding=$((50257 * 768))
simulate 8 steps=2
equal buckets 51
equal parameters $parameters
equal gather_bytes $((4 * parameters * 7 / 8))
equal reduce_bytes $((4 * (parameters + embedding) * 7 / 8))
equal reduce_messages $((51 * 3))
equal gather_messages $((50 * 3))
equal agree_messages 1
within 5
overlapped=$(value seconds)
simulate 8 steps=1 overlap=0
within 5
awk -v a="$overlapped" -v b="$(value seconds)" 'BEGIN { exit !(b > a + 0.02) }' || fail "overlap saves nothing: $overlapped, $(value seconds)"
again=$(value seconds)
simulate 8 steps=1 overlap=0
equal seconds "$again"

# Any other number of ranks reduces through MPI.
simulate 3 steps=1
equal reduce_messages 51
equal reduce_bytes "$(value reduce_formula)"

# Two experts for each of 4,096 tokens, 4 of 8 ranks hold them: 6 layers, 4 exchanges of rows each, and the counts.
simulate 8 steps=2 experts=16 expert=4
rows=$((4096 * 2 * 3 / 4))
equal expert_bytes $((6 * (4 * rows * 768 * 4 + 4 * 4 * 3 + 8)))
equal expert_messages $((6 * 6))
equal reduce_bytes "$(value reduce_formula)"
equal gather_bytes "$(value gather_formula)"
within 10
at_once=$(value seconds)

# In four chunks the same bytes travel beside the experts' work.
simulate 8 steps=1 experts=16 expert=4 chunks=4
equal expert_bytes $((6 * (4 * rows * 768 * 4 + 4 * 4 * 3 + 8)))
equal expert_messages $((6 * (2 + 4 * 4)))
within 10
awk -v a="$(value seconds)" -v b="$at_once" 'BEGIN { exit !(a < b - 0.01) }' || fail "chunks save nothing: $(value seconds), $at_once"
finish
