#!/bin/bash
# Softmax attention, forward and backward: Birkhoff against PyTorch, in alternation on this machine.
#   tests/peers/attention.sh [ROUNDS]     (default 5; about one quiet minute each)
# Prints, for each shape, the median over the rounds of
# PyTorch's seconds / Birkhoff's seconds (above 1 Birkhoff is faster), and the memory of both against the length.
set -euo pipefail
rounds=${1:-5}
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"

# both KIND HEADS LENGTH WIDTH CAUSAL REPEATS
both() {
    local name="$1 H=$2 N=$3 D=$4 causal=$5" flag=
    [ "$5" = true ] && flag=--causal
    run "$name torch" $python "$here/attention.py" --heads "$2" --length "$3" --width "$4" --repeats "$6" $flag
    run "$name birkhoff" "$birkhoff" bench attention --json threads=2 warmup=1 heads="$2" length="$3" width="$4" \
        causal="$5" repeats="$6"
}

for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds" >&2
    both time 8 4096 64 false 1
    both time 8 4096 64 true 1
    for width in 16 32 64 128; do
        both time 8 1024 $width false 5
    done
done
for length in 1024 2048 4096 8192; do
    both memory 1 $length 64 false 1
done

$python - "$results" <<'END'
import json, statistics, sys
runs = {}
for line in open(sys.argv[1]):
    name, text = line[: line.index("{")].strip(), line[line.index("{"):]
    shape, who = name.rsplit(" ", 1)
    runs.setdefault(shape, {}).setdefault(who, []).append(json.loads(text))
first = next(iter(runs.values()))
print(f"PyTorch {first['torch'][0]['version']}, {first['torch'][0]['threads']} threads each; 14 N^2 D FLOP a head")
print(f"{'shape':36} {'PyTorch s':>10} {'Birkhoff s':>11} {'ratio':>6} {'of peak':>8} {'PyTorch MB':>11} {'Birkhoff MB':>12}")
median = lambda key, rows: statistics.median(r[key] for r in rows)
for shape, who in runs.items():
    t, b = who["torch"], who["birkhoff"]
    ratio = statistics.median(x["seconds"] / y["seconds"] for x, y in zip(t, b))
    print(f"{shape:36} {median('seconds', t):10.3f} {median('seconds', b):11.3f} {ratio:6.2f} {median('fraction', b):8.2f} "
          f"{median('peak_bytes', t) / 1e6:11.0f} {median('peak_bytes', b) / 1e6:12.0f}")
END
