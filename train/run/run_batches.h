#pragma once
#include "data/batches.h"
#include "data/feed.h"
#include "train/config/config.h"

namespace mmfree {

/// How a run's samples follow from its configuration.
BatchOptions batch_options(const RunConfig& config);

/// The samples that rank `rank` of `ranks` reads, when `tokens` targets have been trained on.
BatchFeed::Samples samples_of(const RunConfig& config, int64_t tokens, int rank, int ranks);

}  // namespace mmfree
