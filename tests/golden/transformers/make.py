#!/usr/bin/env python3
"""Makes the golden sets of transformers' classes. README.md beside this file says what a set holds.

    python3 tests/golden/transformers/make.py OUT [SET...]

Wants torch, transformers and accelerate (README.md: the versions). Each set is made twice from one folder: by the
classes as they are in float32, and by the same classes in float64 with each line of PATCHES replaced.
"""

import argparse
import contextlib
import importlib
import inspect
import json
import os
import shutil
import textwrap
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # the quantisers are decorated with torch.compile, which may reorder sums
os.environ["HF_HUB_OFFLINE"] = "1"
import torch  # noqa: E402
import transformers  # noqa: E402
import transformers.utils.logging  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_flatten  # noqa: E402

# Every line of transformers 5.24 that narrows a value of these models to float32, as (file, function, line, what stands
# there instead). A line that is not there, or is there twice, is an error.
DECODERS = [("llama", "Llama"), ("mistral", "Mistral"), ("bitnet", "BitNet")]
PATCHES = [
    patch
    for folder, prefix in DECODERS
    for file in [f"models.{folder}.modeling_{folder}"]
    for patch in [
        # the mean square and its root
        (file, f"{prefix}RMSNorm.forward",
         "hidden_states = hidden_states.to(torch.float32)",
         "hidden_states = hidden_states.to(torch.float64)"),
        # the softmax of attention; the mask that is added before has the dtype of the embeddings
        (file, "eager_attention_forward",
         "attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)",
         "attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float64).to(query.dtype)"),
        # the frequencies of the rotary positions
        (file, f"{prefix}RotaryEmbedding.compute_default_rope_parameters",
         "inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))",
         "inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim))"),
        # the angles, their cosines and sines
        (file, f"{prefix}RotaryEmbedding.forward",
         "freqs = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)",
         "freqs = position_ids[..., None].double() * self.inv_freq.to(device=x.device, dtype=torch.float64)"),
    ]
] + [
    # the scale and the codes of weights
    ("integrations.bitnet", "WeightQuant.forward", "weight = weight.float()", "weight = weight.double()"),
    # the steps and the codes of activations
    ("integrations.bitnet", "ActQuant.forward", "activation = activation.float()", "activation = activation.double()"),
    # the cross entropy
    ("loss.loss_utils", "ForCausalLMLoss", "logits = logits.float()", "logits = logits.double()"),
]  # fmt: skip


@contextlib.contextmanager
def patched(report=False):
    """transformers with PATCHES, at run time; the package's files stay as they are."""
    undo = []
    try:
        for file, path, line, other in PATCHES:
            module = importlib.import_module("transformers." + file)
            *classes, name = path.split(".")
            owner = module
            for c in classes:
                owner = getattr(owner, c)
            old = vars(owner)[name]
            lines, first = inspect.getsourcelines(inspect.unwrap(getattr(owner, name)))
            at = [i for i, text in enumerate(lines) if text.strip() == line]
            assert len(at) == 1, f"{module.__file__}: {path} holds {line!r} {len(at)} times, not once"
            lines[at[0]] = lines[at[0]].replace(line, other)
            scope = {}
            exec(textwrap.dedent("".join(lines)), vars(module), scope)
            setattr(owner, name, scope[name])
            undo.append((owner, name, old))
            if name == "ForCausalLMLoss":
                table = module.LOSS_MAPPING
                keys = [k for k, v in table.items() if v is old]
                table.update({k: scope[name] for k in keys})
                undo += [(table, k, old) for k in keys]
            if report:
                print(f"{'/'.join(Path(module.__file__).parts[-3:])}:{first + at[0]}: {line}  ->  {other}")
        yield
    finally:
        for owner, name, old in undo:
            if isinstance(owner, dict):
                owner[name] = old
            else:
                setattr(owner, name, old)


class OnlyFloat64(TorchDispatchMode):
    """Refuses every operation that yields floating-point values of another dtype than float64. `margin` is the least
    distance from a half of what was rounded: halves to even and halves away from zero give the same codes above 0."""

    margin = 0.5

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.round.default:
            self.margin = min(self.margin, (0.5 - (args[0] - out).abs()).min().item())
        for t in tree_flatten(out)[0]:
            if isinstance(t, torch.Tensor) and t.is_floating_point() and t.dtype != torch.float64:
                raise TypeError(f"{func} yields {t.dtype}")
        return out


ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
# What is rounded keeps this distance from a half in the single pass, in units of a code: more than float32 may move it
# (127 · 3e-7), so that no code flips there. Seeds of the quantised sets were chosen for it.
MARGIN = 4e-5
TRAIN = {"lr": 4e-3, "steps": 20, "betas": (0.9, 0.95), "eps": 1e-8, "decay": 0.1, "clip": 1.0}

