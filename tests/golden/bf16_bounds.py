"""How far bf16 activations move a model: the float64 oracle against a float32 one that rounds what a GPU rounds.

    python3 tests/golden/bf16_bounds.py [--models N] [--int8] [--f32] [GOLDEN_SET...]

With --int8 the oracle also rounds what a GPU rounds with train.backward: int8; with --f32 it rounds nothing to bf16.

One line per model (its name behind the figures is that of the worst gradient), then the worst, and the bounds: three
times that. Apart from the loss, figures are norms of errors relative to norms of the float64 results. Besides the
golden sets N random models of similar sizes are measured, which the oracle's generator makes, every third with the
untouched initialisation.
"""

import argparse
import json
import types
from pathlib import Path

import oracle  # first: it chooses NumPy's code path
import formulas
import numpy as np

# Formulas of the oracle, each of which must occur once, and how they read when `bf16` rounds what a GPU stores in bf16.
ROUNDINGS = [
    # Products: outputs, activations as operands of weight gradients, gradients of activations.
    ("return self.yq @ self.Wq.T", "return bf16(self.yq @ self.Wq.T)"),
    (".reshape(-1, k).T @ self.yq.reshape(-1, n)", ".reshape(-1, k).T @ bf16(self.yq).reshape(-1, n)"),
    ("dy = dout @ self.Wq", "dy = bf16(dout @ self.Wq)"),
    # Scan: its output; its state stays. In the backward pass gradients of output, candidate and forget gate.
    ("self.h[:, t] = st", "self.h[:, t] = bf16(st)"),
    ("dg, dh = self.gate_backward(self.o.backward(dout))",
     "dg, dh = map(bf16, self.gate_backward(self.o.backward(dout)))"),
    ("self.i.backward(da) + self.f.backward(dz)", "self.i.backward(bf16(da)) + self.f.backward(bf16(dz))"),
    # Attention: rotated queries and keys, probabilities as operands of a product, output; and their gradients.
    ("return np.concatenate([a * self.cos - b * sin, b * self.cos + a * sin], -1)",
     "return bf16(np.concatenate([a * self.cos - b * sin, b * self.cos + a * sin], -1))"),
    ("out = self.joined(self.p @ self.rv)", "out = bf16(self.joined(bf16(self.p) @ self.rv))"),
    ("do = self.split(self.norm.backward(do) if self.norm else do)",
     "do = bf16(self.split(self.norm.backward(do) if self.norm else do))"),
    ("dq, dk, dv = ds @ self.rk, ds.swapaxes(2, 3) @ self.rq, self.p.swapaxes(2, 3) @ do",
     "dq, dk, dv = bf16(ds) @ self.rk, bf16(ds).swapaxes(2, 3) @ self.rq, bf16(self.p).swapaxes(2, 3) @ do"),
    ("B, H, T, W = dq.shape", "(B, H, T, W), dq = dq.shape, bf16(dq)"),
    ("(x.reshape(B, self.groups, H // self.groups, T, W).sum(2) for x in (dk, dv))",
     "(bf16(x.reshape(B, self.groups, H // self.groups, T, W).sum(2)) for x in (dk, dv))"),
    # Sources of norms: the gate's other input (above), that of the activation, and the residual stream's gradient.
    ("return self.gate.backward(da) + self.up.backward(db)",
     "return self.gate.backward(bf16(da)) + self.up.backward(bf16(db))"),
    ("self.gate.backward(np.concatenate([da, db], -1))", "self.gate.backward(bf16(np.concatenate([da, db], -1)))"),
    ("self.out_backward(dout) * self.slope(self.a)", "bf16(self.out_backward(dout) * self.slope(self.a))"),
    ("dh = norm.backward(head.backward(dl))", "dh = bf16(norm.backward(head.backward(dl)))"),
    ("dh = dh + self.mlp_norm.backward(self.channel.backward(dh))",
     "dh = bf16(dh + self.mlp_norm.backward(self.channel.backward(dh)))"),
    ("dh = dh + self.attn_norm.backward(self.token.backward(dh))",
     "dh = bf16(dh + self.attn_norm.backward(self.token.backward(dh)))"),
    # Ends: what is shown of the final norm, and the logits' gradient.
    ("hidden.append(q)", "hidden.append(bf16(q))"),
    ("dl = np.where(scored[..., None], dl, 0) / int(scored.sum())",
     "dl = bf16(np.where(scored[..., None], dl, 0) / int(scored.sum()))"),
]  # fmt: skip

# The same with products of ternary projections' backward passes in 8 bits.
INT8_ROUNDINGS = [
    ("dy = bf16(dout @ self.Wq)", "dy = bf16(np.multiply(*gradient_rows(self, dout)) @ self.Wq)"),
    ("self.G[self.weight] = dout.reshape(-1, k).T @ bf16(self.yq).reshape(-1, n)",
     "self.G[self.weight] = weight_gradient(self, dout.reshape(-1, k), self.yq.reshape(-1, n), bf16)"),
]


