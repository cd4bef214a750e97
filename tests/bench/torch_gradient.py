#!/usr/bin/env python3
"""How far rounding moves the gradients of the MatMul-free LM in PyTorch: the counterpart of bench_gradient.

    python3 tests/bench/torch_gradient.py --layers 32            # on a GPU; --device cpu anywhere

Takes the gradients in float64, then with the same weights and tokens
  f32            in float32
  bf16           products and what lies between them in bf16; residual stream, norms and their gradients in f32
  bf16, stream   the same, the gradient of the residual stream rounded to bf16 behind every addition
  f64, stream    float64, with that rounding alone
and prints RESULT {json} for each: |g - g64| / |g64| and the cosine between both, as bench_gradient does.
"""
import argparse
import json
import math

import torch
import torch.nn.functional as F


class RoundGradient(torch.autograd.Function):
    """The identity, whose gradient is rounded to bf16."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g.bfloat16().to(g.dtype)


def initial(a, inner):
    """Weights by name, float32 on the CPU: the rules of layers/parameters.cpp."""
    random = torch.Generator().manual_seed(a.seed)
    d, w = a.width, {}

    def normal(*shape, std=0.02):
        return torch.randn(*shape, generator=random) * std

    def projection(name, weight):
        w[name + ".weight"], w[name + ".norm"] = weight, torch.ones(weight.shape[1])

    w["embedding"] = normal(a.vocab, d)
    w["head.bounds"] = torch.zeros(a.layers, d)
    bound = 2**-2.5 * math.sqrt(6 / (2 * d))
    for n in range(a.layers):
        for name in "ifgo":
            projection(f"{n}.{name}", (torch.rand(d, d, generator=random) * 2 - 1) * bound)
        projection(f"{n}.gate", normal(2 * inner, d))
        projection(f"{n}.down", normal(d, inner, std=0.02 / math.sqrt(2 * a.layers)))
        for name in ("attn_norm", "g_norm", "mlp_norm"):
            w[f"{n}.{name}"] = torch.ones(d)
    w["head.norm"] = torch.ones(d)
    projection("head.lm", normal(a.vocab, d))
    return w


def straight_through(x, rounded):
    return x + (rounded - x).detach()


def rms(x, weight):
    x = x.to(weight.dtype)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def round_operands(x, weight, precision):
    if precision == "f32":
        return x, weight
    if precision == "bf16":
        return (straight_through(t, t.bfloat16().to(t.dtype)) for t in (x, weight))
    s = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    t = 1 / weight.abs().mean().clamp(min=1e-5)
    return straight_through(x, (x * s).round() / s), straight_through(weight, (weight * t).round().clamp(-1, 1) / t)


def scan(x, f):
    """h_t = f_t h_(t-1) + x_t over dimension 1."""
    h, states = torch.zeros_like(x[:, 0]), []
    for x_t, f_t in zip(x.unbind(1), f.unbind(1)):
        h = f_t * h + x_t
        states.append(h)
    return torch.stack(states, 1)


def loss_of(w, a, ids, targets, product, stream):
    """`product`: dtype of products and of what lies between them; `stream`: rounds the stream's gradient."""
    wide = w["embedding"].dtype

    def linear(name, x):
        q, m = round_operands(rms(x, w[name + ".norm"]), w[name + ".weight"], a.precision)
        return F.linear(q.to(product), m.to(product))

    keep = RoundGradient.apply if stream else lambda x: x
    p = w["head.bounds"].softmax(0)
    bounds = p.cumsum(0) - p[0]
    x = keep(w["embedding"][ids])
    for n in range(a.layers):
        u = rms(x, w[f"{n}.attn_norm"])
        f = torch.sigmoid(linear(f"{n}.f", u).to(wide))
        if n:
            f = bounds[n] + (1 - bounds[n]) * f
        h = scan(F.silu(linear(f"{n}.i", u).to(wide)) * (1 - f), f).to(product)
        x = keep(x + linear(f"{n}.o", rms(linear(f"{n}.g", u), w[f"{n}.g_norm"]) * F.silu(h.to(wide))))
        gate, up = linear(f"{n}.gate", rms(x, w[f"{n}.mlp_norm"])).to(wide).chunk(2, -1)
        x = keep(x + linear(f"{n}.down", F.silu(gate) * up))
    logits = linear("head.lm", rms(x, w["head.norm"]))
    return F.cross_entropy(logits.to(wide).flatten(0, 1), targets.flatten())


def gradients(initial_weights, a, ids, targets, wide, product, stream):
    w = {name: t.to(a.device, wide, copy=True).requires_grad_() for name, t in initial_weights.items()}
    loss = loss_of(w, a, ids, targets, product, stream)
    loss.backward()
    return {name: t.grad.double() for name, t in w.items()}, loss.item()


def difference(g, exact, names):
    here, there = (torch.cat([t[n].flatten() for n in names]) for t in (g, exact))
    cosine = here.dot(there) / (here.norm() * there.norm())
    return [float(f"{(here - there).norm() / there.norm():.4e}"), round(cosine.item(), 8)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, value in dict(width=512, layers=12, inner=0, vocab=1000, seq=256, batch=2, seed=1).items():
        ap.add_argument("--" + key, type=int, default=value)
    ap.add_argument("--device", default="cuda")
    ap.add_argument("--precision", default="ternary", choices=["ternary", "bf16", "f32"])
    a = ap.parse_args()
    inner = a.inner or 256 * -(-int(a.width * 4 * 2 / 3) // 256)
    weights = initial(a, inner)
    random = torch.Generator().manual_seed(a.seed + 1)
    ids, targets = torch.randint(0, a.vocab, (2, a.batch, a.seq), generator=random).to(a.device)
    exact, loss64 = gradients(weights, a, ids, targets, torch.float64, torch.float64, False)
    groups = {"total": list(weights), "embedding": ["embedding"], "head": [n for n in weights if n.startswith("head")]}
    for run, wide, product, stream in (
        ("f32", torch.float32, torch.float32, False),
        ("bf16", torch.float32, torch.bfloat16, False),
        ("bf16, stream", torch.float32, torch.bfloat16, True),
        ("f64, stream", torch.float64, torch.float64, True),
    ):
        g, loss = gradients(weights, a, ids, targets, wide, product, stream)
        layers = [[n for n in weights if n.startswith(f"{k}.")] for k in range(a.layers)]
        result = dict(run=f"torch {run}", precision=a.precision, width=a.width, tokens=a.batch * a.seq,
                      loss=round(loss, 6), loss64=round(loss64, 6))
        result.update({name: difference(g, exact, names) for name, names in groups.items()})
        result["layers"] = [difference(g, exact, names) for names in layers]
        print("RESULT", json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
