#!/bin/bash
# A training step of the 124M GPT-2 layout: Birkhoff against PyTorch 1.13.1, in alternation on this machine.
#   tests/peers/gpt2_step.sh [ROUNDS]     (default 5; about two quiet minutes each)
# Prints the median over the rounds of Birkhoff's seconds / PyTorch's seconds for each library and split of the two
# cores; below 1 Birkhoff is faster.  The second ratio is of processor seconds, which other programs on the machine
# disturb less.
set -euo pipefail
rounds=${1:-5}
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"

step="bench step layout=gpt2 batch=4 length=256 warmup=1 repeats=3 --json"
for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds" >&2
    run pytorch $python "$here/gpt2_step.py" --threads 2 --warmup 1 --repeats 3
    for library in onednn cblas; do
        run "$library 1x2" "$birkhoff" $step gemm=$library parallel.threads=2
        run "$library 2x1" mpirun -n 2 --bind-to core "$birkhoff" $step gemm=$library parallel.threads=1
    done
done

$python - "$results" <<'END'
import json, statistics, sys
runs = {}
for line in open(sys.argv[1]):
    name, text = line[: line.index("{")].strip(), line[line.index("{"):]
    runs.setdefault(name, []).append(json.loads(text))
torch = runs.pop("pytorch")
median = lambda key, rows: statistics.median(r[key] for r in rows)
print(f"PyTorch {torch[0]['version']}, 2 threads: {median('seconds', torch):.2f} s a step, "
      f"{median('peak_bytes', torch) / 1e9:.2f} GB")
print(f"{'ranks x threads':16} {'library':40} {'s a step':>9} {'ratio':>7} {'cpu ratio':>10} {'of peak':>8} {'GB a rank':>10}")
for name, rows in runs.items():
    ratio = {key: statistics.median(r[key] / t[key] for r, t in zip(rows, torch)) for key in ("seconds", "cpu_seconds")}
    print(f"{name.split()[1]:16} {rows[0]['library'][:40]:40} {median('seconds', rows):9.2f} {ratio['seconds']:7.3f} "
          f"{ratio['cpu_seconds']:10.3f} {median('fraction', rows):8.2f} {median('peak_bytes', rows) / 1e9:10.2f}")
END
