#!/usr/bin/env python3
"""Makes and checks golden sets from the formulas beside this file. README.md says what a set holds.

    python3 tests/golden/oracle.py sets OUT       all committed sets (RECIPES)
    python3 tests/golden/oracle.py make OUT --d 64 --layers 3 --vocab 97 --inter 256 --seed 1 --steps 20
    python3 tests/golden/oracle.py check DIR...   computes sets again and compares them
    python3 tests/golden/oracle.py selftest       the formulas' gradients against finite differences
"""

import argparse
import functools
import json
import os
import shlex
import struct
from pathlib import Path

# One code path of OpenBLAS and of NumPy on all x86-64 machines, so that the committed sets come out to the bit.
os.environ.setdefault("OPENBLAS_CORETYPE", "Sandybridge")
os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", "AVX512F AVX512_SKX X86_V4")
import numpy as np  # noqa: E402
from formulas import ACTIVATIONS, Projection, adamw, attention_shape, ruled, run, settings  # noqa: E402

DTYPES = {"F64": np.float64, "F32": np.float32, "I32": np.int32, "I64": np.int64}
NAMES = {np.dtype(v): k for k, v in DTYPES.items()}


def save_safetensors(path, tensors, meta=None):
    head, offset = ({"__metadata__": meta} if meta else {}), 0
    for k in sorted(tensors):
        t = np.asarray(tensors[k])
        head[k] = {"dtype": NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [offset, offset + t.nbytes]}
        offset += t.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(np.ascontiguousarray(tensors[k]).tobytes() for k in sorted(tensors))
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def load_safetensors(path):
    content = Path(path).read_bytes()
    n = struct.unpack("<Q", content[:8])[0]
    head, data, tensors = json.loads(content[8 : 8 + n]), content[8 + n :], {}
    for k, v in head.items():
        if k != "__metadata__":
            begin, end = v["data_offsets"]
            tensors[k] = np.frombuffer(data[begin:end], DTYPES[v["dtype"]]).reshape(v["shape"])
    return tensors


def init(c, rng, random_vectors, widen=1):
    """The reference's initialisation. `random_vectors` perturbs norms and lower bounds and multiplies embeddings by 10
    (not tied ones: logits would be large). `widen` multiplies the layers' matrices, so that activations and gates leave
    their linear range."""
    D, L, V = c["hidden_size"], c["num_hidden_layers"], c["vocab_size"]
    model, layers = settings(c)
    P = {"model.embeddings.weight": rng.normal(0, 0.02, (V, D))}
    if c.get("use_lower_bound", True) and any(setting["token"] == "mlgru" for setting in layers):
        P["model.lower_bounds"] = np.zeros((L, D))
    P["model.norm.weight"] = np.ones(D)

    def projection(name, setting, weight, layer=-1):
        if weight is not None:
            P[name + ".weight"] = weight
        if ruled(c, setting, layer, name.split(".")[-1])["inner_norm"]:
            P[name + ".norm.weight"] = np.ones(D if weight is None else weight.shape[1])

    projection("lm_head", model, None if c.get("tie_word_embeddings") else rng.normal(0, 0.02, (V, D)))
    b = 2**-2.5 * np.sqrt(6 / (2 * D))
    for l, setting in enumerate(layers):
        n, I, sub = f"model.layers.{l}.", setting["intermediate_size"], setting["sub_norm"]
        vectors = {"attn_norm": D, "mlp_norm": D} | ({"mlp.sub_norm": I} if sub else {})
        if setting["token"] == "attention":
            heads, groups, width = attention_shape(c, setting)
            rows = {"q": heads * width, "k": groups * width, "v": groups * width}
            for k in "qkv":
                projection(n + f"attn.{k}_proj", setting, widen * rng.uniform(-b, b, (rows[k], D)), l)
            projection(n + "attn.o_proj", setting, widen * rng.uniform(-b, b, (D, heads * width)), l)
            vectors |= {"attn.sub_norm": heads * width} if sub else {}
        else:
            for k in "ifgo":
                projection(n + f"attn.{k}_proj", setting, widen * rng.uniform(-b, b, (D, D)), l)
            vectors |= {} if setting["gate_order"] == "paper" else {"attn.g_norm": D}
        for k, size in vectors.items():
            P[n + k + ".weight"] = np.ones(size)
        glu, fused = setting["channel"] == "glu", setting["fused_gate"]
        for k in ["up"] if not glu else ["gate"] if fused else ["gate", "up"]:
            rows = 2 * I if glu and fused else I
            projection(n + f"mlp.{k}_proj", setting, widen * rng.normal(0, 0.02, (rows, D)), l)
        projection(n + "mlp.down_proj", setting, widen * rng.normal(0, 0.02, (D, I)) / np.sqrt(2 * L), l)
    if random_vectors:
        P["model.embeddings.weight"] *= 1 if c.get("tie_word_embeddings") else 10
        for k in P:
            if "norm" in k:
                P[k] = P[k] * rng.uniform(0.5, 1.5, P[k].shape)
        if "model.lower_bounds" in P:
            P["model.lower_bounds"] = rng.normal(0, 1, (L, D))
    return {k: v.astype(np.float32) for k, v in P.items()}


