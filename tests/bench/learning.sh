#!/usr/bin/env bash
# Trains the 50M preset on prepared shards and says what it learned: a check of the whole program against a known loss.
#   bash tests/bench/learning.sh TRAIN.h5 VALID.h5 WIKITEXT2.h5 TOKENIZER.model OUT [LR:SEED ...]
# 1,500 steps of 64 x 1,024 tokens, 100 of warm-up, cosine to 10 %, decay 0.1 on matrices; default runs 4e-3:0 4e-3:1
# 2e-3:0 1e-2:0. Losses over the first 512 windows of 1,024 tokens of the held-out part and the first 320 of WikiText-2.
# OUT gets a folder and a line of results.jsonl per run, an export and a sample of the first, and loss.svg.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
mmfree=$root/bin/mmfree
[ -x "$mmfree" ] || mmfree=$root/build/mmfree
train=$1 valid=$2 wikitext=$3 tokenizer=$4 out=$5
shift 5
[ $# -gt 0 ] || set -- 4e-3:0 4e-3:1 2e-3:0 1e-2:0
mkdir -p "$out"
first=
for run in "$@"; do
  lr=${run%:*} seed=${run#*:}
  dir=$out/lr$lr-seed$seed
  begin=$(date +%s)
  "$mmfree" train "$root/configs/50m.yaml" data.train="$train" data.valid="$valid" data.tokenizer="$tokenizer" \
    data.seq_len=1024 train.batch_size=64 train.micro_batch_size=0 train.steps=1500 train.seed="$seed" optim.lr="$lr" \
    optim.warmup_steps=100 optim.min_lr_ratio=0.1 optim.weight_decay_until=1 train.eval_every=0 train.save_every=0 train.log_every=50 \
    train.run_dir="$dir"
  seconds=$(($(date +%s) - begin))
  held_out=$("$mmfree" eval "$dir" "$valid" --seq-len 1024 --limit 524288 --json)
  wiki=$("$mmfree" eval "$dir" "$wikitext" --seq-len 1024 --limit 327680 --json)
  echo "{\"lr\": $lr, \"seed\": $seed, \"seconds\": $seconds, \"valid\": $held_out, \"wikitext2\": $wiki}" |
    tee -a "$out/results.jsonl"
  [ -n "$first" ] || first=$dir
done
"$mmfree" export "$first" "$out/model.mmfree" --overwrite
"$mmfree" generate "$out/model.mmfree" --device cpu -p 'The history of the sea' -n 80 --temperature 0.7 --top-k 40 --seed 1 |
  tee "$out/sample.txt"
python3 "$root/tests/bench/plot_loss.py" "$out/loss.svg" "$out"/lr*
