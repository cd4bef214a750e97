#!/usr/bin/env python3
"""Logits of llama.cpp for files that `mmfree export --format gguf` writes, against those of mmfree.

    pip install llama-cpp-python==0.3.36 safetensors      # builds llama.cpp at 0c1e57098
    cmake -S . -B build -G Ninja -DMMFREE_BENCH=ON && ninja -C build mmfree model_logits
    python3 tests/gguf/compare_llama_cpp.py [--build build] [--work build-gguf]

Makes Hugging Face folders with random weights: a Llama, one with ternary matrices and a BitNet. Each is exported in
several types. 100 random tokens go through llama.cpp (attention in F32, one thread) and through mmfree. Per file the
script prints ||theirs - ours|| / ||ours|| over all logits, the bound, and how often both have the same best token; it
fails if a difference exceeds its bound. train/formats/GGUF.md has results.

Roundings to int8 hide small mistakes of the graph. So the F32 files of ternary matrices, whose inputs llama.cpp does
not round, are also compared with mmfree's logits for plain matrices of the same values: "no int8".

The bound. Both programs compute the same graph; they differ by roundings, which count as independent:
 - mmfree rounds the input of a ternary product to int8 with one step for a row, max|x| / 127; llama.cpp with one step
   for 256 elements (TQ1_0, TQ2_0) or 32 (Q2_0, Q8_0), which is at most as large. A rounding has the variance
   step^2 / 12, so the two inputs differ by at most (c / 127) sqrt(2 / 12) of their norm, where c = max|x| / rms x. Here
   c = 4 for normalised inputs and averages of values (the largest of 256 normal numbers is 2.8 times their rms), 10 for
   the product of two gates. Without int8 at llama.cpp's side (F32, F16, BF16 files) there is one rounding, not two.
 - A scale in F16 changes a matrix by at most 2^-11 of its norm; Q8_0's by 2^-11 too, of scale / 127.
 - Where matrices that are not ternary are F16 or BF16, they and the inputs of their products are rounded: each by at
   most u = 2^-11 or 2^-8, u / sqrt(3) on average.
 - Sums in f32: 1e-5 for everything together.
All products' errors are added in quadrature, and the sum is tripled: on its way to the logits an error passes gates,
where it enters both factors, and further norms.
"""

import argparse
import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LAYERS, WIDTH, INNER, HEADS, GROUPS, VOCAB, TOKENS = 3, 256, 512, 8, 4, 384, 100
F16, BF16 = 2.0**-11, 2.0**-8
PROJECTIONS = {  # rows, columns, and c of its input
    "self_attn.q_proj": (WIDTH, WIDTH, 4),
    "self_attn.k_proj": (WIDTH * GROUPS // HEADS, WIDTH, 4),
    "self_attn.v_proj": (WIDTH * GROUPS // HEADS, WIDTH, 4),
    "self_attn.o_proj": (WIDTH, WIDTH, 4),
    "mlp.gate_proj": (INNER, WIDTH, 4),
    "mlp.up_proj": (INNER, WIDTH, 4),
    "mlp.down_proj": (WIDTH, INNER, 10),
}
QUANTISED = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}


def bound(ternary, kind, other):
    """Of ||theirs - ours|| / ||ours||, see above. The head is not ternary."""
    unit = {"F32": 0.0, "F16": F16, "BF16": BF16}
    plain = math.sqrt(2 / 3) * unit[other]  # a matrix and its input, each u / sqrt(3)
    errors = [1e-5, plain]
    for _, _, c in PROJECTIONS.values():
        roundings = 1 if kind in unit else 2
        scale = 0.0 if kind == "F32" else BF16 if kind == "BF16" else F16
        errors += LAYERS * ([c / 127 * math.sqrt(roundings / 12), scale] if ternary else [plain])
        if ternary and kind in unit:  # llama.cpp rounds the input to the file's type
            errors += LAYERS * [unit[kind] / math.sqrt(3)]
    return 3 * math.sqrt(sum(e * e for e in errors))


def as_ternary(matrix):
    """What the codes and the scale of a matrix stand for."""
    scale = np.abs(matrix).mean()
    return np.clip(np.round(matrix / scale), -1, 1) * scale


def write_model(folder, ternary, bitnet, written_out=False):
    """A folder of the shape of Llama's or BitNet's, random and far from a fresh model: no norm is 1, gates are open.
    `written_out`: ternary matrices as plain ones of the same values, so that nothing rounds their inputs."""
    random = np.random.default_rng(7)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    def norm(width):
        return 1 + 0.2 * normal(width)

    tensors = {"model.embed_tokens.weight": normal(VOCAB, WIDTH), "model.norm.weight": norm(WIDTH)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, (rows, columns, _) in PROJECTIONS.items():
            matrix = normal(rows, columns) * np.float32(1.5 * columns**-0.5)
            tensors[f"{at}{name}.weight"] = as_ternary(matrix) if written_out else matrix
        tensors[at + "input_layernorm.weight"] = norm(WIDTH)
        tensors[at + "post_attention_layernorm.weight"] = norm(WIDTH)
        if bitnet:
            tensors[at + "self_attn.attn_sub_norm.weight"] = norm(WIDTH)
            tensors[at + "mlp.ffn_sub_norm.weight"] = norm(INNER)
    if not bitnet:
        tensors["lm_head.weight"] = normal(VOCAB, WIDTH) * np.float32(WIDTH**-0.5)
    name = "BitNet" if bitnet else "Llama"
    config = {
        "architectures": [f"{name}ForCausalLM"], "model_type": name.lower(), "vocab_size": VOCAB,
        "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS, "head_dim": WIDTH // HEADS, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "rope_theta": 10000.0, "attention_bias": False, "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": bitnet, "torch_dtype": "float32",
    }  # fmt: skip
    if ternary and not written_out:
        config["quantization_config"] = QUANTISED | {"modules_to_not_convert": ["lm_head"], "use_rms_norm": False}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def our_logits(build, model, ids, work):
    ids.tofile(work / "ids.bin")
    subprocess.run([build / "model_logits", model, work / "ids.bin", work / "logits.bin"], check=True)
    return np.fromfile(work / "logits.bin", np.float32).reshape(len(ids), VOCAB)


def their_logits(path, ids):
    from llama_cpp import llama_cpp as api

    def quiet(level, text, user):
        pass

    their_logits.quiet = api.llama_log_callback(quiet)  # kept: the library goes on calling it
    api.llama_log_set(their_logits.quiet, None)
    api.llama_backend_init()
    model = api.llama_model_load_from_file(os.fsencode(path), api.llama_model_default_params())
    settings = api.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0  # F32
    settings.flash_attn_type = 0
    context = api.llama_init_from_model(model, settings)
    batch = api.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
        batch.seq_id[i][0] = 0
    if api.llama_decode(context, batch) != 0:
        raise SystemExit(f"{path}: llama_decode failed")
    logits = [np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), (VOCAB,)).copy() for i in range(len(ids))]
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
    return np.stack(logits)


