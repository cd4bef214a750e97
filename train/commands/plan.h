#pragma once
#include "train/config/config.h"

namespace mmfree {

/// Prints what a run would be: each key with where its value came from, parameters by role, compute per token and of
/// the whole run.
void print_plan(const RunConfig& config);

}  // namespace mmfree
