#include "train/run/lengths.h"

#include <algorithm>

#include "train/run/run_batches.h"

namespace mmfree {
namespace {

/// ⌈a / b⌉ for any a and b > 0.
int64_t divided_up(int64_t a, int64_t b) { return a > 0 ? (a - 1) / b + 1 : -(-a / b); }

/// The fewest steps from `least` on, `batch` samples each, after which the data were seen `wanted` times; kMostSteps +
/// 1 if these are too few. `made`: the samples of the first `least` steps.
int64_t steps_of_epochs(double wanted, const std::function<double(int64_t)>& epochs, int64_t least, int64_t made,
                        int64_t batch) {
  int64_t low = 0, high = kMostSteps + 1 - least;  // `high` steps more are enough, or too many
  while (low < high) {
    const int64_t more = low + (high - low) / 2;
    if (epochs(made + more * batch) >= wanted)
      high = more;
    else
      low = more + 1;
  }
  return least + low;
}

}  // namespace

Lengths lengths_of(const RunConfig& config) {
  return {config.train.steps, config.train.tokens, config.train.epochs, config.optim.warmup_steps,
          config.optim.warmup_tokens};
}

void resolve_lengths(RunConfig& config, const Lengths& asked, const std::function<double(int64_t samples)>& epochs,
                     int64_t steps, int64_t tokens) {
  TrainConfig& t = config.train;
  const int64_t in_step = t.batch_size * config.data.seq_len;
  t.steps = asked.steps;
  if (asked.tokens > 0) t.steps = steps + divided_up(asked.tokens - tokens, in_step);
  if (asked.epochs > 0)
    t.steps = steps_of_epochs(asked.epochs, epochs, steps, tokens / config.data.seq_len, t.batch_size);
  const char* unit = asked.tokens > 0 ? "train.tokens" : asked.epochs > 0 ? "train.epochs" : "train.steps";
  MMFREE_CHECK(ConfigError, t.steps <= kMostSteps, config.source, ": ", unit, " asks for more than ", kMostSteps,
               " steps; ask for less, or set a larger train.batch_size");
  config.optim.warmup_steps = asked.warmup_tokens > 0 ? divided_up(asked.warmup_tokens, in_step) : asked.warmup_steps;
  const bool known = asked.steps > 0 && asked.warmup_tokens == 0;  // then load_config has compared them
  MMFREE_CHECK(ConfigError, known || config.optim.warmup_steps <= t.steps, config.source, ": the warm-up of ",
               config.optim.warmup_steps, " steps is longer than the run, which has ", t.steps, " (", unit,
               "); shorten optim.warmup_", asked.warmup_tokens > 0 ? "tokens" : "steps");
}

void resolve_lengths(RunConfig& config) {
  const Lengths asked = lengths_of(config);
  if (asked.epochs > 0) {
    const Corpus corpus(config.data);
    const Batches batches(corpus, batch_options(config));
    resolve_lengths(config, asked, [&](int64_t samples) { return batches.epochs(samples); });
  } else {
    resolve_lengths(config, asked, nullptr);
  }
  if (asked.steps == 0) config.origins["train.steps"] = asked.tokens > 0 ? "train.tokens" : "train.epochs";
  if (asked.warmup_tokens > 0) config.origins["optim.warmup_steps"] = "optim.warmup_tokens";
}

}  // namespace mmfree
