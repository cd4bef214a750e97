#pragma once
#include <string>
#include <vector>

#include "train/run/rehearsal.h"

namespace mmfree {

/// How long calls of one size of an op took, on average.
struct OpSample {
  OpCount size;
  double seconds = 0;
};

/// How fast one device computes, measured by whole steps of small models: `mmfree bench --rates`.
struct OpRates {
  std::string device;                                ///< see device_key
  std::string program;                               ///< version of mmfree
  std::string date;                                  ///< for people
  double beside = 1;                                 ///< seconds of a step over the sum of its ops'
  std::map<std::string, std::vector<OpSample>> ops;  ///< by name_of

  /// Seconds of one call. Rates of like sizes count most: weights 1/(ε + δ²), δ = |Δ ln amount| + |Δ ln inner|. An op
  /// that was not measured runs at the mean rate of its kind.
  double seconds(const std::string& name, const OpCount& size) const;
};

/// Seconds of a step at these rates: beside · Σ calls · seconds. Copies and what ranks exchange do not count.
double step_seconds(const StepWork& work, const OpRates& rates);

/// The processor's name, its instructions for ternary products and the number of threads; or the GPU's name, of the one
/// in use. Rates hold for equal keys.
std::string device_key(Device device);
/// Whether a key is a GPU's.
bool is_gpu_key(const std::string& key);

/// Measures the device of `target`, within half a minute and, of a GPU, memory of a few GB. `tell` gets a line of
/// progress before each model. Models that do not fit into free memory are left out.
OpRates measure_rates(const ComputeTarget& target, const std::function<void(const std::string&)>& tell);

}  // namespace mmfree
