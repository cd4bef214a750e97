#pragma once
#include <functional>
#include <map>
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

/// A small model and batch whose step shows how fast a device is at their sizes.
struct Study {
  int64_t width, inner, vocabulary, length, rows;
  Products backward;
  int warm, steps;  ///< steps before those that are measured, and these
};
/// The widths of the models in configs/ and the numbers of tokens that a device computes at a time: half a minute of
/// two cores, or of a GPU, and a few GB. The vocabulary is large enough for a head like those of large models, and
/// small enough for a step not to be all head.
std::vector<Study> studies_of(Device device);
/// One layer of each token mixer, one with ternary projections, one with plain ones; two micro-batches.
RunConfig config_of(const Study& study);

/// Measures the device of `target`. `tell` gets a line of progress before each study. Studies that do not fit into free
/// memory are left out. @throws OutOfMemory if none fits; Error with Exit::stopped after a signal
OpRates measure_rates(const ComputeTarget& target, const std::vector<Study>& studies,
                      const std::function<void(const std::string&)>& tell);

}  // namespace mmfree
