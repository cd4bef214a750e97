#!/usr/bin/env bash
# Trains models of 512 x 12 on prepared shards and says what they learned: a check of the whole program against known
# losses, and a comparison of architectures on the same tokens.
#   bash tests/bench/learning.sh TRAIN.h5 VALID.h5 WIKITEXT2.h5 TOKENIZER.model OUT [MODEL:LR:SEED[:key=value,...] ...]
# MODEL is matmulfree, transformer (Transformer++) or bitnet (BitNet b1.58: a Llama with a BitLinear in place of each
# projection). 1,500 steps of 64 x 1,024 tokens, 100 of warm-up, cosine to 0, decay 0.1 on matrices. Default runs:
# matmulfree:4e-3, transformer:1e-3 and bitnet:4e-3 with seeds 0, 1 and 2. Losses over the first 512 windows of 1,024
# tokens of the held-out part and the first 320 of WikiText-2. OUT gets a folder and a line of results.jsonl per run.
# With several GPUs the runs are spread over them; GPUS=N takes the first N.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
export mmfree=$root/bin/mmfree root
[ -x "$mmfree" ] || mmfree=$root/build/mmfree
export train=$1 valid=$2 wikitext=$3 tokenizer=$4 out=$5
shift 5
if [ $# -eq 0 ]; then
  for seed in 0 1 2; do set -- "$@" "bitnet:4e-3:$seed" "matmulfree:4e-3:$seed" "transformer:1e-3:$seed"; done
fi
mkdir -p "$out"

one_run() {
  local model lr seed keys preset dir begin seconds held_out wiki
  IFS=: read -r model lr seed keys <<<"$1"
  case $model in
    matmulfree) preset=50m ;;
    transformer) preset=transformer-50m ;;
    bitnet)
      preset=transformer-50m
      keys="model.precision=ternary,model.inner_norm=true,${keys:-}"
      ;;
    *) echo "learning.sh: unknown model $model" >&2 && return 2 ;;
  esac
  dir=$out/$model-lr$lr-seed$seed
  begin=$(date +%s)
  # shellcheck disable=SC2086
  "$mmfree" train "$root/configs/$preset.yaml" data.train="$train" data.valid="$valid" data.tokenizer="$tokenizer" \
    data.seq_len=1024 train.batch_size=64 train.micro_batch_size=0 train.steps=1500 train.seed="$seed" \
    optim.lr="$lr" optim.warmup_steps=100 optim.weight_decay_until=1 train.eval_every=0 train.save_every=0 \
    train.log_every=50 train.run_dir="$dir" ${keys//,/ } >"$dir.log" 2>&1 || { tail -n 3 "$dir.log" >&2 && return 1; }
  seconds=$(($(date +%s) - begin))
  held_out=$("$mmfree" eval "$dir" "$valid" --seq-len 1024 --limit 524288 --json)
  wiki=$("$mmfree" eval "$dir" "$wikitext" --seq-len 1024 --limit 327680 --json)
  echo "{\"model\": \"$model\", \"lr\": $lr, \"seed\": $seed, \"seconds\": $seconds, \"valid\": $held_out, \"wikitext2\": $wiki}" |
    tee -a "$out/results.jsonl"
}
export -f one_run

gpus=${GPUS:-$(nvidia-smi -L 2>/dev/null | wc -l || true)}
[ "$gpus" -gt 0 ] || gpus=1
# A place of the pool is a GPU: the file that a run holds while it computes.
printf '%s\n' "$@" | xargs -P "$gpus" -I RUN bash -c '
  for ((gpu = 0; ; gpu = (gpu + 1) % $1)); do
    exec 9>"$out/.gpu$gpu"
    flock -n 9 && break
    [ "$gpu" -lt $(($1 - 1)) ] || sleep 0.2
  done
  CUDA_VISIBLE_DEVICES=$gpu one_run RUN' pool "$gpus"
rm -f "$out"/.gpu*
python3 "$root/tests/bench/plot_loss.py" "$out/learning.svg" "$out"/*-lr*/
