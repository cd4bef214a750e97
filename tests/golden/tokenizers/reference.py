"""Tokenizers as Hugging Face's AutoTokenizer reads them from `mmfree export --format hf`.

    python3 reference.py make OUT --program mmfree             the stored sets: models, texts, files, ids
    python3 reference.py check --program mmfree                the stored sets again from their models, byte by byte
    python3 reference.py compare --program mmfree [MODEL ...]   AutoTokenizer against the sentencepiece package, --texts
                                                                texts: the MODELs, and one of each kind made here

Wants transformers, sentencepiece, numpy.
"""

import argparse
import io
import json
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import sentencepiece
from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent
BOOK = HERE.parents[2] / "data/books/burnett_secret_garden_1911.txt"
SYMBOLS = ["<sep>", "foo", "foob", "oobar", "▁the", "\n"]  # some overlap, one starts with the mark of a space

# What texts are made of: spaces, lines, control characters, scripts, what normalisation would change, rare and
# unassigned code points, texts of special tokens and symbols, runs.
PARTS = [" ", "  ", "     ", "\n", "\n\n", "\r\n", "\t", "\x00", "\x01", "\x1b[0m", "\x7f", "\x85", "\u2028", "\u00a0"]
PARTS += ["\u3000", "\ufeff", "\u200b", "\u202e", "e\u0301", "\u0301", "é", "naïve", "ﬁ", "Ⅷ", "①"]
PARTS += ["ｆｕｌｌ", "\u1100\u1161", "日本語", "한국어", "Ω", "שלום", "مرحبا", "क्षि", "\u0e01\u0e33", "😀", "👩\u200d👩\u200d👧"]
PARTS += ["🇩🇪", "\U0001f468\u200d", "\ue000", "\ufdd0", "\ufffd", "\ufffe", "\U0010ffff", "\u2581", "\u2585", "▁▁"]
PARTS += ["<s>", "</s>", "<unk>", "<pad>", "<ctl>", "<0x0A>", "<0x41>", "<0xF0>", *SYMBOLS[:-1]]
PARTS += ["a", "aa", "the", " the", "The ", "ing", "un", "don't", "garden", " garden", "12", "3.14", "...."]
PARTS += ["----", "====", ". ", "#version 330", "# ", "\\n", '"', "if (x == 0) {", "http://x.y/z?a=b&c=d"]
FIXED = ["", *PARTS, " a", "  a", "a ", "a  ", "<s> a", " </s>", "a</s>", "▁a", " ▁a", "foofoo", " foo"]
FIXED += ["foobar", "\n a"]
FIXED += [" " * n + "a" for n in range(3, 40)]
FIXED += ["x" * 300, " " * 100, "=" * 100, "aaaaaaab" * 20, "日" * 100, "😀" * 40, "\n" * 30, "é\n" * 700]


def some_texts(count, seed=1):
    """Fixed ones first, then random ones of parts, of words with and without spaces, and of code points."""
    rng, words = random.Random(seed), BOOK.read_text("utf-8")[:200_000].split(" ")
    texts = FIXED[:count]
    while len(texts) < count:
        kind, n = rng.random(), rng.randrange(1, 16)
        if kind < 0.5:
            texts.append("".join(rng.choice(PARTS) for _ in range(n)))
        elif kind < 0.65:
            texts.append(rng.choice(["", " ", "\n"]) + " ".join(rng.choice(words) for _ in range(n)))
        elif kind < 0.75:
            texts.append("".join(rng.choice(words) for _ in range(n)))
        elif kind < 0.85:
            texts.append("".join(rng.choice("aab e") for _ in range(4 * n)))
        else:
            codes = (rng.randrange(rng.choice([0x80, 0x3000, 0x110000])) for _ in range(n))
            texts.append("".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000))
    return texts


def trained(**options):
    """Bytes of a SentencePiece model of the book. The text comes as lines, so that no path gets into the model."""
    model, lines = io.BytesIO(), BOOK.read_text("utf-8")[:150_000].split("\n")
    common = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, num_threads=1, **{**common, "model_type": "bpe", **options}
    )
    return model.getvalue()


def with_runs(model, lengths):
    """The model with pieces that are runs of spaces, all of one score, as Llama's and Mistral's have them."""
    for n in lengths:
        text = "▁".encode() * n
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", -1e9)
        model += b"\x0a" + bytes([len(piece)]) + piece
    return model


def trained_by(program, kind="bpe", size=400):
    with tempfile.TemporaryDirectory() as folder:
        text, model = Path(folder, "text.txt"), Path(folder, "a.model")
        text.write_text(BOOK.read_text("utf-8")[:150_000], "utf-8")
        options = ["--vocab-size", str(size), "--type", kind, "--output", str(model)]
        subprocess.run([program, "tokenizer", "train", str(text), *options], check=True, stdout=subprocess.DEVNULL)
        return model.read_bytes()


