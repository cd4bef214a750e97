"""Compares mmfree with transformers' own classes over Hugging Face folders, in both directions.

    python3 check_folders.py MMFREE [--keep FOLDER]      MMFREE: the program; wants torch, transformers, accelerate

theirs  random models of transformers (llama, mistral, bitnet; quantised or not; tied or not) that save_pretrained wrote
        as f32, bf16 or f16, in one file or in shards: `mmfree score` of the folder against the class.
ours    models of every kind that mmfree trained for some steps: AutoModelForCausalLM of the export against `mmfree
        score` of the checkpoint, and the ternary codes of every matrix.

Compared are log-probabilities of all tokens at every position: logits up to a constant per position. Bounds, relative
to the largest logit:
  f32      1e-5 everywhere: sums in another order
  rounded  2e-2 everywhere and 1e-4 at the median: another last bit may round an activation otherwise, to another int8
           code or bf16 value, which moves it by up to 1/127 of a row's largest; a wrong norm, scale or order moves all
Products in bf16 are compared with transformers' linear layers whose inputs and weights a hook rounds to bf16; how far
both are from products in f32 is printed.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # the quantisers are marked for torch.compile

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

BOOKS = Path(__file__).resolve().parents[3] / "data" / "books"
BOUNDS = {"f32": (1e-5, 1e-5), "rounded": (2e-2, 1e-4)}
STEPS = 13
ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
problems = []


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def texts(vocabulary):
    return torch.randint(0, vocabulary, (2, STEPS), generator=torch.Generator().manual_seed(5))


def scored(program, model, ids, vocabulary):
    """log p of every token after every prefix, [B, T, V]: each is scored as the last of a list of its own."""
    lines = [json.dumps(row[: t + 1].tolist() + [v]) for row in ids for t in range(len(row)) for v in range(vocabulary)]
    command = [program, "score", model, "--input", "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"mmfree score {model}\n{done.stderr}")
    last = [json.loads(line)["logprobs"][-1] for line in done.stdout.splitlines()]
    return torch.tensor(last, dtype=torch.float64).reshape(*ids.shape, vocabulary)


def rounded(x):
    return x.bfloat16().float()


def round_linear(module, inputs):
    module.weight.data = rounded(module.weight.data)
    return tuple(rounded(x) for x in inputs)


def computed_by_transformers(folder, ids, attention="eager", bf16=False):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation=attention)
    missing = set(info["missing_keys"]) - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    if missing or info["unexpected_keys"] or info["mismatched_keys"]:
        problems.append(f"{folder}: {info}")
    for module in model.modules() if bf16 else ():
        if type(module) is torch.nn.Linear:
            if module.weight is model.get_input_embeddings().weight:  # a tied head rounds a copy
                module.weight = torch.nn.Parameter(module.weight.detach().clone())
            module.register_forward_pre_hook(round_linear)
    with torch.no_grad():
        logits = model.eval()(ids).logits.double()
    return logits, model


def compare(name, kind, ours, logits):
    theirs = torch.log_softmax(logits, -1)
    error = (ours - theirs).abs() / logits.abs().max()
    most, median = error.max().item(), error.median().item()
    fits = most <= BOUNDS[kind][0] and median <= BOUNDS[kind][1]
    print(f"{'ok  ' if fits else 'FAIL'} {name:44} {kind:8} largest {most:.1e}  median {median:.1e}", flush=True)
    if not fits:
        problems.append(f"{name}: {most:.1e}, {median:.1e}")


# --- theirs ---

SHAPE = dict(vocab_size=53, hidden_size=48, intermediate_size=72, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, initializer_range=0.3, bos_token_id=1, eos_token_id=2)
THEIRS = {
    "llama": ("llama", {}, None),
    "llama_tied_wide_heads": ("llama", dict(tie_word_embeddings=True, head_dim=16, num_key_value_heads=6), None),
    "llama_gelu_theta": ("llama", dict(hidden_act="gelu_pytorch_tanh", rms_norm_eps=1e-4, rope_theta=300.0,
                                       rope_parameters={"rope_type": "default", "rope_theta": 300.0}), None),
    "mistral_window": ("mistral", dict(sliding_window=4), None),
    "mistral_no_window": ("mistral", dict(sliding_window=None, num_attention_heads=5, num_key_value_heads=1,
                                          head_dim=8), None),
    "bitnet_plain": ("bitnet", dict(tie_word_embeddings=True), None),
    "bitnet": ("bitnet", dict(tie_word_embeddings=True), ONLINE),
    "llama_bitnet": ("llama", {}, ONLINE),
    "llama_bitnet_norms": ("llama", {}, ONLINE | {"use_rms_norm": True}),
    "llama_bitnet_head": ("llama", dict(tie_word_embeddings=True),
                          ONLINE | {"use_rms_norm": True, "modules_to_not_convert": []}),
    "llama_bitnet_some": ("llama", {}, ONLINE | {"use_rms_norm": True, "modules_to_not_convert": [
        "lm_head", "model.layers.1", "model.layers.2.mlp.up_proj", "o_proj"]}),
    "mistral_bitnet": ("mistral", dict(sliding_window=3), ONLINE),
}


def move_norms(model):
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value += 0.6 * torch.rand_like(value) - 0.3


def save_theirs(folder, name, dtype, shard):
    kind, keys, quantisation = THEIRS[name]
    config = transformers.AutoConfig.for_model(kind, **(SHAPE | keys))
    torch.manual_seed(11)
    model = transformers.AutoModelForCausalLM.from_config(config)
    if quantisation:  # the linear layers are replaced when a folder is loaded
        model.save_pretrained(folder)
        change_config(folder, quantization_config=quantisation)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        for file in folder.iterdir():
            file.unlink()
    move_norms(model)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)


def change_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def check_theirs(program, base):
    for name, (_, _, quantisation) in THEIRS.items():
        for dtype, shard in ((torch.float32, "5GB"), (torch.bfloat16, "20KB"), (torch.float16, "5GB")):
            folder = base / f"{name}_{str(dtype)[6:]}"
            save_theirs(folder, name, dtype, shard)
            if shard == "20KB" and not (folder / "model.safetensors.index.json").exists():
                problems.append(f"{folder}: not in shards")
            ids, kind = texts(SHAPE["vocab_size"]), "rounded" if quantisation else "f32"
            logits, _ = computed_by_transformers(folder, ids)
            if dtype == torch.float32:
                other, _ = computed_by_transformers(folder, ids, attention="sdpa")
                compare(f"theirs/{folder.name} (sdpa)", kind, scored(program, folder, ids, SHAPE["vocab_size"]), other)
            else:
                products, _ = computed_by_transformers(folder, ids, bf16=True)
                ours = scored(program, folder, ids, SHAPE["vocab_size"])
                compare(f"theirs/{folder.name} in bf16", "rounded", ours, products)
                change_config(folder, dtype="float32")  # the same weights with products in f32
            compare(f"theirs/{folder.name}", kind, scored(program, folder, ids, SHAPE["vocab_size"]), logits)


# --- ours ---

ATTENTION = dict(vocab_size=320, hidden_size=48, num_hidden_layers=3, intermediate_size=72, token="attention", heads=6,
                 kv_heads=2, inner_norm=False, fused_gate=False, precision="f32", initializer_range=0.1)
HEAD = "[{projections: [lm_head], precision: f32}]"
PLAIN_HEAD = "[{projections: [lm_head], precision: f32, inner_norm: false}]"
OURS = {
    "transformer": ("f32", "llama", {}),
    "transformer_fused_tied": ("f32", "llama", dict(fused_gate=True, tie_word_embeddings=True)),
    "transformer_bf16": ("rounded", "llama", dict(precision="bf16", head_dim=16)),
    "window": ("f32", "mistral", dict(sliding_window=5)),
    "sub_norm": ("f32", "bitnet", dict(sub_norm=True, activation="relu2")),
    "bitnet": ("rounded", "bitnet", dict(precision="ternary", sub_norm=True, activation="relu2", precision_rules=HEAD,
                                         tie_word_embeddings=True)),
    "bit_llama": ("rounded", "llama", dict(precision="ternary", inner_norm=True, precision_rules=PLAIN_HEAD)),
    "bit_llama_no_norms": ("rounded", "llama", dict(precision="ternary", precision_rules=HEAD)),
    "bit_llama_head": ("rounded", "llama", dict(precision="ternary", inner_norm=True)),
    "bit_window": ("rounded", "mistral", dict(precision="ternary", sliding_window=5, precision_rules=HEAD)),
}


def literal(value):
    return str(value).lower() if isinstance(value, bool) else value


def prepare_data(program, base):
    books = sorted(BOOKS.glob("*.txt"))[:1]
    size, tokenizer = ATTENTION["vocab_size"], base / "tokenizer.model"
    run(program, "tokenizer", "train", *books, "--vocab-size", size, "--output", tokenizer)
    run(program, "prepare", *books, "--tokenizer", tokenizer, "--output", base / "shards")


def stored_codes(file, name, columns):
    """Codes of a ternary export: byte j of a block of 32 holds columns j, j + 32, j + 64, j + 96, low bits first."""
    packed = file[name + ".codes"].numpy()
    blocks = packed.reshape(len(packed), -1, 32)
    return np.stack([blocks >> s & 3 for s in (0, 2, 4, 6)], 2).reshape(len(packed), -1)[:, :columns].astype(int) - 1


def check_codes(name, file, model):
    """The codes that transformers' quantiser makes of the exported weights against those of mmfree's own export."""
    different = matrices = 0
    for path, module in model.named_modules():
        if type(module).__name__ != "AutoBitLinear" or (path == "lm_head" and model.config.tie_word_embeddings):
            continue
        matrices += 1
        weight = module.weight.float()
        theirs = (weight / weight.abs().mean().clamp_(min=1e-5)).round().clamp(-1, 1)
        stored = stored_codes(file, path.replace("self_attn.", "attn."), weight.shape[1])
        different += int((theirs.detach().numpy() != stored).sum())
    print(f"     {name}: {matrices} ternary matrices, {different} codes differ", flush=True)
    if different or not matrices:
        problems.append(f"{name}: {different} codes of {matrices} matrices differ")


def check_ours(program, base):
    prepare_data(program, base)
    for name, (kind, model_type, keys) in OURS.items():
        folder, config = base / name, base / f"{name}.yaml"
        model = "\n".join(f"  {k}: {literal(v)}" for k, v in (ATTENTION | keys).items())
        config.write_text(f"model:\n{model}\ndata:\n  train: {base}/shards/train-*.h5\n"
                          f"  tokenizer: {base}/tokenizer.model\n  seq_len: 64\noptim: {{lr: 1e-2}}\n"
                          f"train: {{steps: 20, batch_size: 8, run_dir: {folder}_run}}\n")
        run(program, "train", config, "-q", "train.device=cpu")
        said = run(program, "export", f"{folder}_run", folder, "--format", "hf")
        if "warning" in said or f"model_type {model_type} " not in said:
            problems.append(f"{name}: {said}")
        ids = texts(ATTENTION["vocab_size"])
        bf16 = keys.get("precision") == "bf16"
        logits, model = computed_by_transformers(folder, ids, bf16=bf16)
        ours = scored(program, f"{folder}_run", ids, ATTENTION["vocab_size"])
        compare(f"ours/{name}", kind, ours, logits)
        if bf16:
            plain = computed_by_transformers(folder, ids)[0]
            apart = (logits - plain).abs().max() / plain.abs().max()
            print(f"     {name}: products in f32 are {apart:.1e} from those in bf16", flush=True)
        if keys.get("precision") == "ternary":
            run(program, "export", f"{folder}_run", f"{folder}.mmfree")
            check_codes(name, load_file(f"{folder}.mmfree"), model)
        again = base / f"{name}_again"  # transformers writes it once more, and mmfree reads that
        model.save_pretrained(again)
        compare(f"ours/{name} saved again", kind, scored(program, again, ids, ATTENTION["vocab_size"]), logits)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mmfree")
    parser.add_argument("--keep", help="work in this folder, and leave it")
    parser.add_argument("--only", choices=("theirs", "ours"), help="one direction")
    a = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(a.keep or scratch)
        for part, check in (("theirs", check_theirs), ("ours", check_ours)):
            if a.only not in (None, part):
                continue
            (base / part).mkdir(parents=True, exist_ok=True)
            check(a.mmfree, base / part)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: {len(problems)} problems")
    sys.exit("\n".join(problems) if problems else 0)


if __name__ == "__main__":
    main()
