#pragma once
#include <functional>

#include "train/config/config.h"

namespace mmfree {

/// The length of a run as its configuration asks for it, in one of three units, and that of the warm-up.
struct Lengths {
  int64_t steps = 0, tokens = 0;  ///< 0: given in another unit
  double epochs = 0;              ///< the same
  int64_t warmup_steps = -1;      ///< as OptimConfig
  int64_t warmup_tokens = 0;      ///< as OptimConfig
};

/// What `config` asks for.
Lengths lengths_of(const RunConfig& config);

/// Puts the lengths that were asked for into train.steps and optim.warmup_steps, after `steps` steps on `tokens` tokens
/// were made. With b = batch_size · seq_len tokens in a step a run takes
///   tokens T   steps + ⌈(T − tokens) / b⌉ steps, so those that were made with another batch count as what they were
///   epochs E   the fewest steps, no fewer than were made, after which epochs(samples) >= E
/// and a warm-up of W tokens ⌈W / b⌉. `epochs` tells how often the data were seen after so many samples (see
/// Batches::epochs); it is called for a length in epochs alone.
/// @throws ConfigError if there are too many steps, or fewer than those of the warm-up
void resolve_lengths(RunConfig& config, const Lengths& asked, const std::function<double(int64_t samples)>& epochs,
                     int64_t steps = 0, int64_t tokens = 0);

/// The same at the start of a run. A length in epochs opens the training shards. RunConfig::origins says what the steps
/// follow from. @throws also what Corpus and Batches throw
void resolve_lengths(RunConfig& config);

}  // namespace mmfree
