#!/usr/bin/env bash
# Sourced by scripts that train a tiny run in several ways and compare the results.
#   tiny_run FOLDER LEAVES STEPS     makes FOLDER/run.yaml, its shards and its tokenizer; needs build/mmfree
#   same_run RUN RUN                 fails and says so unless both have the same results, to the bit

tiny_run() {
  build/mmfree tokenizer train data/books/*.txt --vocab-size 512 --output "$1/tokenizer.model" >/dev/null 2>&1
  build/mmfree prepare data/books/*.txt --tokenizer "$1/tokenizer.model" --output "$1/shards" --valid-fraction 0.02 >/dev/null 2>&1
  cat >"$1/run.yaml" <<END
model: {vocab_size: 512, hidden_size: 64, num_hidden_layers: 2, intermediate_size: 128}
data: {train: $1/shards/train-*.h5, valid: $1/shards/valid-*.h5, tokenizer: $1/tokenizer.model, seq_len: 64}
optim: {lr: 4e-3}
train: {steps: $3, batch_size: 8, leaves: $2, log_every: 10, eval_every: 100, save_every: 100, threads: 1}
END
}

# Of checkpoints only the last one counts: a disturbed run has some that the other has not.
results_of() {
  grep -o '"train/digest": "[^"]*"\|"val/loss": [^,}]*' "$1/metrics.jsonl"
  grep -o '"checkpoint/weights": "[^"]*"' "$1/metrics.jsonl" | tail -n 1
}

same_run() {
  if [ "$(results_of "$1" | grep -c .)" -lt 3 ] || [ "$(results_of "$1")" != "$(results_of "$2")" ]; then
    echo "$1 and $2 differ" >&2
    return 1
  fi
  echo "equal: $(results_of "$1" | grep -c digest) losses and gradient norms, $(results_of "$1" | grep -c val/loss) evaluations, $(results_of "$1" | tail -n 1)"
}
