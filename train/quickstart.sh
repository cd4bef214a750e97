#!/usr/bin/env bash
# From text to a trained, evaluated and exported MatMul-free language model, in a few minutes on two CPU cores.
#   bash train/quickstart.sh [RUN_FOLDER]        default: runs/quickstart
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,3s/^# //p' "$0"; exit 0 ;; esac
run=${1:-runs/quickstart}
source train/setup.sh

say() { printf '\n== %s\n' "$*"; }
mmfree() { build/mmfree "$@"; }

if [ -e "$run" ]; then
  echo "$run exists already: remove it, or give another folder: bash train/quickstart.sh runs/second" >&2
  exit 73
fi
say "1/7 Packages and build"
mmfree_install
mmfree_build mmfree

say "2/7 Train a vocabulary of 2,048 pieces on two novels (data/books)"
mkdir -p "$run"
mmfree tokenizer train data/books/*.txt --vocab-size 2048 --output "$run/tokenizer.model"

say "3/7 Turn the text into token shards, the last 5 % of each book held out"
mmfree prepare data/books/*.txt --tokenizer "$run/tokenizer.model" --output "$run/shards" --valid-fraction 0.05

say "4/7 Train (configs/quickstart.yaml)"
mmfree train configs/quickstart.yaml train.run_dir="$run" data.train="$run/shards/train-*.h5" \
  data.valid="$run/shards/valid-*.h5" data.tokenizer="$run/tokenizer.model" | tee "$run/train.txt"

say "5/7 Evaluate on the held-out text"
mmfree eval "$run" "$run"/shards/valid-*.h5
mmfree eval "$run" "$run"/shards/valid-*.h5 --json > "$run/eval.json"

say "6/7 Export the ternary weights"
mmfree export "$run" "$run/model.mmfree"
mmfree export "$run" "$run/model-int8.mmfree" --embedding int8

say "7/7 Generate from the export"
mmfree generate "$run/model.mmfree" --prompt "The garden was" --max-tokens 120 --seed 3 | tee "$run/sample.txt"

mmfree report "$run" -o "$run/report.html" > /dev/null

say "Summary"
python3 train/summary.py "$run"