# What differs from the classes' defaults; "seed", "batch" and "seq" are ours. Sizes fit no register and no tile.
LLAMA = {"model_type": "llama", "vocab_size": 37, "hidden_size": 28, "intermediate_size": 30, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "batch": 3, "seq": 17}  # fmt: skip
SETS = {
    "llama": LLAMA | {"seed": 1},
    "llama_tied": LLAMA | {"seed": 2, "tie_word_embeddings": True, "hidden_size": 22, "num_attention_heads": 2,
                           "num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 1e-5, "batch": 2,
                           "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "mistral": LLAMA | {"model_type": "mistral", "seed": 3, "hidden_size": 26, "num_attention_heads": 3,
                        "num_key_value_heads": 1, "num_hidden_layers": 3, "intermediate_size": 23,
                        "sliding_window": 5, "batch": 2},
    "bitnet": LLAMA | {"model_type": "bitnet", "bos_token_id": 1, "eos_token_id": 2, "seed": 24, "hidden_size": 24, "num_attention_heads": 3, "head_dim": None,
                       "num_key_value_heads": 1, "intermediate_size": 31, "num_hidden_layers": 3, "batch": 2,
                       "tie_word_embeddings": True, "quantization_config": ONLINE},
    "llama_bitlinear": LLAMA | {"seed": 28, "quantization_config": ONLINE | {"use_rms_norm": True}},
    "llama_ternary": LLAMA | {"seed": 33, "hidden_size": 20, "quantization_config": ONLINE | {"use_rms_norm": False}},
}  # fmt: skip
OURS = ("seed", "batch", "seq")


def load(folder, dtype, attention):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    for p in model.parameters():
        p.requires_grad_(True)
    return model.train()


def randomise(model, generator):
    """Norms far from 1; matrices so large that softmax and activations leave their linear range."""
    table = 0.3 if model.config.tie_word_embeddings else 1
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.uniform_(0.5, 1.5, generator=generator)
            else:
                p.normal_(0, table if "embed_tokens" in name else 1.5 / p.shape[1] ** 0.5, generator=generator)


def save_model(folder, settings):
    """The set's config.json and model.safetensors in float32. What is quantised is made by loading a plain model as such:
    transformers has no other way."""
    keys = {k: v for k, v in settings.items() if k not in OURS and v is not None}
    quantised = keys.pop("quantization_config", None)
    shutil.rmtree(folder, ignore_errors=True)
    transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**keys)).save_pretrained(folder)
    if quantised:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    model = load(folder, torch.float32, "eager")
    randomise(model, torch.Generator().manual_seed(settings["seed"]))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def draw_ids(generator, vocab, *shape):
    """Streams whose next token is 5 t + 0 or 1, modulo the vocabulary, so that there is something to learn."""
    first = torch.randint(0, vocab, (*shape[:-1], 1), generator=generator)
    noise = torch.randint(0, 2, shape, generator=generator)
    return (first + 5 * torch.arange(shape[-1]) + noise) % vocab


def next_tokens(ids):
    return torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1)


def run(model, ids, targets):
    """(loss, logits, inputs of the layers and output of the final norm, margin); the gradients stay in the model."""
    model.zero_grad(set_to_none=True)
    mode = OnlyFloat64()
    with mode if model.dtype == torch.float64 else contextlib.nullcontext():
        out = model(input_ids=ids, labels=ids, shift_labels=targets, output_hidden_states=True, use_cache=False)
        out.loss.backward()
    return out.loss.detach(), out.logits.detach(), [h.detach() for h in out.hidden_states], mode.margin


def gradients(model):
    return {k: p.grad.clone() for k, p in model.named_parameters()}