class Table:
    def __init__(self):
        self.failed = False
        print("| model | matrices | others | difference | bound | same best token |\n" + "| --- " * 6 + "|")

    def add(self, model, kind, other, ours, theirs, allowed):
        difference = float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))
        wrong = not difference <= allowed
        self.failed |= wrong
        same = (theirs.argmax(1) == ours.argmax(1)).mean()
        print(f"| {model} | {kind} | {other} | {difference:.2e}{' FAILED' if wrong else ''} | {allowed:.2e} | {same:.0%} |",
              flush=True)  # fmt: skip


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--build", default="build", type=Path)
    options.add_argument("--work", default="build-gguf", type=Path)
    o = options.parse_args()
    program = o.build / "mmfree"
    o.work.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).parents[2]
    tokenizer = o.work / "tokenizer.model"
    text = sorted((root / "data" / "books").glob("*.txt"))[:1]
    subprocess.run([program, "tokenizer", "train", *text, "--vocab-size", str(VOCAB), "--output", tokenizer,
                    *(["--overwrite"] if tokenizer.exists() else [])], check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    ids = np.random.default_rng(1).integers(3, VOCAB, TOKENS).astype(np.int32)
    table = Table()
    for name, ternary, bitnet in (("llama", False, False), ("llama, ternary", True, False), ("bitnet", True, True)):
        folder = o.work / name.replace(", ", "-")
        write_model(folder, ternary, bitnet)
        ours = our_logits(o.build, folder, ids, o.work)
        kinds = ("TQ2_0", "TQ1_0", "Q2_0", "Q8_0", "BF16", "F16", "F32") if ternary else ("",)
        for kind, other in [(k, "F32") for k in kinds] + [(kinds[0], "F16"), (kinds[0], "BF16")]:
            path = o.work / f"{folder.name}-{kind}-{other}.gguf"
            subprocess.run([program, "export", folder, path, "--format", "gguf", "--overwrite", "--tokenizer", tokenizer,
                            "--gguf-other", other, *(["--gguf-type", kind] if kind else [])],
                           check=True, stdout=subprocess.DEVNULL)  # fmt: skip
            theirs = their_logits(path, ids)
            table.add(name, kind or other, other, ours, theirs, bound(ternary, kind, other))
            if kind == "F32":
                write_model(o.work / "plain", ternary, bitnet, written_out=True)
                plain = our_logits(o.build, o.work / "plain", ids, o.work)
                table.add(f"{name}, no int8", kind, other, plain, theirs, bound(False, "", "F32"))
    raise SystemExit(table.failed)


if __name__ == "__main__":
    main()
