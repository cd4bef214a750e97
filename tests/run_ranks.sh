#!/usr/bin/env bash
# Trains with 1, 2, 4 … ranks on this machine and compares the weights, then measures how steps scale.
#   bash tests/run_ranks.sh gpu [MOST [equal | speed]]    on GPUs, a rank each: the 50M preset, 50 steps, 8 leaves, and a leaf
#                                                         per rank; then bench_step, alone on all GPUs at once, then by ranks
#   bash tests/run_ranks.sh cpu [MOST]                    on the CPU with a tiny model; no speed
# From the bundle (tests/ beside bin/) or from a build in build/. Prints one line per run and comparison.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=$root/bin
[ -x "$bin/mmfree" ] || bin=$root/build
device=${1:-cpu} most=${2:-8} part=${3:-all}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
status=0 port=29700

# ranks N COMMAND...: the command as N ranks; prints what rank 0 prints. Fails if one of them does.
ranks() {
  local n=$1 rank pids=() failed=0
  shift
  port=$((port + 1))
  for ((rank = 0; rank < n; ++rank)); do
    RANK=$rank WORLD_SIZE=$n LOCAL_RANK=$rank LOCAL_WORLD_SIZE=$n MASTER_ADDR=127.0.0.1 MASTER_PORT=$port \
      "$@" >"rank$rank" 2>&1 &
    pids+=($!)
  done
  for rank in "${pids[@]}"; do wait "$rank" || failed=1; done
  if [ $failed = 1 ]; then tail -n 3 rank?; else cat rank0; fi
  return $failed
}

# compare NAME: the run in `run` with the first one, which it becomes if there is none.
compare() {
  grep -o '"train/digest": "[^"]*"\|"checkpoint/weights": "[^"]*"' run/metrics.jsonl >"$1.digests"
  mv run "$1"
  [ -e reference ] || { mv "$1.digests" reference && echo "$1: the reference" && return; }
  if cmp -s reference "$1.digests"; then
    echo "$1: the same $(grep -c train/ reference) steps and $(grep -c weights reference) checkpoints"
  else
    echo "$1: DIFFERS after $(cmp reference "$1.digests" | sed 's/.*line //') lines" && status=1
  fi
}

python3 - <<'END'
import random
random.seed(1)
words = ["".join(random.choice("ka lo mi tre su von el da qui".split()) for _ in range(random.randint(1, 4))) for _ in range(3000)]
with open("text.txt", "w") as out:
    for _ in range(40000):
        out.write(" ".join(random.choice(words) for _ in range(20)) + "\n")
END
"$bin/mmfree" tokenizer train text.txt -o tokenizer.model --vocab-size 2000 >log 2>&1 &&
  "$bin/mmfree" prepare text.txt -t tokenizer.model -o shards --valid-fraction 0.01 >>log 2>&1 || { cat log; exit 1; }
keys=(data.train=shards/train-*.h5 data.valid=shards/valid-*.h5 data.tokenizer=tokenizer.model train.run_dir=run
  train.leaves=8 train.steps=50 train.log_every=1 train.save_every=25 train.eval_every=0 optim.warmup_steps=5)
if [ "$device" = gpu ]; then
  config=$root/configs/50m.yaml batch=64
  keys+=(train.device=cuda "train.batch_size=$batch" train.micro_batch_size=4 data.seq_len=512)
else
  config=$root/configs/quickstart.yaml batch=8
  keys+=(train.device=cpu "train.batch_size=$batch" train.micro_batch_size=1 data.seq_len=64 model.hidden_size=64
    model.num_hidden_layers=2 train.threads=1)
fi

# train N SHARD [KEY=VALUE...]: the run in `run` by N ranks.
train() {
  ranks "$1" "$bin/mmfree" train "$config" "${keys[@]}" "train.shard=$2" "${@:3}" -q >log || { cat log; status=1; }
}

if [ "$part" != speed ]; then
  for ((n = 1; n <= most; n *= 2)); do
    for shard in none optimizer; do
      [ "$n$shard" = 1optimizer ] && continue
      train "$n" $shard
      compare "$n-$shard"
    done
  done
  # Begun with all ranks, continued with half of them.
  train "$most" optimizer
  rm -f run/checkpoints/step-00000050.h5
  train $((most / 2)) optimizer --resume
  compare "$most-then-$((most / 2))"
  "$bin/mmfree" replay "$most-optimizer" --step 30 train.device="$([ "$device" = gpu ] && echo cuda || echo cpu)" || status=1
  # A leaf per rank: none are added inside one.
  rm reference
  train 1 none train.leaves="$most" train.micro_batch_size=0
  compare leaf-each-1
  train "$most" optimizer train.leaves="$most" train.micro_batch_size=0
  compare "leaf-each-$most"
fi

[ "$device" = gpu ] && [ "$part" != equal ] && [ -x "$bin/bench_step" ] || exit $status
for run in "370M 16" "1.3B 8"; do
  # GPUs differ: the slowest one alone is what several can be compared with.
  for ((gpu = 0; gpu < most; ++gpu)); do
    # shellcheck disable=SC2086
    CUDA_VISIBLE_DEVICES=$gpu "$bin/bench_step" $run steps=20 >"gpu$gpu" 2>&1 &
  done
  wait
  cat gpu?
  for ((n = 2; n <= most; n *= 2)); do
    # shellcheck disable=SC2086
    ranks "$n" "$bin/bench_step" $run shard=optimizer steps=20 || status=1
  done
done
echo "eight leaves on one GPU, and one"
ranks 1 "$bin/bench_step" 370M 128 micro=16 steps=10 leaves=8 || status=1
ranks 1 "$bin/bench_step" 370M 128 micro=16 steps=10 leaves=1 || status=1
exit $status
