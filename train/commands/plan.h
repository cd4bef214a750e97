#pragma once
#include "core/ranks/group.h"
#include "train/config/config.h"

namespace mmfree {

struct PlanOptions {
  std::string rates_file;  ///< of `mmfree bench --rates`
  double price = 0;        ///< of a device for an hour; 0: not known
};

/// Opens what a run reads, reads the beginning of its first batch and prints how much there is. Nothing without
/// data.train and data.sources; which file is missing, if one is. @throws as RunInputs, Batches and Batches::read
void print_data(const RunConfig& config);

/// Prints what a run of the ranks in `group` would be: each key with where its value came from, parameters by role,
/// compute per token and of the whole run, the memory that it would take for each train.recompute and, if it is one
/// rank of several to come, number of ranks, and the time that its steps take and what that costs, if the device's
/// rates were measured. @throws ConfigError if the batch does not divide into leaves
void print_plan(RunConfig config, const Group& group, const PlanOptions& options);

}  // namespace mmfree
