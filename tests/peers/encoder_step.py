"""One training step of a small encoder in PyTorch, timed: the peer of `birkhoff bench step config=...`.

Same shapes as Birkhoff's encoder: pre-norm blocks without biases in attention, exact GELU, mean pooling, a head of
two classes, cross-entropy, gradients clipped by their global norm, AdamW with decay on matrices only, fp32.
Prints one JSON object: seconds (median of the repeats), cpu_seconds (mean), tokens_per_second, peak_bytes, ...
"""
import argparse
import json
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, heads, ffn):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def attention(self, x):
        B, N, C = x.shape
        q, k, v = (y.view(B, N, self.heads, C // self.heads).transpose(1, 2) for y in self.qkv(x).split(C, dim=2))
        y = ((q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(B, N, C))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(a.vocabulary, a.width), nn.Embedding(a.length, a.width)
        self.blocks = nn.ModuleList(Block(a.width, a.heads, a.ffn) for _ in range(a.layers))
        self.norm, self.head = nn.LayerNorm(a.width), nn.Linear(a.width, 2)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def step(model, optimizer, tokens, labels):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(tokens), labels)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    for name, preset in [("layers", 4), ("width", 256), ("heads", 4), ("ffn", 1024), ("vocabulary", 257), ("batch", 8),
                         ("length", 1024), ("threads", 2), ("warmup", 1), ("repeats", 3)]:
        p.add_argument("--" + name, type=int, default=preset)
    a = p.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(a.threads)
    model = Encoder(a)
    matrices = [x for x in model.parameters() if x.dim() > 1]
    others = [x for x in model.parameters() if x.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
                                  lr=3e-4)
    tokens, labels = torch.randint(1, a.vocabulary, (a.batch, a.length)), torch.randint(0, 2, (a.batch,))
    seconds = []
    for i in range(a.warmup + a.repeats):
        if i == a.warmup:
            cpu = time.process_time()
        start = time.perf_counter()
        loss = step(model, optimizer, tokens, labels)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[a.warmup:])
    print(json.dumps({"seconds": median, "cpu_seconds": (time.process_time() - cpu) / a.repeats,
                      "tokens_per_second": a.batch * a.length / median, "loss": loss,
                      "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                      "threads": torch.get_num_threads(), "version": torch.__version__,
                      "parameters": sum(x.numel() for x in model.parameters())}))


if __name__ == "__main__":
    main()
