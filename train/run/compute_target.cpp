#include "train/run/compute_target.h"

#include <algorithm>
#include <cctype>

#include "core/gpu.h"
#include "core/ranks/group.h"
#include "train/config/config.h"

namespace mmfree {

bool DeviceChoice::wants_gpu() const { return kind == cuda || (kind == automatic && gpu::problem().empty()); }

std::string name_of(const DeviceChoice& choice) {
  if (choice.kind == DeviceChoice::automatic) return "auto";
  if (choice.kind == DeviceChoice::cpu) return "cpu";
  return choice.index < 0 ? "cuda" : concat("cuda:", choice.index);
}

const char* name_of(ComputeChoice choice) {
  return choice == ComputeChoice::automatic ? "auto" : choice == ComputeChoice::f32 ? "f32" : "bf16";
}

std::optional<DeviceChoice> parse_device(const std::string& text) {
  if (text == "auto") return DeviceChoice{};
  if (text == "cpu") return DeviceChoice{DeviceChoice::cpu};
  if (text == "cuda") return DeviceChoice{DeviceChoice::cuda};
  const std::string number = text.starts_with("cuda:") ? text.substr(5) : "";
  if (number.empty() || number.size() > 3 || !std::all_of(number.begin(), number.end(), ::isdigit)) return std::nullopt;
  return DeviceChoice{DeviceChoice::cuda, std::stoi(number)};
}

BackwardProducts backward_products(const ComputeTarget& target, std::optional<Products> ternary) {
  const Products chosen = ternary.value_or(target.prefers_int8 ? Products::int8 : Products::compute);
  return {chosen == Products::compute ? target.products : chosen, target.products};
}

ComputeTarget choose_target(const DeviceChoice& device, ComputeChoice compute, const std::string& where,
                            int local_rank) {
  if (!device.wants_gpu()) {
    const bool bf16 = compute == ComputeChoice::bf16 || (compute == ComputeChoice::automatic && fast_bf16_products());
    return {Device::cpu, DType::f32, bf16 ? Products::bf16 : Products::compute};
  }
  const int index = device.index >= 0 ? device.index : gpu::count() == 1 ? 0 : local_rank;
  const std::string problem = gpu::problem(index);
  MMFREE_CHECK(ConfigError, problem.empty(), where, ": ", problem, "; or choose device cpu");
  gpu::use(index);
  const gpu::Info info = gpu::info();
  const DType activations = compute == ComputeChoice::f32 ? DType::f32 : DType::bf16;
  return {Device::cuda, activations, Products::compute, concat("cuda:", index, " (", info.name, ")"),
          activations == DType::bf16 && info.major == 9 && info.minor == 0};
}

ComputeTarget choose_target(const std::string& device, const std::string& compute, const std::string& where,
                            int local_rank) {
  const std::optional<DeviceChoice> place = parse_device(device);
  MMFREE_CHECK(ConfigError, place, where, ": expected auto, cpu, cuda or cuda:N, found ", quote(device));
  for (const ComputeChoice choice : {ComputeChoice::automatic, ComputeChoice::f32, ComputeChoice::bf16})
    if (compute == name_of(choice)) return choose_target(*place, choice, where, local_rank);
  throw ConfigError(concat(where, ": expected activations in auto, f32 or bf16, found ", quote(compute)));
}

ComputeTarget choose_target(const RunConfig& config, Group& group) {
  const ComputeTarget target =
      choose_target(config.train.device, config.train.compute, config.source + ": train.device", group.local_rank());
  if (target.device == Device::cuda) group.use_gpu();
  return target;
}

}  // namespace mmfree