# What hgrn_bit cannot say: a model with one of these is of type "mmfree".
BEYOND_HGRN = {"activation", "inner_norm", "channel", "token", "layers", "fused_gate", "sub_norm"}


def config(a):
    c = {"architectures": ["HGRNBitForCausalLM"], "model_type": "hgrn_bit", "hidden_size": a.d,
         "num_hidden_layers": a.layers, "vocab_size": a.vocab, "num_heads": 1, "expand_ratio": 1, "hidden_ratio": 4,
         "intermediate_size": a.inter, "attn_mode": "fused_recurrent", "use_lower_bound": not a.no_lower_bound,
         "use_short_conv": False, "rms_norm_eps": a.eps, "hidden_act": "swish", "initializer_range": 0.02,
         "tie_word_embeddings": a.tied, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 2048,
         "torch_dtype": "float32", "fuse_cross_entropy": True}  # fmt: skip
    if a.settings:
        c["mmfree"] = a.settings
    if a.tied or BEYOND_HGRN & a.settings.keys():
        c |= {"architectures": ["MMFreeForCausalLM"], "model_type": "mmfree"}
        del c["hidden_act"]
    return c


def train(a, c, P, rng):
    """AdamW on a learnable stream, in place: the next token is (5 t + noise) mod V, so that the loss falls."""
    ids = rng.integers(0, a.vocab, (a.steps, a.batch, 1)) + 5 * np.arange(a.seq)
    ids = ((ids + rng.integers(0, 2, (a.steps, a.batch, a.seq))) % a.vocab).astype(np.int32)
    state, losses, norms = {}, [], []
    for i in range(a.steps):
        loss, _, _, G = run(c, P, ids[i])
        losses.append(loss)
        norms.append(adamw(P, G, state, a.lr, i + 1))
    E = {"train/ids": ids, "train/loss": np.array(losses), "train/grad_norm": np.array(norms)}
    return E | {"train/lr": np.array([a.lr])} | {"final/" + k: v for k, v in P.items()}


def example(a, c, rng):
    """(parameters in float32, batch): "input_ids" [B, T], and if asked for "targets", of which half are not scored, and
    "starts" of documents."""
    P = init(c, rng, not a.plain, a.widen)
    ids = rng.integers(0, a.vocab, (a.batch, a.seq)).astype(np.int32)
    batch = {"input_ids": ids}
    if a.masked:
        targets = np.where(rng.random(ids.shape) < 0.5, -100, rng.integers(0, a.vocab, ids.shape))
        batch["targets"] = targets.astype(np.int32)
    if a.starts:
        batch["starts"] = (rng.random(ids.shape) < 0.3).astype(np.int32)
    return P, batch


def as_f64(P):
    return {k: v.astype(np.float64) for k, v in P.items()}


def make(a):
    rng, c = np.random.default_rng(a.seed), config(a)
    P32, E = example(a, c, rng)
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "config.json").write_text(json.dumps(c, indent=1))
    save_safetensors(a.out / "model.safetensors", P32, {"format": "pt"})
    P = as_f64(P32)
    loss, logits, hidden, G = run(c, P, E["input_ids"], E.get("targets"), E.get("starts"))
    E |= {"loss": np.array([loss]), "logits": logits} | {f"hidden/{i}": h for i, h in enumerate(hidden)}
    E |= {"grad/" + k: g for k, g in G.items()}
    if a.steps:
        E |= train(a, c, P, rng)
    save_safetensors(a.out / "expected.safetensors", E)
    print(a.out, "loss", loss, *(["train", *E["train/loss"][[0, -1]]] if a.steps else []))


