#pragma once
#include <cstdint>
#include <limits>
#include <string>

#include "optim/optimizer.h"

namespace mmfree {

/// What the evaluations on the way told so far.
struct EvaluationHistory {
  static constexpr double kNone = std::numeric_limits<double>::infinity();

  int64_t step = -1;         ///< of the newest one in here
  double least = kNone;      ///< the loss of the last gain: see TrainConfig::early_stop_delta
  int64_t without_gain = 0;  ///< evaluations since
  int64_t best_step = -1;    ///< of the saved checkpoint that train.keep_best keeps; -1: none yet
  double best_loss = kNone;  ///< its loss

  /// Adds an evaluation with the loss `loss`, for the early stop.
  void add(int64_t of_step, double loss, double delta) {
    const bool gain = loss < least - delta;
    step = of_step;
    without_gain = gain ? 0 : without_gain + 1;
    if (gain) least = loss;
  }
};

/// Where training stands, besides parameters and moments. Everything that the next step depends on.
struct LoopState {
  int64_t step = 0;     ///< optimizer steps done; 0 in an imported model
  int64_t updates = 0;  ///< of these, updates not skipped
  int64_t skipped_in_row = 0;
  int64_t tokens = 0;      ///< target tokens trained on
  std::string data = {};   ///< fingerprint of the training shards
  NormHistory norms = {};  ///< gradient norms of the updates
  EvaluationHistory evaluations = {};
  int64_t rollbacks = 0;  ///< how often the run went back
  int64_t left_out = 0;   ///< samples that these left out
};

/// The numbers behind `data` as one line of JSON, and back into `state`. @throws DataError, beginning with `path`, if
/// `text` is anything else
std::string to_json(const LoopState& state);
void read_json(const std::string& text, const std::string& path, LoopState& state);

}  // namespace mmfree
