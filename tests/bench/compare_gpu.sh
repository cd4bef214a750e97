#!/usr/bin/env bash
# Whole training steps of mmfree and of a PyTorch baseline, in turn on one GPU, with speed and memory side by side.
#   bash tests/bench/compare_gpu.sh BASELINE.py [MODEL:BATCH[:key=value,...] ...]
# BASELINE.py takes --size, --batch, --seq, --steps and prints "RESULT {json}" with tokens_per_s and peak_GB. Default runs:
# 370M:16 370M:8 1.3B:8 50M:32, at 2,048 tokens, medians of 20 steps. Behind a second colon stand bench_step's keys, such as
# arch=transformer, of which torch_transformer.py is the baseline.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
bin=$root/bin
[ -x "$bin/bench_step" ] || bin=$root/build
baseline=${1:?give the baseline, a Python program that prints RESULT}
shift
[ $# -gt 0 ] || set -- 370M:16 370M:8 1.3B:8 50M:32
results=$(mktemp)
trap 'rm -f "$results"' EXIT
for run in "$@"; do
  IFS=: read -r size batch keys <<<"$run"
  python3 "$baseline" --size "$size" --batch "$batch" --seq 2048 --steps 20 | grep '^RESULT' | tee -a "$results"
  # shellcheck disable=SC2086
  "$bin/bench_step" "$size" "$batch" seq=2048 steps=20 ${keys//,/ } | tee -a "$results"
done
python3 - "$results" <<'PY'
import json, sys
rows = [json.loads(line[7:]) for line in open(sys.argv[1])]
print("| model, batch | mmfree, tokens/s | baseline | ratio | mmfree, GB | baseline | ratio |")
print("| --- | --- | --- | --- | --- | --- | --- |")
for theirs, ours in zip(rows[::2], rows[1::2]):
    print(f"| {ours['size']} {ours['arch']}, {ours['batch']} ({ours['recompute']}, keeps {ours['keep_blocks']}) | {ours['tokens_per_s'] / 1e3:.1f}k "
          f"| {theirs['tokens_per_s'] / 1e3:.1f}k | {ours['tokens_per_s'] / theirs['tokens_per_s']:.2f} "
          f"| {ours['peak_GB']:.1f} | {theirs['peak_GB']:.1f} | {ours['peak_GB'] / theirs['peak_GB']:.2f} |")
PY