def check(folder):
    """The set against a run of its model."""
    c = json.loads((folder / "config.json").read_text())
    P = as_f64(load_safetensors(folder / "model.safetensors"))
    E = load_safetensors(folder / "expected.safetensors")
    loss, logits, hidden, G = run(c, P, E["input_ids"], E.get("targets"), E.get("starts"))
    assert {"grad/" + k for k in G} == {k for k in E if k.startswith("grad/")}, f"{folder}: other parameters"
    found = {"loss": np.array([loss]), "logits": logits} | {f"hidden/{i}": h for i, h in enumerate(hidden)}
    found |= {"grad/" + k: g for k, g in G.items()}
    errors = {k: np.abs(found[k] - E[k]).max() / (np.abs(E[k]).max() + 1e-12) for k in found}
    worst = max(errors, key=errors.get)
    print(f"{folder}: worst {worst} {errors[worst]:.1e}")
    assert errors[worst] < 1e-9


# act(−1) and act(2), from tables of the functions, not from the formulas above.
KNOWN = {"silu": (-0.2689414213699951, 1.7615941559557649), "gelu": (-0.15865525393145705, 1.9544997361036416),
         "gelu_tanh": (-0.15880800939172324, 1.9545976940877752), "relu": (0, 2), "relu2": (0, 4),
         "selu": (-1.1113307378125625, 2.101401974710961), "sigmoid": (0.2689414213699951, 0.8807970779778823),
         "identity": (-1, 2)}  # fmt: skip


def frozen():
    """Projections that add to their operands what rounding added at the first pass: smooth, and with the
    straight-through gradient as their exact one."""

    class Frozen(Projection):
        offsets = {}

        def round(self, y):
            if self.name not in self.offsets:
                yq, Wq = super().round(y)
                self.offsets[self.name] = yq - y, Wq - self.W
            dy, dW = self.offsets[self.name]
            return y + dy, self.W + dW

    return Frozen


def gradient_error(c, P, batch, rng, step=1e-4):
    """The largest error of a tensor's gradient along a random direction, against a central difference and relative to
    the gradient's norm; and that tensor."""
    given = {k: batch.get(k) for k in ("targets", "starts")}
    loss = functools.partial(run, c, ids=batch["input_ids"], **given, projection=frozen())
    G, errors = loss(P)[3], {}
    assert G.keys() == P.keys(), f"without gradient or parameter: {P.keys() ^ G.keys()}"
    for k, g in G.items():
        v = rng.normal(size=g.shape)
        v /= np.linalg.norm(v)
        up, down = (loss(P | {k: P[k] + e * v})[0] for e in (step, -step))
        errors[k] = abs((up - down) / (2 * step) - (g * v).sum()) / np.linalg.norm(g)
    worst = max(errors, key=errors.get)
    return errors[worst], worst


def selftest():
    """A kink within a step of an argument shows too: no set may lie so close to one."""
    for name, (act, _) in ACTIVATIONS.items():
        x = np.array([-1.0, 2.0])
        assert np.allclose(act(x), KNOWN[name], rtol=1e-14, atol=0), f"{name}: {act(x)}, expected {KNOWN[name]}"
        assert np.allclose(act(x, 3), 3 * act(x), rtol=1e-15), f"{name} is not scaled by d"
    for name, recipe in RECIPES.items():
        a = recipe_arguments(name, recipe)
        rng, c = np.random.default_rng(a.seed), config(a)
        P, batch = example(a, c, rng)
        error, worst = gradient_error(c, as_f64(P), batch, rng)
        print(f"{name}: worst gradient {worst} {error:.1e}")
        assert error < 1e-7, f"{name}: {worst} is off by {error:.1e}"


