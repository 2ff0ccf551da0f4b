#!/bin/bash
# The SinKD loss and its gradient on 256 rows of 50,257 classes: Birkhoff against PyTorch 1.13.1, in alternation on this
# machine, from the same logits.
#   tests/peers/sinkd.sh [ROUNDS] [key=value ...]   (default 5, about half a quiet minute each; keys rows, vocabulary,
#                                                    epsilon, iterations, threads)
# PyTorch normalises the plan in the direct form, its faster one.  Prints the median over the rounds of PyTorch's
# seconds / Birkhoff's seconds; above 1 Birkhoff is faster.  The second ratio is of processor seconds, which other
# programs on the machine disturb less.  Then the difference of the two losses.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rounds=5
case ${1:-} in [0-9]*) rounds=$1; shift ;; esac
. "$here/common.sh"

declare -A key=([rows]=256 [vocabulary]=50257 [epsilon]=0.1 [iterations]=20 [threads]=2)
take_keys "$@"

for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds" >&2
    run pytorch $python "$here/sinkd.py" "${theirs[@]}"
    run birkhoff "$birkhoff" bench sinkd --json warmup=1 repeats=3 "${ours[@]}"
done

$python - "$results" "${ours[*]}" <<'END'
import json, statistics, sys
runs = {"pytorch": [], "birkhoff": []}
for line in open(sys.argv[1]):
    name, text = line.split(" ", 1)
    runs[name].append(json.loads(text))
torch, own = runs["pytorch"], runs["birkhoff"]
median = lambda key, rows: statistics.median(r[key] for r in rows)
print(f"sinkd, loss and gradient, {sys.argv[2]}, {len(own)} rounds")
for name, rows in (f"PyTorch {torch[0]['version']}", torch), ("Birkhoff", own):
    print(f"{name:20} {median('seconds', rows):8.3f} s  {median('cpu_seconds', rows):8.3f} cpu s  loss {rows[0]['loss']:.9f}")
print(f"{'of the limit':20} {median('fraction', own):8.2f}  ({median('rate', own) / 1e9:.1f} of "
      f"{median('limit', own) / 1e9:.1f} G elements/s)")
for key, name in ("seconds", "ratio"), ("cpu_seconds", "cpu ratio"):
    ratios = sorted(t[key] / o[key] for t, o in zip(torch, own))
    print(f"{name:20} {statistics.median(ratios):8.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})")
print(f"{'difference of loss':20} {abs(own[0]['loss'] / torch[0]['loss'] - 1):8.1e}")
END
