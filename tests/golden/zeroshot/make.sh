#!/usr/bin/env bash
# Makes the models of this folder, f32/, ternary/ and transformer/, from data/books: needs the built program.
#   bash tests/golden/zeroshot/make.sh OUT [PROGRAM]
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
out=$1 mmfree=${2:-$root/build/mmfree}
mkdir -p "$out"
"$mmfree" tokenizer train "$root"/data/books/*.txt --vocab-size 384 --output "$out/tokenizer.model"
"$mmfree" prepare "$root"/data/books/*.txt --tokenizer "$out/tokenizer.model" --output "$out/shards" --valid-fraction 0.05
make() { # NAME DTYPE KEY=VALUE...
  "$mmfree" train "$root/configs/quickstart.yaml" train.run_dir="$out/run-$1" data.train="$out/shards/train-*.h5" \
    data.valid="$out/shards/valid-*.h5" data.tokenizer="$out/tokenizer.model" data.seq_len=128 train.steps=400 \
    train.batch_size=8 train.eval_every=0 optim.lr=1e-2 train.device=cpu train.threads=1 model.vocab_size=384 \
    model.hidden_size=32 model.num_hidden_layers=2 model.intermediate_size=64 "${@:3}"
  "$mmfree" export "$out/run-$1" "$out/$1" --format hf --dtype "$2"
}
make f32 bfloat16 model.precision=f32
make ternary bfloat16 model.precision=ternary
make transformer float32 model.precision=f32 model.token=attention model.heads=4 model.kv_heads=2 model.inner_norm=false \
  model.fused_gate=false
