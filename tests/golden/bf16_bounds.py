"""How far bf16 activations move a model: the float64 oracle against a float32 one that rounds what a GPU rounds.

    python3 tests/golden/bf16_bounds.py ORACLE.py [--models N] [GOLDEN_SET...]

One line per model (its name behind the figures is that of the worst gradient), then the worst, and the bounds: three
times that. Apart from the loss, figures are norms of errors relative to norms of the float64 results. Besides the
golden sets N random models of similar sizes are measured, which the oracle's generator makes, every third with the
untouched initialisation.
"""

import argparse
import json
import types
from pathlib import Path

import numpy as np

# Formulas of the oracle, each of which must occur once, and how they read when `bf16` rounds what a GPU stores in bf16.
ROUNDINGS = [
    # Products: outputs, activations as operands of weight gradients, gradients of activations.
    ("return self.yq @ self.Wq.T", "return bf16(self.yq @ self.Wq.T)"),
    (".reshape(-1, k).T @ self.yq.reshape(-1, n)", ".reshape(-1, k).T @ bf16(self.yq).reshape(-1, n)"),
    ("rms_backward(dout @ self.Wq,", "rms_backward(bf16(dout @ self.Wq),"),
    # Scan: its output; its state stays. In the backward pass gradients of output, candidate and forget gate.
    ("o[:, t] = st", "o[:, t] = bf16(st)"),
    ("do = dm * gn * dsilu(o)", "do = bf16(dm * gn * dsilu(o))"),
    ("bi.backward(da)", "bi.backward(bf16(da))"),
    ("bf.backward(ds * s * (1 - s))", "bf.backward(bf16(ds * s * (1 - s)))"),
    # Sources of norms: the gate's other input, SwiGLU's two, and the residual stream's gradient.
    ("bg.backward(dg)", "bg.backward(bf16(dg))"),
    ("dy = np.concatenate([dz * up * dsilu(ga), dz * ga * sig(ga)], -1)",
     "dy = bf16(np.concatenate([dz * up * dsilu(ga), dz * ga * sig(ga)], -1))"),
    ("rms_backward(head.backward(dl), h, wn, rn)", "rms_backward(head.backward(dl), h, wn, rn); dh = bf16(dh)"),
    ("dh = dh + dv", "dh = bf16(dh + dv)"),
    ("dh = dh + dn", "dh = bf16(dh + dn)"),
    # Ends: what is shown of the final norm, and the logits' gradient.
    ("hid.append(q)", "hid.append(bf16(q))"),
    ("dl /= B * (T - 1)", "dl = bf16(dl / (B * (T - 1)))"),
]  # fmt: skip


def bf16(x):
    """Round to nearest even, kept as float32."""
    assert x.dtype == np.float32, x.dtype
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def load(source, rounding=None):
    """The oracle as a module, with the roundings by `rounding` if given."""
    for old, new in ROUNDINGS if rounding else []:
        assert source.count(old) == 1, f"the oracle has {source.count(old)} times: {old}"
        source = source.replace(old, new)
    module = types.ModuleType("oracle")
    module.bf16 = rounding
    exec(compile(source, "oracle", "exec"), module.__dict__)
    return module


def error(a, b):
    return np.linalg.norm(np.subtract(a, b, dtype=np.float64)) / np.linalg.norm(b)


def whole(gradients):
    return np.concatenate([gradients[k].ravel() for k in sorted(gradients)])


def as_type(tensors, dtype):
    return {k: v.astype(dtype) for k, v in tensors.items()}


def random_model(oracle, rng, plain):
    c = {"hidden_size": rng.integers(32, 73), "num_hidden_layers": rng.integers(2, 5), "rms_norm_eps": 1e-6}
    c |= {"vocab_size": rng.integers(61, 257), "intermediate_size": rng.integers(96, 257)}
    c = {k: v if k == "rms_norm_eps" else int(v) for k, v in c.items()}
    ids = rng.integers(0, c["vocab_size"], (rng.integers(2, 4), rng.integers(13, 20)))
    return c, oracle.init(c, rng, not plain), ids


def golden_model(oracle, folder):
    ids = oracle.load_safetensors(folder / "expected.safetensors")["input_ids"].astype(int)
    return json.loads((folder / "config.json").read_text()), oracle.load_safetensors(folder / "model.safetensors"), ids


def measure(exact, rounded, model):
    c, params, ids = model
    loss, logits, hidden, grads = exact.run(c, as_type(params, np.float64), ids)
    loss_r, logits_r, hidden_r, grads_r = rounded.run(c, as_type(params, np.float32), ids)
    tensors = {k: error(grads_r[k], grads[k]) for k in grads}
    worst = max(tensors, key=tensors.get)
    figures = {"loss": abs(loss_r - loss) / loss, "logits": error(logits_r, logits),
               "hidden": max(map(error, hidden_r, hidden)), "gradient": error(whole(grads_r), whole(grads)),
               "tensor": tensors[worst]}  # fmt: skip
    return figures, worst


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("oracle", type=Path)
    ap.add_argument("golden", type=Path, nargs="*", help="folders of golden sets")
    ap.add_argument("--models", type=int, default=12, help="random models")
    a = ap.parse_args()
    source = a.oracle.read_text()
    exact, rounded = load(source), load(source, bf16)
    rng = np.random.default_rng(7)
    models = {str(g): golden_model(exact, g) for g in a.golden}
    models |= {f"random {i}{' plain' * (i % 3 == 2)}": random_model(exact, rng, i % 3 == 2) for i in range(a.models)}
    most = {}
    for name, model in models.items():
        figures, worst = measure(exact, rounded, model)
        print(f"{name:32}", *(f"{k} {v:.1e}" for k, v in figures.items()), worst)
        most = {k: max(v, most.get(k, 0)) for k, v in figures.items()}
    print(f"{'worst':32}", *(f"{k} {v:.1e}" for k, v in most.items()))
    print(f"{'bound':32}", *(f"{k} {3 * v:.1e}" for k, v in most.items()))


if __name__ == "__main__":
    main()
