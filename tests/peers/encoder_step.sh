#!/bin/bash
# A training step of a small encoder (4 layers, width 256, 4 heads, ffn 1024, 8 texts of 1024 bytes): Birkhoff
# against PyTorch, in alternation on this machine.
#   tests/peers/encoder_step.sh [ROUNDS]     (default 5; a quarter of a quiet minute each)
# Prints the median over the rounds of
# PyTorch's seconds / Birkhoff's seconds (above 1 Birkhoff is faster); the second ratio is of processor seconds,
# which other programs on the machine disturb less.
set -euo pipefail
rounds=${1:-5}
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
birkhoff=$(realpath "$birkhoff")

work=$(mktemp -d)
trap 'rm -rf "$work" "$results"' EXIT

# Texts of random letters, all of the same length: no padding on either side.
$python - >"$work/texts.tsv" <<'END_OF_TEXTS'
import random
random.seed(1)
print("Source\tTarget")
for i in range(48):
    print("".join(random.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(1024)), i % 2, sep="\t")
END_OF_TEXTS
"$birkhoff" data text "$work/texts.tsv" "$work/texts.h5" >"$work/log"
cat >"$work/encoder.yaml" <<'END_OF_CONFIGURATION'
run: {dir: none}
data: {train: texts.h5, batch: 8}
model: {kind: encoder, layers: 4, width: 256, heads: 4, ffn: 1024}
END_OF_CONFIGURATION

step="bench step config=$work/encoder.yaml warmup=1 repeats=1 --json"
for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds" >&2
    run pytorch $python "$here/encoder_step.py" --threads 2 --warmup 1 --repeats 1
    run 1x2 "$birkhoff" $step parallel.threads=2
    run 2x1 mpirun -n 2 --bind-to core "$birkhoff" $step parallel.threads=1
done

$python - "$results" <<'END'
import json, statistics, sys
runs = {}
for line in open(sys.argv[1]):
    name, text = line.split(" ", 1)
    runs.setdefault(name, []).append(json.loads(text))
torch = runs.pop("pytorch")
median = lambda key, rows: statistics.median(r[key] for r in rows)
print(f"PyTorch {torch[0]['version']}, 2 threads: {median('seconds', torch):.2f} s a step, "
      f"{torch[0]['parameters']} parameters, {median('peak_bytes', torch) / 1e9:.2f} GB")
print(f"{'ranks x threads':16} {'library':40} {'s a step':>9} {'ratio':>7} {'cpu ratio':>10} {'of peak':>8} {'GB a rank':>10}")
for name, rows in runs.items():
    ratio = {key: statistics.median(t[key] / r[key] for r, t in zip(rows, torch)) for key in ("seconds", "cpu_seconds")}
    print(f"{name:16} {rows[0]['library'][:40]:40} {median('seconds', rows):9.2f} {ratio['seconds']:7.2f} "
          f"{ratio['cpu_seconds']:10.2f} {median('fraction', rows):8.2f} {median('peak_bytes', rows) / 1e9:10.2f}")
END
