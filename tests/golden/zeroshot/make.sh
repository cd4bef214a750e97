#!/usr/bin/env bash
# Makes the two models of this folder, f32/ and ternary/, from data/books: needs the built program.
#   bash tests/golden/zeroshot/make.sh OUT [PROGRAM]
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
out=$1 mmfree=${2:-$root/build/mmfree}
mkdir -p "$out"
"$mmfree" tokenizer train "$root"/data/books/*.txt --vocab-size 384 --output "$out/tokenizer.model"
"$mmfree" prepare "$root"/data/books/*.txt --tokenizer "$out/tokenizer.model" --output "$out/shards" --valid-fraction 0.05
for precision in f32 ternary; do
  "$mmfree" train "$root/configs/quickstart.yaml" train.run_dir="$out/run-$precision" data.train="$out/shards/train-*.h5" \
    data.valid="$out/shards/valid-*.h5" data.tokenizer="$out/tokenizer.model" data.seq_len=128 train.steps=400 \
    train.batch_size=8 train.eval_every=0 optim.lr=1e-2 train.device=cpu train.threads=1 model.precision=$precision model.vocab_size=384 \
    model.hidden_size=32 model.num_hidden_layers=2 model.intermediate_size=64
  "$mmfree" export "$out/run-$precision" "$out/$precision" --format hf --dtype bfloat16
done
