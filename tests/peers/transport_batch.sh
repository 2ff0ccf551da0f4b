#!/bin/bash
# Many small Sinkhorn problems: Birkhoff against PyTorch in three forms, in alternation on this machine, from the same
# scores.
#   tests/peers/transport_batch.sh [ROUNDS] [key=value ...]   (default 5, some seconds each; keys problems, n,
#                                                              half_steps, spread, threads)
# Prints for each form the median over the rounds of PyTorch's seconds / Birkhoff's seconds; above 1 Birkhoff is faster.
# The second ratio is of processor seconds, which other programs on the machine disturb less.  Then the difference of
# the norms of all plans.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rounds=5
case ${1:-} in [0-9]*) rounds=$1; shift ;; esac
. "$here/common.sh"

declare -A key=([problems]=100000 [n]=16 [half_steps]=5 [spread]=4 [threads]=2)
take_keys "$@"

for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds" >&2
    for form in potentials scaling vectors; do
        run $form $python "$here/transport_batch.py" --form $form "${theirs[@]}"
        run birkhoff "$birkhoff" bench transport_batch --json "${ours[@]}"
    done
done

$python - "$results" "${ours[*]}" <<'END'
import json, statistics, sys
runs = {}
for line in open(sys.argv[1]):
    name, text = line.split(" ", 1)
    runs.setdefault(name, []).append(json.loads(text))
own = runs.pop("birkhoff")
median = lambda key, rows: statistics.median(r[key] for r in rows)
print(f"transport_batch, {sys.argv[2]}, {len(own) // len(runs)} rounds, PyTorch {runs['potentials'][0]['version']}")
print(f"{'Birkhoff':20} {1e3 * median('seconds', own):8.1f} ms  {1e3 * median('cpu_seconds', own):8.1f} cpu ms  "
      f"{median('fraction', own):.2f} of a copy")
for k, (form, rows) in enumerate(runs.items()):
    beside = own[k::len(runs)]
    print(f"{'PyTorch, ' + form:20} {1e3 * median('seconds', rows):8.1f} ms  {1e3 * median('cpu_seconds', rows):8.1f} cpu ms")
    for key, name in ("seconds", "ratio"), ("cpu_seconds", "cpu ratio"):
        ratios = sorted(t[key] / o[key] for t, o in zip(rows, beside))
        print(f"{'  ' + name:20} {statistics.median(ratios):8.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"{'  difference':20} {abs(rows[0]['norm'] / own[0]['norm'] - 1):8.1e}")
END