# The stored sets: how the model is made, and how documents are framed.
SETS = {
    "own": (lambda program: trained_by(program), "bos+eos"),
    "unknown": (
        lambda _: with_runs(trained(vocab_size=300, unk_id=0, pad_id=1, bos_id=2, eos_id=3), [2, 4, 8, 5, 6, 3, 7]),
        "eos",
    ),
    "symbols": (
        lambda _: trained(
            vocab_size=420,
            byte_fallback=True,
            add_dummy_prefix=False,
            user_defined_symbols=SYMBOLS,
            control_symbols=["<ctl>"],
            bos_id=-1,
            eos_id=-1,
        ),
        "none",
    ),
}
# Further kinds for `compare`. True: the export refuses to write it.
KINDS = {
    "bytes": (dict(vocab_size=1500, byte_fallback=True), False),
    "no bytes": (dict(vocab_size=1500), False),
    "no prefix": (dict(vocab_size=1000, add_dummy_prefix=False), False),
    "ids": (dict(vocab_size=1000, byte_fallback=True, unk_id=5, pad_id=3, bos_id=-1, eos_id=-1), False),
    "across spaces": (
        dict(vocab_size=1000, byte_fallback=True, split_by_whitespace=False, allow_whitespace_only_pieces=True),
        False,
    ),
    "symbol of a character": (dict(vocab_size=1000, user_defined_symbols=["\n", "e", "é"]), False),
    "characters": (dict(model_type="char", vocab_size=400, byte_fallback=True, hard_vocab_limit=False), False),
    "characters, no bytes": (dict(model_type="char", vocab_size=60, hard_vocab_limit=False), False),
    "symbols and a prefix": (dict(vocab_size=1000, user_defined_symbols=["<sep>"]), True),
    "unigram": (dict(model_type="unigram", vocab_size=500, byte_fallback=True), True),
    "words": (dict(model_type="word", vocab_size=500), True),
}


def exported(program, folder, model, framing="bos"):
    """A Hugging Face folder that `mmfree export` makes of a small model with this tokenizer, and its warnings."""
    source, out = Path(folder, "source"), Path(folder, "out")
    vocab = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    sizes = ["--d", "8", "--layers", "1", "--inter", "8", "--vocab", str(vocab), "--batch", "1", "--seq", "2"]
    oracle = [sys.executable, HERE.parent / "oracle.py", "make", source]
    subprocess.run([*oracle, *sizes], check=True, stdout=subprocess.DEVNULL)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "mmfree": {"framing": framing}}))
    (source / "tokenizer.model").write_bytes(model)
    command = [program, "export", source, out, "--format", "hf"]
    return out, subprocess.run(command, check=True, capture_output=True, text=True).stderr


def write_set(program, out, model, framing, texts):
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(model)
    with tempfile.TemporaryDirectory() as temporary:
        folder, _ = exported(program, temporary, model, framing)
        for name in ["tokenizer.json", "tokenizer_config.json"]:
            (out / name).write_bytes((folder / name).read_bytes())
        auto = AutoTokenizer.from_pretrained(folder)
        alone = [auto(text, add_special_tokens=False).input_ids for text in texts]
        opening = auto("").input_ids
        for text, ids in zip(texts, alone):
            assert auto(text).input_ids == opening + ids, text
        decoded = [auto.decode(ids, skip_special_tokens=True) for ids in alone]
    lines = [json.dumps({"framing": framing, "opening": opening})]
    for text, ids, back in zip(texts, alone, decoded):
        row = {"text": text, "ids": ids} if back == text else {"text": text, "ids": ids, "decoded": back}
        lines.append(json.dumps(row, separators=(",", ":")))
    (out / "ids.jsonl").write_text("\n".join(lines) + "\n")


def make(arguments):
    for name, (model, framing) in SETS.items():
        write_set(arguments.program, arguments.out / name, model(arguments.program), framing, some_texts(1000))


def check(arguments):
    failed = False
    for name, (_, framing) in SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            again, model = Path(folder, name), (HERE / name / "tokenizer.model").read_bytes()
            write_set(arguments.program, again, model, framing, some_texts(1000))
            unlike = [f.name for f in sorted(again.iterdir()) if f.read_bytes() != (HERE / name / f.name).read_bytes()]
        failed |= bool(unlike)
        print(f"{name}: {', '.join(unlike) + ' differ' if unlike else 'equal'}")
    return failed


def compare(arguments):
    models = {path: (Path(path).read_bytes(), False) for path in arguments.models}
    models |= {name: (trained(**options), refused) for name, (options, refused) in KINDS.items()}
    models |= {f"own {kind}": (trained_by(arguments.program, kind, 1000), kind != "bpe") for kind in ["bpe", "unigram"]}
    texts, failed = some_texts(arguments.texts, arguments.seed), False
    texts += [start + " " * n + end for n in range(150) for start in ["", "a\n"] for end in ["", "the", "\n"]]
    for name, (model, refused) in models.items():
        truth = sentencepiece.SentencePieceProcessor(model_proto=model)
        with tempfile.TemporaryDirectory() as folder:
            out, warning = exported(arguments.program, folder, model)
            try:
                auto = AutoTokenizer.from_pretrained(out)
            except Exception as error:
                print(f"{name}: {error}")
                failed |= not refused or "AutoTokenizer stops" not in warning
                continue
            tokens = ids = back = opened = 0
            opening = [truth.bos_id()] if truth.bos_id() >= 0 else []
            for text in texts:
                expected, got = truth.encode(text), auto(text, add_special_tokens=False).input_ids
                tokens += len(expected)
                ids += got != expected
                opened += auto(text).input_ids != opening + got
                back += auto.decode(expected, skip_special_tokens=True) != truth.decode(expected)
        unlike = f"{ids} by ids, {opened} by bos, {back} by decoded text"
        print(f"{name}: {len(texts)} texts, {tokens} tokens; unlike: {unlike}")
        failed |= refused or ids + opened + back > 0
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function in [make, check, compare]:
        command = commands.add_parser(function.__name__)
        command.set_defaults(run=function)
        command.add_argument("--program", required=True)
        if function is make:
            command.add_argument("out", type=Path)
        if function is compare:
            command.add_argument("models", nargs="*")
            command.add_argument("--texts", type=int, default=1000)
            command.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()
    sys.exit(1 if arguments.run(arguments) else 0)


if __name__ == "__main__":
    main()
