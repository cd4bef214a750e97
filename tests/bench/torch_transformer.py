#!/usr/bin/env python3
"""Speed baseline of Transformer++ in PyTorch: what a careful user runs instead of mmfree's `token: attention`.

    python3 tests/bench/torch_transformer.py --size 370M --batch 16 --seq 2048        # on a GPU; --device cpu anywhere

RMSNorm, rotary positions, causal attention with 64-wide heads, SwiGLU; f32 weights and residual stream, bf16 products;
torch.compile of each block and of the head, fused AdamW. Each attention backend that the machine has is timed with a
model of its own, and the fastest is reported. Prints RESULT {json}: tokens per second of whole training steps (forward,
backward, clipping, AdamW) from the median step, each timed on its own, and peak memory in decimal GB.
"""

import argparse
import gc
import json
import math
import resource
import sys
import time
from pathlib import Path

# profile.py beside this file hides Python's module of that name, which torch imports.
sys.path = [p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent]
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

# Width, layers, width of the SwiGLU, vocabulary: as in bench_step.cpp.
SIZES = {"8M": (256, 8, 704, 8192), "50M": (512, 12, 1408, 32000), "370M": (1024, 24, 2816, 32000),
         "1.3B": (2048, 24, 5632, 32000)}  # fmt: skip
HEAD = 64
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION}  # fmt: skip


def matrix(rows, columns, std=0.02):
    return nn.Parameter(torch.randn(rows, columns) * std)


def product(x, weight):
    return F.linear(x.bfloat16(), weight.bfloat16())


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def rotate(x, cos, sin):
    a, b = x.float().split(HEAD // 2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).bfloat16()


class Block(nn.Module):
    def __init__(self, width, inner, layers):
        super().__init__()
        self.attention_norm, self.channel_norm = Norm(width), Norm(width)
        self.qkv, self.gate_up = matrix(3 * width, width), matrix(2 * inner, width)
        self.out, self.down = (matrix(width, n, 0.02 / math.sqrt(2 * layers)) for n in (width, inner))

    def forward(self, x, cos, sin):
        batch, tokens, width = x.shape
        qkv = product(self.attention_norm(x), self.qkv).view(batch, tokens, 3, width // HEAD, HEAD)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + product(y.transpose(1, 2).reshape(batch, tokens, width), self.out)
        gate, up = product(self.channel_norm(x), self.gate_up).chunk(2, -1)
        return x + product(F.silu(gate.float()) * up.float(), self.down)


class Head(nn.Module):
    def __init__(self, width, vocabulary):
        super().__init__()
        self.norm, self.weight = Norm(width), matrix(vocabulary, width)

    def forward(self, x, targets):
        return F.cross_entropy(product(self.norm(x), self.weight).float().flatten(0, 1), targets.flatten())


class Transformer(nn.Module):
    def __init__(self, width, layers, inner, vocabulary):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(width, inner, layers) for _ in range(layers))
        self.head = Head(width, vocabulary)

    def forward(self, ids, targets):
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * 10000 ** (
            -torch.arange(HEAD // 2, device=ids.device) / (HEAD // 2)
        )
        cos, sin, x = angles.cos(), angles.sin(), self.table(ids)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(x, targets)


def available(backend, device):
    q, k, v = (torch.randn(1, 2, 128, HEAD, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    try:
        with sdpa_kernel(BACKENDS[backend]):
            F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
    except RuntimeError:  # what torch raises where no enabled backend takes the call
        return False
    return True


def measure(a, backend):
    """What RESULT says, for one backend. Compiling fixes the backend, so each gets a model of its own."""
    cuda = a.device == "cuda"
    torch._dynamo.reset()
    gc.collect()  # the model before, which holds itself in cycles once it is compiled
    torch.manual_seed(0)
    width, layers, inner, vocabulary = SIZES[a.size]
    model = Transformer(width, layers, inner, vocabulary).to(a.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **({"fused": True} if cuda else {}))
    ids = torch.randint(0, vocabulary, (a.batch, a.seq + 1), device=a.device)
    if not a.eager:
        for part in [*model.blocks, model.head]:
            part.compile()

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    wait = torch.cuda.synchronize if cuda else (lambda: None)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    with sdpa_kernel(BACKENDS[backend]):
        for i in range(a.warmup + a.steps):
            wait()
            begin = time.perf_counter()
            loss = step()
            wait()
            times += [time.perf_counter() - begin] if i >= a.warmup else []
    median = sorted(times)[len(times) // 2]
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"size": a.size, "arch": "transformer", "attention": backend, "batch": a.batch, "seq": a.seq,
            "params": sum(p.numel() for p in model.parameters()), "device": a.device, "compiled": not a.eager,
            "ms": round(median * 1e3, 2), "tokens_per_s": round(a.batch * a.seq / median),
            "peak_GB": round(peak / 1e9, 2), "loss": round(loss.item(), 4), "torch": torch.__version__}  # fmt: skip


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--size", default="370M", choices=SIZES)
    for name, value in {"batch": 16, "seq": 2048, "steps": 10, "warmup": 4}.items():
        ap.add_argument("--" + name, type=int, default=value)
    ap.add_argument("--device", default="cuda")
    ap.add_argument("--eager", action="store_true", help="without torch.compile")
    ap.add_argument("--backends", default="flash,cudnn,efficient", help="of attention, the fastest is reported")
    a = ap.parse_args()
    results = {}
    for backend in a.backends.split(","):
        if not available(backend, a.device):
            print(backend, "is not available", file=sys.stderr, flush=True)
            continue
        results[backend] = measure(a, backend)
        print(backend, results[backend]["tokens_per_s"], "tokens/s", file=sys.stderr, flush=True)
    if not results:
        sys.exit(f"torch_transformer.py: none of {a.backends} is available on {a.device}")
    best = max(results.values(), key=lambda r: r["tokens_per_s"])
    print("RESULT", json.dumps(best | {"tried": {k: r["tokens_per_s"] for k, r in results.items()}}), flush=True)


if __name__ == "__main__":
    main()
