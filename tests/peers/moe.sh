#!/bin/bash
# A mixture-of-experts layer, forward and backward: Birkhoff against a loop over the experts in PyTorch, in alternation
# on this machine (4,096 tokens, width 512, 8 experts of hidden width 2,048, top-2).
#   tests/peers/moe.sh [ROUNDS] [key=value ...]     (default 5; keys tokens, width, hidden, experts, k, threads)
# Prints the median over the rounds of PyTorch's seconds / Birkhoff's seconds; above 1 Birkhoff is faster.  The second
# ratio is of processor seconds, which other programs on the machine disturb less.
set -euo pipefail
rounds=5
case ${1:-} in [0-9]*) rounds=$1; shift ;; esac
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"

keys=(tokens=4096 width=512 hidden=2048 experts=8 k=2 threads=2 warmup=2 repeats=3 "$@")
flags=()
for key in "${keys[@]}"; do
    flags+=("--${key%%=*}" "${key#*=}")
done
for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds" >&2
    run pytorch $python "$here/moe.py" "${flags[@]}"
    run birkhoff "$birkhoff" bench moe --json $(printf '%s\n' "${keys[@]}" | tac | awk -F= '!seen[$1]++')
done

$python - "$results" <<'END'
import json, statistics, sys
runs = {"pytorch": [], "birkhoff": []}
for line in open(sys.argv[1]):
    name, text = line.split(" ", 1)
    runs[name].append(json.loads(text))
torch, own = runs["pytorch"], runs["birkhoff"]
median = lambda key, rows: statistics.median(r[key] for r in rows)
ratio = {key: statistics.median(t[key] / b[key] for t, b in zip(torch, own)) for key in ("seconds", "cpu_seconds")}
print(f"PyTorch {torch[0]['version']}, {torch[0]['threads']} threads: {median('seconds', torch):.4f} s, "
      f"{median('cpu_seconds', torch):.4f} s of processors")
print(f"Birkhoff on {own[0]['library']}, {own[0]['threads']} threads: {median('seconds', own):.4f} s, "
      f"{median('cpu_seconds', own):.4f} s of processors, {median('fraction', own):.2f} of the machine's peak")
for name in own[0]["phase"]:
    print(f"  {name:10} {statistics.median(r['phase'][name] for r in own):.4f} s")
print(f"PyTorch's seconds / Birkhoff's: {ratio['seconds']:.2f}; of processor seconds {ratio['cpu_seconds']:.2f}")
END
