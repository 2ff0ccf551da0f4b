"""One training step of the 124M GPT-2 layout in PyTorch, timed: the peer of `birkhoff bench step layout=gpt2`.

Prints one JSON object: seconds (median of the repeats), cpu_seconds (mean), tokens_per_second, peak_bytes, ...
Same shapes, pre-norm blocks, tanh form of GELU, biases, tied output, cross-entropy on all positions,
gradients clipped by their global norm, AdamW with decay on matrices only, zero_grad in the step; fp32, or bf16 by
autocast as PyTorch advises (forward and loss inside it, parameters and optimizer in fp32).
"""
import argparse
import json
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, hidden):
        B, N, C = x.shape
        q, k, v = (y.view(B, N, self.heads, C // self.heads).transpose(1, 2) for y in self.qkv(x).split(C, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (C // self.heads) ** -0.5
        y = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(B, N, C))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, hidden):
        x = x + self.attention(self.norm1(x), hidden)
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Decoder(nn.Module):
    def __init__(self, layers, width, heads, vocabulary, length):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        self.register_buffer("hidden", torch.ones(length, length, dtype=torch.bool).triu(1))

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, self.hidden)
        return F.linear(self.norm(x), self.tokens.weight)


def step(model, optimizer, tokens, labels, clip, bf16):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = model(tokens)
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    for name, preset in [("layers", 12), ("width", 768), ("heads", 12), ("vocabulary", 50257), ("batch", 4),
                         ("length", 256), ("threads", 2), ("warmup", 2), ("repeats", 1)]:
        p.add_argument("--" + name, type=int, default=preset)
    p.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    a = p.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(a.threads)
    model = Decoder(a.layers, a.width, a.heads, a.vocabulary, a.length)
    matrices = [x for x in model.parameters() if x.dim() > 1]
    others = [x for x in model.parameters() if x.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
                                  lr=3e-4)
    draw = torch.randint(1, a.vocabulary, (a.batch, a.length + 1))
    tokens, labels = draw[:, :-1], draw[:, 1:]
    seconds = []
    for i in range(a.warmup + a.repeats):
        if i == a.warmup:
            cpu = time.process_time()
        start = time.perf_counter()
        loss = step(model, optimizer, tokens, labels, 1.0, a.precision == "bf16")
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[a.warmup:])
    print(json.dumps({"seconds": median, "cpu_seconds": (time.process_time() - cpu) / a.repeats,
                      "tokens_per_second": a.batch * a.length / median, "loss": loss,
                      "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                      "threads": torch.get_num_threads(), "precision": a.precision, "version": torch.__version__,
                      "parameters": sum(x.numel() for x in model.parameters())}))


if __name__ == "__main__":
    main()
