#include "train/run/op_rates.h"

#include <algorithm>
#include <cmath>

#include "core/gpu.h"
#include "core/ops/ternary.h"
#include "core/system/machine.h"
#include "core/thread_pool.h"

namespace mmfree {
namespace {

constexpr const char* kGpu = "GPU ";

/// Operations or bytes a second of all samples of a kind together; 0 without any.
double mean_rate(const OpRates& rates, OpWork::Kind kind) {
  double amount = 0, seconds = 0;
  for (const auto& [name, samples] : rates.ops)
    for (const OpSample& s : samples)
      if (s.size.kind == kind && s.size.amount > 0) amount += s.size.amount, seconds += s.seconds;
  return seconds > 0 ? amount / seconds : 0;
}

/// What the shortest calls take: no call is shorter.
double least_seconds(const OpRates& rates) {
  double least = 1e30;
  for (const auto& [name, samples] : rates.ops)
    for (const OpSample& s : samples) least = std::min(least, s.seconds);
  return least < 1e30 ? least : 0;
}

double rate_of_like(const std::vector<OpSample>& samples, const OpCount& size) {
  constexpr double kEpsilon = 1e-6;
  double sum = 0, weights = 0;
  for (const OpSample& s : samples) {
    const double inner = std::log(double(size.inner + 1) / double(s.size.inner + 1));
    const double distance = std::abs(std::log(size.amount / s.size.amount)) + std::abs(inner);
    const double weight = 1 / (kEpsilon + distance * distance);
    sum += weight * std::log(s.size.amount / s.seconds), weights += weight;
  }
  return std::exp(sum / weights);
}

double mean_seconds(const std::vector<OpSample>& samples) {
  double sum = 0;
  for (const OpSample& s : samples) sum += s.seconds;
  return sum / double(samples.size());
}

}  // namespace

double OpRates::seconds(const std::string& name, const OpCount& size) const {
  const auto found = ops.find(name);
  const bool measured = found != ops.end() && !found->second.empty();
  if (!(size.amount > 0)) return measured ? mean_seconds(found->second) : 0;
  const double rate = measured ? rate_of_like(found->second, size) : mean_rate(*this, size.kind);
  return rate > 0 ? std::max(size.amount / rate, least_seconds(*this)) : 0;
}

double step_seconds(const StepWork& work, const OpRates& rates) {
  double sum = 0;
  for (const auto& [name, sizes] : work)
    for (const auto& [size, calls] : sizes) sum += calls * rates.seconds(name, size);
  return rates.beside * sum;
}

std::string device_key(Device device) {
  if (device == Device::cuda) return kGpu + gpu::info().name;
  return concat(processor_name(), ", ", cpu::ternary_instruction_sets().front(), ", ", threads::limit(), " thread",
                threads::limit() == 1 ? "" : "s");
}

bool is_gpu_key(const std::string& key) { return key.starts_with(kGpu); }

}  // namespace mmfree
