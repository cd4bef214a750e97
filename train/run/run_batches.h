#pragma once
#include "data/batches.h"
#include "data/feed.h"
#include "train/config/config.h"
#include "train/run/loop_state.h"

namespace mmfree {

/// How a run's samples follow from its configuration.
BatchOptions batch_options(const RunConfig& config);

/// The first sample of the step that follows `state`: those before it were trained on or left out.
int64_t next_sample(const RunConfig& config, const LoopState& state);

/// The samples that rank `rank` of `ranks` reads from there on.
BatchFeed::Samples samples_of(const RunConfig& config, const LoopState& state, int rank, int ranks);

}  // namespace mmfree