def train(model, batches):
    """torch's AdamW behind clip_grad_norm_, decay on matrices other than the embedding table; in place."""
    named = dict(model.named_parameters())
    decayed = [p for k, p in named.items() if p.ndim == 2 and "embed_tokens" not in k]
    rest = [p for k, p in named.items() if p.ndim != 2 or "embed_tokens" in k]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": TRAIN["decay"]},
                                   {"params": rest, "weight_decay": 0.0}],
                                  lr=TRAIN["lr"], betas=TRAIN["betas"], eps=TRAIN["eps"])  # fmt: skip
    losses, norms = [], []
    for ids in batches:
        loss, _, _, margin = run(model, ids, next_tokens(ids))
        assert margin > 1e-10, f"a value lies within {margin} of a tie between two codes"
        losses.append(loss)
        norms.append(torch.nn.utils.clip_grad_norm_(named.values(), TRAIN["clip"]))
        optimizer.step()
    return torch.stack(losses), torch.stack(norms).detach()


def check_frequencies(model):
    """The one buffer that a conversion of the model could have rounded."""
    rotary, c = model.model.rotary_emb, model.config
    width, theta = model.model.layers[0].self_attn.head_dim, c.rope_parameters["rope_theta"]
    expected = torch.tensor([theta ** (-2 * i / width) for i in range(width // 2)], dtype=torch.float64)
    assert (rotary.inv_freq - expected).abs().max() < 1e-15, "inv_freq is not in float64"


def direction_error(model, ids, targets, generator, step=1e-4):
    """The largest error of a tensor's gradient along a random direction, against a central difference of fourth order
    and relative to the gradient's norm."""
    run(model, ids, targets)
    errors = {}
    for name, p in model.named_parameters():
        v, g, start = torch.randn(p.shape, generator=generator, dtype=torch.float64), p.grad.clone(), p.detach().clone()
        v /= v.norm()

        def loss(e):
            with torch.no_grad():
                p.copy_(start + e * step * v)
                return model(input_ids=ids, labels=ids, shift_labels=targets).loss.item()

        slope = (8 * (loss(1) - loss(-1)) - (loss(2) - loss(-2))) / (12 * step)
        errors[name] = abs(slope - (g * v).sum().item()) / g.norm().item()
        with torch.no_grad():
            p.copy_(start)
    worst = max(errors, key=errors.get)
    assert errors[worst] < 1e-7, f"{worst}: off by {errors[worst]:.1e}"
    return errors[worst]


def make(folder, settings):
    save_model(folder, settings)
    generator = torch.Generator().manual_seed(1000 + settings["seed"])
    batch = settings["batch"], settings["seq"]
    ids = torch.randint(0, settings["vocab_size"], batch, generator=generator)
    targets = next_tokens(ids)
    targets[torch.rand(batch, generator=generator) < 0.2] = -100
    batches = draw_ids(generator, settings["vocab_size"], TRAIN["steps"], *batch)
    expected = {"input_ids": ids.int(), "targets": targets.int(), "train/ids": batches.int()}

    model = load(folder, torch.float32, None)
    loss32, logits, hidden32, _ = run(model, ids, targets)
    expected |= {"f32/loss": loss32.reshape(1), "f32/logits": logits}
    expected |= {"f32/grad/" + k: g for k, g in gradients(model).items()}
    with patched():
        model = load(folder, torch.float64, "eager")
        check_frequencies(model)
        finite = None if "quantization_config" in settings else direction_error(model, ids, targets, generator)
        loss, logits, hidden, margin = run(model, ids, targets)
        expected |= {"loss": loss.reshape(1), "logits": logits}
        expected |= {f"hidden/{i}": h for i, h in enumerate(hidden)}
        expected |= {"grad/" + k: g for k, g in gradients(model).items()}
        losses, norms = train(model, batches)
        expected |= {"train/loss": losses, "train/grad_norm": norms}
        expected["train/lr"] = torch.tensor([TRAIN["lr"]], dtype=torch.float64)
        expected |= {"final/" + k: p.detach() for k, p in model.named_parameters()}
    save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
    moved = max(((a - b).norm() / b.norm()).item() for a, b in zip(hidden32, hidden))
    assert margin > MARGIN and moved < 2e-6, f"{folder.name}: codes may flip in float32: {margin:.1e}, {moved:.1e}"
    print(f"{folder.name}: loss {loss:.6f}, train {losses[0]:.4f} .. {losses[-1]:.4f}; float32 moves the stream by "
          f"{moved:.1e}; " + ("finite differences agree to " + f"{finite:.1e}" if finite else f"margin {margin:.1e}"))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", type=Path)
    ap.add_argument("sets", nargs="*", metavar="SET", help="default: all")
    a = ap.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.use_deterministic_algorithms(True)
    with patched(report=True):
        pass
    for name in a.sets or SETS:
        make(a.out / name, SETS[name])


if __name__ == "__main__":
    main()