SMALL = "--d 25 --layers 2 --vocab 29 --inter 24 --seq 8 --steps 0 --widen 5"
RECIPES = {
    "tiny": "--d 32 --layers 3 --vocab 67 --inter 96 --batch 2 --seq 17 --seed 1 --steps 20",
    "odd": "--d 33 --layers 2 --vocab 61 --inter 127 --batch 3 --seq 13 --seed 2",
    "plain": "--plain --d 40 --layers 4 --vocab 83 --inter 96 --batch 2 --seq 19 --seed 3 --steps 30",
    "gate_fixed": SMALL + """ --seed 4 --settings '{"gate_order": "fixed"}'""",
    "gate_paper": SMALL + """ --seed 5 --no-lower-bound --settings '{"gate_order": "paper"}'""",
    "act_gelu": SMALL + """ --seed 6 --settings '{
        "activation": "gelu", "layers": [{}, {"activation": "gelu_tanh"}]}'""",
    "act_relu": SMALL + """ --seed 23 --settings '{
        "activation": "relu", "layers": [{}, {"activation": "relu2"}]}'""",
    "act_selu": SMALL + """ --seed 23 --settings '{
        "activation": "sigmoid", "layers": [{"activation": "selu"}, {}]}'""",
    "act_identity": SMALL + """ --seed 9 --settings '{
        "activation": "identity", "layers": [{}, {"activation": "silu"}]}'""",
    "mlp": SMALL + """ --seed 21 --inter 34 --settings '{"channel": "mlp", "activation": "relu2"}'""",
    "layers": SMALL + """ --seed 11 --eps 1e-4 --d 19 --layers 4 --vocab 23 --inter 15 --settings '{"layers": [
        {"repeat": 2, "channel": "mlp", "activation": "gelu", "inner_norm": false},
        {"token": "mlgru", "channel": "glu", "intermediate_size": 11, "gate_order": "paper", "precision": "f32"},
        {"gate_order": "fixed", "precision": "bf16"}],
        "precision_rules": [{"layers": [1, 2], "projections": ["o_proj", "up_proj"], "precision": "bf16"}]}'""",
    "no_inner_norm": SMALL + """ --seed 12 --settings '{"inner_norm": false}'""",
    "precision_mix": SMALL + """ --seed 13 --d 22 --vocab 19 --inter 10 --seq 5 --steps 5 --settings '{
        "precision": "bf16", "precision_rules": [{"projections": ["i_proj", "down_proj"], "precision": "ternary"},
        {"projections": ["lm_head"], "precision": "f32"}, {"layers": [1], "precision": "f32"},
        {"layers": [1], "projections": ["g_proj", "down_proj"], "precision": "bf16"}]}'""",
    "tied": SMALL + " --seed 14 --d 29 --layers 1 --inter 17 --steps 5 --no-lower-bound --tied",
    "masked": SMALL + " --seed 16 --batch 3 --inter 20 --masked",
    "starts": SMALL + " --seed 17 --d 21 --batch 3 --inter 16 --starts",
    "attention": SMALL + """ --seed 18 --inter 19 --steps 5 --settings '{"token": "attention", "heads": 4, "kv_heads": 2,
        "head_dim": 8, "precision": "f32", "inner_norm": false, "rope_theta": 40, "fused_gate": false}'""",
    "attention_mix": SMALL + """ --seed 21 --eps 1e-4 --d 24 --layers 3 --inter 17 --settings '{"layers": [
        {"token": "attention", "heads": 3, "kv_heads": 1, "sub_norm": true, "fused_gate": false}, {},
        {"token": "attention", "heads": 1, "head_dim": 16, "channel": "mlp", "activation": "relu2", "sub_norm": true,
         "sliding_window": 4}],
        "precision_rules": [{"projections": ["lm_head", "v_proj"], "precision": "bf16", "inner_norm": false}]}'""",
    "attention_window": SMALL + """ --seed 20 --batch 3 --seq 13 --inter 18 --starts --tied --settings '{"token": "attention",
        "heads": 3, "kv_heads": 3, "head_dim": 8, "sliding_window": 3, "precision": "f32", "sub_norm": true,
        "inner_norm": false}'""",
}


def parser():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = ap.add_subparsers(dest="command", required=True)
    one = commands.add_parser("make", help="one golden set")
    one.add_argument("out", type=Path)
    defaults = {"d": 64, "layers": 3, "vocab": 97, "inter": 256, "batch": 2, "seq": 17, "seed": 1, "steps": 20}
    for name, value in defaults.items():
        one.add_argument("--" + name, type=int, default=value)
    one.add_argument("--lr", type=float, default=4e-3)
    one.add_argument("--eps", type=float, default=1e-6, help="rms_norm_eps")
    one.add_argument("--plain", action="store_true", help="the reference's initialisation, no perturbation")
    one.add_argument("--widen", type=float, default=1, help="factor on the layers' matrices")
    one.add_argument("--settings", type=json.loads, default={}, help='the object "mmfree" of config.json')
    one.add_argument("--no-lower-bound", action="store_true")
    one.add_argument("--tied", action="store_true", help="the head's matrix is that of the embeddings")
    one.add_argument("--masked", action="store_true", help="random targets, about half of them not scored")
    one.add_argument("--starts", action="store_true", help="documents start here and there inside the sequences")
    commands.add_parser("sets", help="all committed sets").add_argument("out", type=Path)
    commands.add_parser("check", help="recompute sets and compare").add_argument("out", type=Path, nargs="+")
    commands.add_parser("selftest", help="gradients against finite differences")
    return ap


def recipe_arguments(out, recipe):
    return parser().parse_args(["make", str(out), *shlex.split(recipe)])


def main():
    a = parser().parse_args()
    if a.command == "make":
        make(a)
    elif a.command == "sets":
        for name, recipe in RECIPES.items():
            make(recipe_arguments(a.out / name, recipe))
    elif a.command == "check":
        for folder in a.out:
            check(folder)
    else:
        selftest()


if __name__ == "__main__":
    main()
