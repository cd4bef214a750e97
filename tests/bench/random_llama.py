"""Writes a Llama with random ternary weights as GGUF, of the sizes of configs/transformer-*.yaml.

    python3 tests/bench/random_llama.py 370m|1.3b OUT.gguf

Wants numpy and the package gguf (in a source tree of llama.cpp: gguf-py). Weights are f16; llama-quantize packs them.
"""

import sys

import gguf
import numpy as np

SIZES = {"370m": (1024, 24, 16, 2816), "1.3b": (2048, 24, 32, 5632)}  # width, layers, heads, inner width
VOCAB, CONTEXT = 32000, 2048


def main(size, path):
    width, layers, heads, inner = SIZES[size]
    random = np.random.default_rng(1)
    out = gguf.GGUFWriter(path, "llama")
    out.add_vocab_size(VOCAB)
    out.add_context_length(CONTEXT)
    out.add_embedding_length(width)
    out.add_block_count(layers)
    out.add_feed_forward_length(inner)
    out.add_head_count(heads)
    out.add_head_count_kv(heads)
    out.add_rope_dimension_count(width // heads)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_vocabulary(out)

    def matrix(name, rows, columns):
        codes = random.integers(-1, 2, (rows, columns), dtype=np.int8)
        out.add_tensor(name, codes.astype(np.float16) * np.float16(columns**-0.5))

    def norm(name):
        out.add_tensor(name, np.ones(width, dtype=np.float32))

    out.add_tensor("token_embd.weight", (random.standard_normal((VOCAB, width)) * 0.02).astype(np.float16))
    for layer in range(layers):
        norm(f"blk.{layer}.attn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{name}.weight", width, width)
        norm(f"blk.{layer}.ffn_norm.weight")
        matrix(f"blk.{layer}.ffn_gate.weight", inner, width)
        matrix(f"blk.{layer}.ffn_up.weight", inner, width)
        matrix(f"blk.{layer}.ffn_down.weight", width, inner)
    norm("output_norm.weight")
    matrix("output.weight", VOCAB, width)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def add_vocabulary(out):
    """Pieces that nobody reads: llama.cpp loads no model without any."""
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    out.add_tokenizer_model("llama")
    out.add_token_list(special + [f"\u2581w{i}" for i in range(VOCAB - len(special))])
    out.add_token_scores([float(-i) for i in range(VOCAB)])
    kinds = [2, 3, 3] + [6] * 256
    out.add_token_types(kinds + [1] * (VOCAB - len(kinds)))
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
