"""Softmax attention in PyTorch, forward and backward, timed: the peer of `birkhoff bench attention`.

softmax(q k^T) v with the scale put on q, where it costs least: of the eager forms the fastest.
Prints one JSON object: seconds (median of the repeats), rate (FLOP/s, 14 B H N^2 D a run), peak_bytes, ...
"""
import argparse
import json
import resource
import statistics
import time

import torch


def attention(q, k, v, hidden):
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    return scores.softmax(-1) @ v


def main():
    p = argparse.ArgumentParser(description=__doc__)
    for name, preset in [("batch", 1), ("heads", 8), ("length", 1024), ("width", 64), ("threads", 2), ("warmup", 1),
                         ("repeats", 3)]:
        p.add_argument("--" + name, type=int, default=preset)
    p.add_argument("--causal", action="store_true")
    a = p.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(a.threads)
    q, k, v = (torch.rand(a.batch, a.heads, a.length, a.width, requires_grad=True) for _ in range(3))
    gradient = torch.rand(a.batch, a.heads, a.length, a.width)
    hidden = torch.ones(a.length, a.length, dtype=torch.bool).triu(1) if a.causal else None
    seconds = []
    for _ in range(a.warmup + a.repeats):
        q.grad = k.grad = v.grad = None
        start = time.perf_counter()
        attention(q, k, v, hidden).backward(gradient)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[a.warmup:])
    pairs = a.length * (a.length + 1) / 2 if a.causal else a.length ** 2
    print(json.dumps({"seconds": median, "rate": 14 * a.batch * a.heads * pairs * a.width / median,
                      "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                      "threads": torch.get_num_threads(), "version": torch.__version__}))


if __name__ == "__main__":
    main()
