#pragma once
#include <string>
#include <vector>

#include "core/ranks/group.h"

namespace mmfree {

/// What a replay compared.
struct ReplayResult {
  int64_t from = 0, to = 0;            ///< steps from + 1 .. to were made again
  int64_t steps = 0, checkpoints = 0;  ///< of these, steps and weights that the metrics tell of: they are the same
  std::string source;                  ///< the checkpoint, or "the start"
};

/// Makes steps of a run again, from its newest checkpoint before `step` up to this, and compares with its metrics: the
/// loss and gradient norm of each step that has a line, and the weights of each checkpoint. Any number of ranks that
/// divides the leaves may do so; nothing is written. `overrides` are laid over the configuration in the checkpoint,
/// such as the place of the data.
/// @throws DataError naming the first step that differs, or if there is nothing to compare; MissingError, ConfigError
ReplayResult replay(const std::string& run_dir, int64_t step, const std::vector<std::string>& overrides, Group& group);

}  // namespace mmfree
