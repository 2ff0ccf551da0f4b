"""Many small Sinkhorn problems in PyTorch, timed: the peer of `birkhoff bench transport_batch`.

Prints one JSON object: seconds (median of the repeats), cpu_seconds, norm (of all plans), ...  Three forms of the same
half steps, in fp32: potentials by logsumexp (what published Sinkformer code does), sums of a plan that is scaled in
place, and vectors x, y with batched products K y.  The layout is PyTorch's own, [problem, row, column].
"""
import argparse
import json
import statistics
import time

import numpy
import torch


def scores(problems, n, spread):
    """Problem p in slot p % 16 of block p // 16, filled as core/rng.h says."""
    blocks = (problems + 15) // 16
    with numpy.errstate(over="ignore"):
        z = (numpy.arange(blocks * n * n * 16, dtype=numpy.uint64) + numpy.uint64(1 << 32)) * numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z ^= z >> numpy.uint64(31)
    unit = (z >> numpy.uint64(11)).astype(numpy.float64) * 2.0**-53
    x = (spread * unit).astype(numpy.float32).reshape(blocks, n, n, 16).transpose(0, 3, 1, 2)
    return torch.from_numpy(numpy.ascontiguousarray(x.reshape(blocks * 16, n, n)[:problems]))


def by_potentials(s, half_steps):
    log_mass = -float(numpy.log(s.shape[1]))
    u, v = torch.zeros_like(s[:, :, :1]), torch.zeros_like(s[:, :1, :])
    for t in range(half_steps):
        if t % 2 == 0:
            u = log_mass - torch.logsumexp(s + v, 2, keepdim=True)
        else:
            v = log_mass - torch.logsumexp(s + u, 1, keepdim=True)
    return torch.exp(s + u + v)


def by_scaling(s, half_steps):
    mass = 1.0 / s.shape[1]
    p = torch.softmax(s, 2).mul_(mass)
    for t in range(1, half_steps):
        p.mul_(mass / p.sum(2 if t % 2 == 0 else 1, keepdim=True))
    return p


def by_vectors(s, half_steps):
    mass = 1.0 / s.shape[1]
    k = torch.exp(s - s.amax((1, 2), keepdim=True))
    x, y = torch.ones_like(s[:, :, :1]), torch.ones_like(s[:, :, :1])
    for t in range(half_steps):
        if t % 2 == 0:
            x = mass / torch.bmm(k, y)
        else:
            y = mass / torch.bmm(k.transpose(1, 2), x)
    return k.mul_(x).mul_(y.transpose(1, 2))


FORMS = {"potentials": by_potentials, "scaling": by_scaling, "vectors": by_vectors}


def main():
    p = argparse.ArgumentParser(description=__doc__)
    for name, preset in [("problems", 100000), ("n", 16), ("half_steps", 5), ("threads", 2), ("warmup", 1), ("repeats", 3)]:
        p.add_argument("--" + name, type=int, default=preset)
    p.add_argument("--spread", type=float, default=4.0)
    p.add_argument("--form", choices=sorted(FORMS), default="potentials")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    s, seconds = scores(a.problems, a.n, a.spread), []
    with torch.no_grad():
        for i in range(a.warmup + a.repeats):
            if i == a.warmup:
                cpu = time.process_time()
            start = time.perf_counter()
            plan = FORMS[a.form](s, a.half_steps)
            seconds.append(time.perf_counter() - start)
        cpu = (time.process_time() - cpu) / a.repeats
    print(json.dumps({"seconds": statistics.median(seconds[a.warmup:]), "cpu_seconds": cpu,
                      "norm": float(plan.double().norm()), "threads": torch.get_num_threads(), "version": torch.__version__}))


if __name__ == "__main__":
    main()