def gradient_rows(projection, dout):
    """A gradient in int8 with a step per row (core/ops/ternary_int8.h): codes and steps. The head, projections of
    other precisions and those that int8_input_gradient leaves out keep theirs, with the step 1."""
    o, k = projection.Wq.shape
    if projection.precision != "ternary" or projection.name == "lm_head" or (k < 1024 and o < 2 * k):
        return dout, np.float32(1)
    most = np.abs(dout).max(-1, keepdims=True)
    v = dout * (np.float32(127) / np.maximum(most, np.float32(1e-30)))
    return np.sign(v) * np.floor(np.abs(v) + np.float32(0.5)), most / np.float32(127)


def weight_gradient(projection, dout, x, bf16, block=256):
    """doutᵀ x; where W has at least twice as many rows as columns, of rows in int8 and of x times their steps in int8,
    rounded by column and block of rows (ibid.)."""
    codes, steps = gradient_rows(projection, dout)
    if codes is dout or dout.shape[1] < 2 * x.shape[1]:
        return dout.T @ bf16(x)
    g, sums = x * steps, 0
    for b in range(0, len(g), block):
        most = np.abs(g[b : b + block]).max(0)
        d = np.rint(g[b : b + block] * (np.float32(127) / np.maximum(most, np.float32(1e-30))))
        sums = sums + codes[b : b + block].T @ d * (most / np.float32(127))
    return sums


def bf16(x):
    """Round to nearest even, kept as float32."""
    assert x.dtype == np.float32, x.dtype
    return formulas.round_bf16(x)


def rounding_formulas(int8, f32):
    """The formulas as a module that rounds by `bf16`, unless `f32`, and with `int8` by `gradient_rows`."""
    source = Path(formulas.__file__).read_text()
    for old, new in ROUNDINGS + (INT8_ROUNDINGS if int8 else []):
        assert source.count(old) == 1, f"the formulas have {source.count(old)} times: {old}"
        source = source.replace(old, new)
    module = types.ModuleType("rounding_formulas")
    module.bf16, module.gradient_rows = (lambda x: x) if f32 else bf16, gradient_rows
    module.weight_gradient = weight_gradient
    exec(compile(source, "rounding_formulas", "exec"), module.__dict__)
    return module


def error(a, b):
    return np.linalg.norm(np.subtract(a, b, dtype=np.float64)) / np.linalg.norm(b)


def whole(gradients):
    return np.concatenate([gradients[k].ravel() for k in sorted(gradients)])


def as_type(tensors, dtype):
    return {k: v.astype(dtype) for k, v in tensors.items()}


def random_model(rng, plain):
    c = {"hidden_size": rng.integers(32, 73), "num_hidden_layers": rng.integers(2, 5), "rms_norm_eps": 1e-6}
    c |= {"vocab_size": rng.integers(61, 257), "intermediate_size": rng.integers(96, 257)}
    c = {k: v if k == "rms_norm_eps" else int(v) for k, v in c.items()}
    ids = rng.integers(0, c["vocab_size"], (rng.integers(2, 4), rng.integers(13, 20)))
    return c, oracle.init(c, rng, not plain), ids, None


def golden_model(folder):
    expected = oracle.load_safetensors(folder / "expected.safetensors")
    c, params = json.loads((folder / "config.json").read_text()), oracle.load_safetensors(folder / "model.safetensors")
    return c, params, expected["input_ids"], expected.get("targets"), expected.get("starts")


def measure(rounded, c, params, *batch):
    loss, logits, hidden, grads = formulas.run(c, as_type(params, np.float64), *batch)
    loss_r, logits_r, hidden_r, grads_r = rounded.run(c, as_type(params, np.float32), *batch)
    tensors = {k: error(grads_r[k], grads[k]) for k in grads}
    worst = max(tensors, key=tensors.get)
    figures = {"loss": abs(loss_r - loss) / loss, "logits": error(logits_r, logits),
               "hidden": max(map(error, hidden_r, hidden)), "gradient": error(whole(grads_r), whole(grads)),
               "tensor": tensors[worst]}  # fmt: skip
    return figures, worst


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("golden", type=Path, nargs="*", help="folders of golden sets")
    ap.add_argument("--models", type=int, default=12, help="random models")
    ap.add_argument("--int8", action="store_true", help="also round gradients to 8 bits")
    ap.add_argument("--f32", action="store_true", help="do not round to bf16")
    a = ap.parse_args()
    rounded, rng = rounding_formulas(a.int8, a.f32), np.random.default_rng(7)
    models = {str(g): golden_model(g) for g in a.golden}
    models |= {f"random {i}{' plain' * (i % 3 == 2)}": random_model(rng, i % 3 == 2) for i in range(a.models)}
    most = {}
    for name, model in models.items():
        figures, worst = measure(rounded, *model)
        print(f"{name:32}", *(f"{k} {v:.1e}" for k, v in figures.items()), worst)
        most = {k: max(v, most.get(k, 0)) for k, v in figures.items()}
    print(f"{'worst':32}", *(f"{k} {v:.1e}" for k, v in most.items()))
    print(f"{'bound':32}", *(f"{k} {3 * v:.1e}" for k, v in most.items()))


if __name__ == "__main__":
    main()
