#!/usr/bin/env python3
"""Zero-shot results of lm-evaluation-harness itself, on a PyTorch model written from the published equations, or on
its own `hf` model.

    pip install lm_eval torch sentencepiece safetensors       # results here: lm_eval 0.4.13, torch 2.x, float64
    python3 reference.py run MODEL TASK_FOLDER OUT.jsonl [--tasks a,b] [--limit N] [--hf]
    python3 reference.py compare OURS.jsonl OUT.jsonl --loglikelihood 1e-3 --margin 0
    python3 reference.py loss MODEL TEXT.txt --seq-len 128 --limit 5000       # what `mmfree eval` gives

MODEL is an exported Hugging Face folder: hgrn_bit of precision ternary or f32, or with --hf any that AutoModelForCausalLM
and AutoTokenizer load (results here: transformers 5.24, accelerate 1.x, float32). Tasks are lm-eval's own; only where
their documents come from is replaced, by the files NAME*.jsonl[.zst] in TASK_FOLDER. OUT has one line per item, as
`mmfree eval --log-samples` writes them, and then one line per task.
"""
import argparse
import io
import json
import math
import sys
from pathlib import Path

TASKS = ["arc_easy", "arc_challenge", "hellaswag", "openbookqa", "piqa", "winogrande", "lambada_openai"]


# ---- the model: equations of the MatMul-free LM, one sequence length per call, float64 ----


class Model:
    def __init__(self, folder):
        import sentencepiece
        import torch
        from safetensors.torch import load_file

        self.config = json.loads(Path(folder, "config.json").read_text())
        extra = self.config.get("mmfree", {})
        self.precision = extra.get("precision", "ternary")
        assert self.config["model_type"] in ("hgrn_bit", "mmfree") and self.precision in ("ternary", "f32")
        plain = {"token": "mlgru", "channel": "glu", "activation": "silu", "inner_norm": True, "gate_order": "reference",
                 "layers": [], "precision_rules": []}
        assert all(extra.get(key, value) == value for key, value in plain.items())
        assert self.config["use_lower_bound"] and not self.config["tie_word_embeddings"]
        files = sorted(Path(folder).glob("*.safetensors"))
        self.w = {name: t.double() for f in files for name, t in load_file(f).items()}
        self.matrices = {n: self.matrix(t) for n, t in self.w.items() if n[:-7] + ".norm.weight" in self.w}
        p = torch.softmax(self.w["model.lower_bounds"], 0)
        self.bounds = torch.cumsum(p, 0) - p[0]
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(Path(folder, "tokenizer.model")))

    def matrix(self, w):
        if self.precision == "f32":
            return w
        t = 1 / w.abs().mean().clamp(min=1e-5)
        return (w * t).round().clamp(-1, 1) / t

    @staticmethod
    def rms(x, weight, eps):
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight

    def linear(self, x, name):
        y = self.rms(x, self.w[name + ".norm.weight"], 1e-6)
        if self.precision == "ternary":
            s = 127 / y.abs().amax(-1, keepdim=True).clamp(min=1e-5)
            y = (y * s).abs().add(0.5).floor().mul(y.sign()) / s  # halves away from zero
        return y @ self.matrices[name + ".weight"].T

    def logits(self, ids):
        """ids [B, T] -> [B, T, V]"""
        import torch
        from torch.nn.functional import silu

        eps = self.config["rms_norm_eps"]
        h = self.w["model.embeddings.weight"][ids]
        for n in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{n}."
            u = self.rms(h, self.w[layer + "attn_norm.weight"], eps)
            a, z, g = (self.linear(u, f"{layer}attn.{x}_proj") for x in "ifg")
            f = torch.sigmoid(z)
            if n:
                f = self.bounds[n] + (1 - self.bounds[n]) * f
            x, state, states = silu(a) * (1 - f), torch.zeros_like(h[:, 0]), []
            for t in range(h.shape[1]):
                state = f[:, t] * state + x[:, t]
                states.append(state)
            gated = self.rms(g, self.w[layer + "attn.g_norm.weight"], eps) * silu(torch.stack(states, 1))
            h = h + self.linear(gated, layer + "attn.o_proj")
            v = self.rms(h, self.w[layer + "mlp_norm.weight"], eps)
            gate, up = self.linear(v, layer + "mlp.gate_proj").chunk(2, -1)
            h = h + self.linear(silu(gate) * up, layer + "mlp.down_proj")
        return self.linear(self.rms(h, self.w["model.norm.weight"], eps), "lm_head")


