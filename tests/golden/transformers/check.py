#!/usr/bin/env python3
"""The golden sets of transformers' classes against the NumPy oracle, which shares no line with them.

    python3 tests/golden/transformers/check.py [SET...]

Wants NumPy alone. Loss, logits, hidden states, every gradient and the training run must agree to 1e-9.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import oracle  # noqa: E402
import formulas  # noqa: E402
import numpy as np  # noqa: E402

# Parts of names: theirs, ours.
NAMES = [("model.embed_tokens", "model.embeddings"), ("self_attn.attn_sub_norm", "attn.sub_norm"),
         ("mlp.ffn_sub_norm", "mlp.sub_norm"), ("self_attn.", "attn."), ("input_layernorm", "attn_norm"),
         ("post_attention_layernorm", "mlp_norm"), ("rms_norm", "norm")]  # fmt: skip


def ours(name):
    for theirs, mine in NAMES:
        name = name.replace(theirs, mine)
    return name


def settings(theirs):
    """config.json of a set as one that the oracle reads."""
    quantised = theirs.get("quantization_config", {})
    heads = theirs["num_attention_heads"]
    head = {"projections": ["lm_head"], "precision": "f32", "inner_norm": False}
    mmfree = {"token": "attention", "heads": heads, "kv_heads": theirs["num_key_value_heads"], "fused_gate": False,
              "head_dim": theirs.get("head_dim") or theirs["hidden_size"] // heads,
              "rope_theta": theirs["rope_parameters"]["rope_theta"],
              "sliding_window": theirs.get("sliding_window") or 0, "activation": theirs["hidden_act"],
              "sub_norm": theirs["model_type"] == "bitnet", "precision": "ternary" if quantised else "f32",
              "inner_norm": quantised.get("use_rms_norm", False), "precision_rules": [head]}  # fmt: skip
    keys = ("hidden_size", "num_hidden_layers", "intermediate_size", "rms_norm_eps", "tie_word_embeddings")
    return {k: theirs[k] for k in keys} | {"mmfree": mmfree}


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def check(folder):
    c = settings(json.loads((folder / "config.json").read_text()))
    P = {ours(k): v for k, v in oracle.as_f64(oracle.load_safetensors(folder / "model.safetensors")).items()}
    E = {ours(k): v for k, v in oracle.load_safetensors(folder / "expected.safetensors").items()}
    loss, logits, hidden, G = formulas.run(c, P, E["input_ids"], E["targets"])
    found = {"loss": np.array([loss]), "logits": logits} | {f"hidden/{i}": h for i, h in enumerate(hidden)}
    found |= {"grad/" + k: g for k, g in G.items()}
    state, losses, norms = {}, [], []
    for i, ids in enumerate(E["train/ids"]):
        loss, _, _, G = formulas.run(c, P, ids)
        losses.append(loss)
        norms.append(formulas.adamw(P, G, state, E["train/lr"][0], i + 1))
    found |= {"train/loss": np.array(losses), "train/grad_norm": np.array(norms)}
    found |= {"final/" + k: v for k, v in P.items()}
    compared = {k for k in E if not k.startswith("f32/") and k not in ("input_ids", "targets", "train/ids", "train/lr")}
    assert compared == found.keys(), f"{folder}: names differ: {sorted(compared ^ found.keys())}"
    errors = {k: error(found[k], E[k]) for k in found}
    worst = max(errors, key=errors.get)
    narrow = {k: error(E[k], E[k[4:]]) for k in E if k.startswith("f32/")}
    print(f"{folder.name}: worst {worst} {errors[worst]:.1e}; their float32 is off by {max(narrow.values()):.1e}")
    assert errors[worst] < 1e-9, f"{folder}: {worst} is off by {errors[worst]:.1e}"


for name in sys.argv[1:] or sorted(p.parent.name for p in HERE.glob("*/expected.safetensors")):
    check(HERE / name)
