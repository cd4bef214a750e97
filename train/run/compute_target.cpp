#include "train/run/compute_target.h"

#include <algorithm>
#include <cctype>

#include "core/gpu.h"

namespace mmfree {

bool is_device_name(const std::string& text) {
  if (text == "auto" || text == "cpu" || text == "cuda") return true;
  const std::string number = text.starts_with("cuda:") ? text.substr(5) : "";
  return !number.empty() && number.size() <= 3 && std::all_of(number.begin(), number.end(), ::isdigit);
}

ComputeTarget choose_target(const std::string& device, const std::string& compute, const std::string& where) {
  MMFREE_CHECK(ConfigError, is_device_name(device), where, ": expected auto, cpu, cuda or cuda:N, found ",
               quote(device));
  const int index = device.starts_with("cuda:") ? std::stoi(device.substr(5)) : 0;
  const bool wants_gpu = device.starts_with("cuda") || (device == "auto" && gpu::problem().empty());
  if (!wants_gpu) {
    MMFREE_CHECK(ConfigError, compute != "bf16", where, ": bf16 activations need a GPU; the CPU computes in f32");
    return {};
  }
  const std::string problem = gpu::problem(index);
  MMFREE_CHECK(ConfigError, problem.empty(), where, ": ", problem, "; or choose device cpu");
  gpu::use(index);
  return {Device::cuda, compute == "f32" ? DType::f32 : DType::bf16,
          concat("cuda:", index, " (", gpu::info().name, ")")};
}

}  // namespace mmfree
