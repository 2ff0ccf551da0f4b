"""Forward and backward of a mixture-of-experts layer in PyTorch, timed: the peer of `birkhoff bench moe`.

A loop over the experts: top-k of the gate's logits, softmax over the kept, rows picked by index_select, two linear maps
with biases around GELU (erf form), results weighed and added by index_add.  The gradient of every weight and of the input.
Prints one JSON object: seconds (median of the repeats), cpu_seconds (mean), ...
"""
import argparse
import json
import statistics
import time

import torch
from torch.nn import functional as F


class Layer(torch.nn.Module):
    def __init__(self, width, hidden, experts, k):
        super().__init__()
        self.k = k
        normal = lambda *shape: torch.nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)
        self.gate = normal(experts, width)
        self.w1 = torch.nn.ParameterList(normal(hidden, width) for _ in range(experts))
        self.b1 = torch.nn.ParameterList(normal(hidden) for _ in range(experts))
        self.w2 = torch.nn.ParameterList(normal(width, hidden) for _ in range(experts))
        self.b2 = torch.nn.ParameterList(normal(width) for _ in range(experts))

    def forward(self, x):
        value, index = F.linear(x, self.gate).topk(self.k, dim=-1)
        weight = value.softmax(-1)
        y = torch.zeros_like(x)
        for e in range(len(self.w1)):
            token, slot = torch.where(index == e)
            rows = x.index_select(0, token)
            rows = F.linear(F.gelu(F.linear(rows, self.w1[e], self.b1[e])), self.w2[e], self.b2[e])
            y = y.index_add(0, token, rows * weight[token, slot].unsqueeze(1))
        return y


def measure(layer, x, dy, repeats):
    seconds = []
    cpu = time.process_time()
    for _ in range(repeats):
        start = time.perf_counter()
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).backward(dy)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "cpu_seconds": (time.process_time() - cpu) / repeats,
            "threads": torch.get_num_threads(), "version": torch.__version__}


def main():
    p = argparse.ArgumentParser(description=__doc__)
    for name, preset in [("tokens", 4096), ("width", 512), ("hidden", 2048), ("experts", 8), ("k", 2), ("threads", 2),
                         ("warmup", 2), ("repeats", 5)]:
        p.add_argument("--" + name, type=int, default=preset)
    a = p.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(a.threads)
    layer = Layer(a.width, a.hidden, a.experts, a.k)
    x = torch.rand(a.tokens, a.width) * 2 - 1
    x.requires_grad_()
    dy = torch.rand(a.tokens, a.width) * 2 - 1
    measure(layer, x, dy, a.warmup)
    print(json.dumps(measure(layer, x, dy, a.repeats)))


if __name__ == "__main__":
    main()
