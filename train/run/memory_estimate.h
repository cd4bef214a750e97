#pragma once
#include <cstddef>

#include "train/config/config.h"

namespace mmfree {

/// Bytes of device memory that training would take, of one rank.
struct MemoryEstimate {
  size_t state = 0;  ///< parameters, gradients, moments, quantised weights
  size_t peak = 0;   ///< the most at once during a step, `state` included
};

/// Counts what a step of `config` allocates by running it without memory and without kernels, so that any machine can
/// say what a GPU needs. The driver's context (about half a GB) and what launchers take for a while (see DryRun) come
/// on top.
MemoryEstimate estimate_memory(const RunConfig& config, DType compute, Recompute recompute, int ranks = 1);

}  // namespace mmfree
