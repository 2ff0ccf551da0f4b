"""SinKD loss and its gradient in PyTorch, timed: the peer of `birkhoff bench sinkd`.

Prints one JSON object: seconds (median of the repeats), cpu_seconds (mean), loss, ...  The same logits, bit for bit;
softmax, torch.cdist with p = 1, rows and then columns normalised, all of it differentiated by autograd, in fp32.
"""
import argparse
import json
import statistics
import time

import numpy
import torch


def logits(rows, classes, tag):
    """lo + (hi - lo) unit(mix(...)) as core/rng.h says, in [-8, 8)."""
    with numpy.errstate(over="ignore"):
        z = (numpy.arange(rows * classes, dtype=numpy.uint64) + numpy.uint64(tag << 32)) * numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z ^= z >> numpy.uint64(31)
    unit = (z >> numpy.uint64(11)).astype(numpy.float64) * 2.0**-53
    return torch.from_numpy((-8.0 + 16.0 * unit).astype(numpy.float32).reshape(rows, classes))


def loss_of(student, teacher, a):
    p, q = torch.softmax(student / a.temperature, 1), torch.softmax(teacher / a.temperature, 1)
    cost = torch.cdist(p, q, p=1)
    if a.form == "direct":
        plan = torch.exp(-cost / a.epsilon)
        for _ in range(a.iterations):
            plan = plan / plan.sum(1, keepdim=True)
            plan = plan / plan.sum(0, keepdim=True)
    else:
        plan = -cost / a.epsilon
        for _ in range(a.iterations):
            plan = plan - plan.logsumexp(1, keepdim=True)
            plan = plan - plan.logsumexp(0, keepdim=True)
        plan = plan.exp()
    return (plan * cost).sum() / len(student)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    for name, preset in [("rows", 256), ("vocabulary", 50257), ("iterations", 20), ("threads", 2), ("warmup", 1),
                         ("repeats", 1)]:
        p.add_argument("--" + name, type=int, default=preset)
    p.add_argument("--epsilon", type=float, default=0.1)
    p.add_argument("--temperature", type=float, default=2.0)
    p.add_argument("--form", choices=["direct", "log"], default="direct")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    student, teacher = (logits(a.rows, a.vocabulary, tag) for tag in (1, 2))
    student.requires_grad_()
    seconds = []
    for i in range(a.warmup + a.repeats):
        if i == a.warmup:
            cpu = time.process_time()
        start = time.perf_counter()
        student.grad = None
        loss = loss_of(student, teacher, a)
        loss.backward()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": statistics.median(seconds[a.warmup:]),
                      "cpu_seconds": (time.process_time() - cpu) / a.repeats, "loss": loss.item(),
                      "threads": torch.get_num_threads(), "version": torch.__version__}))


if __name__ == "__main__":
    main()
