#!/bin/bash
# A training step of the 124M GPT-2 layout, batch 4 x 256: Birkhoff against PyTorch 1.13.1, in alternation on this
# machine, in fp32 and in bf16 (autocast there, run.precision here).
#   tests/peers/gpt2_step.sh [ROUNDS] [fp32|bf16 ...]     (default 5, both; about a quiet minute each)
# Prints the median over the rounds of PyTorch's seconds / Birkhoff's seconds; above 1 Birkhoff is faster.  The second
# ratio is of processor seconds, which other programs on the machine disturb less; the third of peak resident memory.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rounds=5
case ${1:-} in [0-9]*) rounds=$1; shift ;; esac
. "$here/common.sh"

precisions=("$@")
[ $# -gt 0 ] || precisions=(fp32 bf16)
step="bench step layout=gpt2 batch=4 length=256 warmup=1 repeats=3 --json"
for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds" >&2
    for p in "${precisions[@]}"; do
        run "$p pytorch" $python "$here/gpt2_step.py" --threads 2 --warmup 1 --repeats 3 --precision "$p"
        run "$p 1x2" "$birkhoff" $step run.precision="$p" parallel.threads=2
        run "$p 2x1" mpirun -n 2 --bind-to core "$birkhoff" $step run.precision="$p" parallel.threads=1
    done
done

$python - "$results" <<'END'
import json, statistics, sys
runs = {}
for line in open(sys.argv[1]):
    name, text = line[: line.index("{")].strip(), line[line.index("{"):]
    runs.setdefault(name, []).append(json.loads(text))
median = lambda key, rows: statistics.median(r[key] for r in rows)
print(f"{'':26} {'s a step':>9} {'ratio':>18} {'cpu ratio':>10} {'memory':>7} {'of limit':>9} {'GB a rank':>10}")
for name, rows in runs.items():
    precision, _, rest = name.partition(" ")
    torch = runs[precision + " pytorch"]
    ratios = lambda key: sorted(t[key] / r[key] for r, t in zip(rows, torch))
    label = f"{precision} PyTorch {torch[0]['version']}" if rest == "pytorch" else f"{precision} {rest} {rows[0]['library'].split()[0]}"
    text = f"{label:26} {median('seconds', rows):9.3f}"
    if rest != "pytorch":
        wall = ratios("seconds")
        text += (f" {statistics.median(wall):6.2f} ({wall[0]:.2f}-{wall[-1]:.2f}) {statistics.median(ratios('cpu_seconds')):10.2f}"
                 f" {1 / statistics.median(ratios('peak_bytes')):7.2f} {median('fraction', rows):9.2f}")
    else:
        text += " " * 47
    print(f"{text} {median('peak_bytes', rows) / 1e9:10.2f}")
END
