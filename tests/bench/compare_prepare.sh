#!/usr/bin/env bash
# mmfree prepare beside SentencePiece's own spm_encode, on one core each, in turn: MB of text per second, and the peak
# memory of prepare. Needs spm_encode (Debian: sentencepiece), zstd, python3 and GNU time.
#   tests/bench/compare_prepare.sh MMFREE TOKENIZER.model CORPUS_FOLDER [ROUNDS]
set -euo pipefail
[ $# -ge 3 ] || { sed -n 2,4p "$0"; exit 2; }
mmfree=$1 tokenizer=$2 corpus=$3 rounds=${4:-3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The same text for both: spm_encode takes lines, so a document's line breaks make lines.
cat "$corpus"/*.jsonl.zst | zstd -dcq >"$work/text.jsonl"
python3 - "$work" <<'PY'
import json, sys
with open(sys.argv[1] + "/text.jsonl") as rows, open(sys.argv[1] + "/text.txt", "w") as lines:
    for row in rows:
        lines.write(json.loads(row)["text"] + "\n")
PY
cat "$work/text.jsonl" "$work/text.jsonl" >"$work/twice.jsonl"
bytes=$(stat -c %s "$work/text.txt")
echo "$(lscpu | sed -n 's/^Model name: *//p' | head -1), $(date -u +%F), $bytes bytes of text"

run() { # NAME COMMAND...: seconds and KiB
  local name=$1
  shift
  OMP_NUM_THREADS=1 taskset -c 0 /usr/bin/time -f '%e %M' -o "$work/time" "$@" >/dev/null 2>"$work/log" ||
    { cat "$work/log" >&2; exit 1; }
  read -r seconds kib <"$work/time"
  awk -v n="$name" -v b="$bytes" -v s="$seconds" -v k="$kib" \
    'BEGIN { printf "%-22s %7.2f s  %5.2f MB/s  peak %.0f MiB\n", n, s, b / s / 1e6, k / 1024 }'
}
for ((i = 0; i < rounds; ++i)); do
  rm -rf "$work/out"
  run "mmfree prepare" "$mmfree" prepare "$work/text.jsonl" -t "$tokenizer" -o "$work/out"
  run "spm_encode" spm_encode --model="$tokenizer" --output_format=id --input="$work/text.txt" --output="$work/ids"
done
rm -rf "$work/out"
bytes=$((2 * bytes))
run "prepare, twice as much" "$mmfree" prepare "$work/twice.jsonl" -t "$tokenizer" -o "$work/out"