def harness_model(model):
    """The model as lm-eval wants it; how texts become tokens and what is cut off is lm-eval's (TemplateLM, HFLM)."""
    import torch
    from lm_eval.api.model import TemplateLM

    class Harness(TemplateLM):
        eot_token_id = model.tokenizer.eos_id()
        prefix_token_id = model.tokenizer.bos_id()
        max_length = model.config["max_position_embeddings"]

        def tok_encode(self, string, add_special_tokens=None, **_):
            ids = model.tokenizer.encode(string)
            return ids if add_special_tokens is False else [model.tokenizer.bos_id(), *ids]

        def _loglikelihood_tokens(self, requests, disable_tqdm=False, **_):
            cut = [((c + t)[-(self.max_length + 1) :], len(t)) for _, c, t in requests]
            by_length = {}
            for i, (ids, _) in enumerate(cut):
                by_length.setdefault(len(ids), []).append(i)
            results = [None] * len(cut)
            for length, members in by_length.items():
                size = max(1, 8192 // length)
                for k in range(0, len(members), size):
                    part = members[k : k + size]
                    ids = torch.tensor([cut[i][0] for i in part])
                    logprobs = torch.log_softmax(model.logits(ids[:, :-1]), -1)
                    for row, i in enumerate(part):
                        n = cut[i][1]
                        target, lp = ids[row, -n:], logprobs[row, -n:]
                        total = lp.gather(1, target[:, None]).sum().item()
                        results[i] = (total, bool((lp.argmax(1) == target).all()))
            return results

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise NotImplementedError

        def generate_until(self, requests, disable_tqdm=False):
            raise NotImplementedError

    return Harness()


# ---- the tasks: lm-eval's, with documents from files ----


def rows_of(folder, task):
    for part in ("", "_test", "_validation"):
        for ending in (".jsonl", ".jsonl.zst"):
            path = Path(folder, task + part + ending)
            if path.exists():
                data = path.read_bytes()
                if ending.endswith(".zst"):
                    import zstandard

                    data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
                return [json.loads(line) for line in data.decode().split("\n") if line.strip()]
    return None


def document(task, row):
    """The document of the original data set that a row was made from, as far as lm-eval reads it."""
    if task in ("arc_easy", "arc_challenge", "openbookqa"):
        question = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        labels = [str(i) for i in range(len(row["choices"]))]
        return {"question": question, "question_stem": question, "choices": {"text": row["choices"], "label": labels},
                "answerKey": str(row["gold"])}
    if task == "hellaswag":  # the rows are what lm-eval's process_docs gives
        return {"query": row.get("query_lmeval", row["query"]), "choices": row["choices"], "label": row["gold"]}
    if task == "piqa":
        return {k: row[k] for k in ("goal", "sol1", "sol2", "label")}
    if task == "lambada_openai":
        return {"text": row["context"] + " " + row["continuation"]}
    return {k: row[k] for k in ("sentence", "option1", "option2", "answer")}


def harness_task(name, rows):
    """lm-eval's task of that name, whose documents are made from `rows`."""
    import datasets
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    root = Path(lm_eval.tasks.__file__).parent
    files = {"winogrande": "winogrande/default", "arc_easy": "arc/arc_easy", "arc_challenge": "arc/arc_challenge",
             "lambada_openai": "lambada/lambada_openai"}
    config = load_yaml(root / (files.get(name, f"{name}/{name}") + ".yaml"))
    documents = datasets.Dataset.from_list([document(name, row) for row in rows])
    config |= {"custom_dataset": lambda **_: {"test": documents}, "test_split": "test"}
    for key in ("dataset_path", "dataset_name", "training_split", "validation_split", "process_docs"):
        config.pop(key, None)
    return ConfigurableTask(config=config)


def hf_model(folder):
    """lm-eval's own class for Hugging Face folders: AutoModelForCausalLM and AutoTokenizer, `--model hf`."""
    import lm_eval.models  # noqa: F401, makes the class known
    from lm_eval.api.registry import get_model

    arguments = f"pretrained={folder},dtype=float32"
    return get_model("hf").create_from_arg_string(arguments, {"batch_size": 1, "device": "cpu"})


def run(a):
    import torch
    from lm_eval import evaluator

    model = hf_model(a.model) if a.hf else harness_model(Model(a.model))
    names = a.tasks.split(",") if a.tasks else [t for t in TASKS if rows_of(a.task_folder, t)]
    tasks = {name: harness_task(name, rows_of(a.task_folder, name)[: a.limit]) for name in names}
    with torch.inference_mode():
        found = evaluator.evaluate(model, tasks, log_samples=True, bootstrap_iters=1000)
    with open(a.out, "w") as out:
        for name in names:
            for s in sorted(found["samples"][name], key=lambda s: s["doc_id"]):
                answers = [r[0] for r in s["resps"]]
                line = {"task": name, "item": s["doc_id"], "logprobs": [x[0] for x in answers],
                        "greedy": [x[1] for x in answers]}
                line |= {k: int(s[k]) for k in ("acc", "acc_norm") if k in s}
                out.write(json.dumps(line) + "\n")
        for name in names:
            metrics = {k.replace(",none", ""): v for k, v in found["results"][name].items() if k.endswith(",none")}
            out.write(json.dumps({"task": name, "items": len(found["samples"][name]), "metrics": metrics}) + "\n")


# ---- loss on text, in windows that each start from the empty state ----


def loss(a):
    import torch

    model = Model(a.model)
    framing = model.config.get("mmfree", {}).get("framing", "bos+eos")
    ids = model.tokenizer.encode(Path(a.text).read_text())
    if framing.startswith("bos"):
        ids.insert(0, model.tokenizer.bos_id())
    if framing.endswith("eos"):
        ids.append(model.tokenizer.eos_id())
    ids = ids[: a.limit + 1]
    nats = 0.0
    with torch.inference_mode():
        for begin in range(0, len(ids) - 1, a.seq_len):
            window = torch.tensor([ids[begin : begin + a.seq_len + 1]])
            logprobs = torch.log_softmax(model.logits(window[:, :-1]), -1)
            nats -= logprobs.gather(2, window[:, 1:, None]).sum().item()
    print(json.dumps({"model": Path(a.model).name, "text": Path(a.text).name, "seq_len": a.seq_len,
                      "tokens": len(ids) - 1, "loss": nats / (len(ids) - 1)}))


# ---- the comparison ----


def margin(scores):
    """By how much the best score leads; infinite for a single one."""
    best = sorted(scores, reverse=True)
    return best[0] - best[1] if len(best) > 1 else math.inf


def compare(a):
    """Prints a line per task. Status 1 if a bound is exceeded."""
    theirs = [json.loads(line) for line in open(a.theirs)]
    ours = {(x["task"], x["item"]): x for x in map(json.loads, open(a.ours))}
    failed = False
    for task in dict.fromkeys(x["task"] for x in theirs):
        items = [x for x in theirs if x["task"] == task and "item" in x]
        largest = differ = clear = unlike = 0
        for x in items:
            y = ours[task, x["item"]]
            largest = max(largest, *(abs(p - q) for p, q in zip(x["logprobs"], y["logprobs"], strict=True)))
            right = {"acc": int(y["taken"] == y["gold"] if len(y["logprobs"]) > 1 else y["greedy"][0])}
            if "taken_norm" in y:
                right["acc_norm"] = int(y["taken_norm"] == y["gold"])
            same = all(right[k] == x[k] for k in right)
            if len(x["logprobs"]) > 1:
                same = same and y["taken"] == max(range(len(x["logprobs"])), key=lambda i: x["logprobs"][i])
            is_clear = margin(x["logprobs"]) > a.margin
            clear, differ = clear + is_clear, differ + (not same)
            unlike += is_clear and not same
        bad = largest > a.loglikelihood or unlike > 0
        failed |= bad
        print(f"{task:16} {len(items):6} items  largest difference {largest:.2e}  answers unlike {differ}, "
              f"of {clear} beyond the margin {unlike}{'  FAILED' if bad else ''}")
    return int(failed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    c = commands.add_parser("run")
    c.add_argument("model")
    c.add_argument("task_folder")
    c.add_argument("out")
    c.add_argument("--tasks")
    c.add_argument("--limit", type=int)
    c.add_argument("--hf", action="store_true", help="ask lm-eval's own `hf` model, in float32")
    c.set_defaults(do=run)
    c = commands.add_parser("loss")
    c.add_argument("model")
    c.add_argument("text")
    c.add_argument("--seq-len", type=int, default=128)
    c.add_argument("--limit", type=int, default=5000)
    c.set_defaults(do=loss)
    c = commands.add_parser("compare")
    c.add_argument("ours")
    c.add_argument("theirs")
    c.add_argument("--loglikelihood", type=float, default=math.inf, help="largest difference of a log-likelihood")
    c.add_argument("--margin", type=float, default=0, help="answers must be equal where the best choice leads by more")
    c.set_defaults(do=compare)
    a = parser.parse_args()
    return a.do(a)


if __name__ == "__main__":
    sys.exit(main())
