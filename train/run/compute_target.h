#pragma once
#include <optional>
#include <string>

#include "core/device.h"
#include "core/quant_tensor.h"
#include "layers/lm.h"

namespace mmfree {

class Group;
struct RunConfig;

/// Where to compute, as users say it: auto (GPU 0 where one can be used, else the CPU), cpu, cuda or cuda:N.
struct DeviceChoice {
  enum Kind { automatic, cpu, cuda } kind = automatic;
  int index = -1;  ///< N of cuda:N; -1: not given, which means 0
  bool operator==(const DeviceChoice&) const = default;
  /// Whether it means a GPU on this machine.
  bool wants_gpu() const;
};

/// The dtype of activations, as users say it. On the CPU they are f32, and bf16 stands for the operands of backward
/// products. automatic: bf16 on a GPU, and on a CPU whose bf16 products are faster (`fast_bf16_products`).
enum class ComputeChoice { automatic, f32, bf16 };

std::string name_of(const DeviceChoice& choice);
const char* name_of(ComputeChoice choice);
/// The choice that `text` names, or nothing.
std::optional<DeviceChoice> parse_device(const std::string& text);

/// Where and in what precision to compute.
struct ComputeTarget {
  Device device = Device::cpu;
  DType compute = DType::f32;             ///< dtype of activations
  Products products = Products::compute;  ///< of backward passes: bf16 on a CPU that was to compute in it
  std::string name = "cpu";               ///< for people: "cpu" or "cuda:0 (NVIDIA H100 80GB HBM3)"
  bool prefers_int8 = false;  ///< backward products in 8 bits are faster, and no loss from them was measured
};

/// The products of a model's backward pass there, where those of ternary projections are `ternary` (train.backward); of
/// nullopt (auto) what the target prefers.
BackwardProducts backward_products(const ComputeTarget& target, std::optional<Products> ternary);

/// Resolves the choices and makes the GPU, if it is one, that of this process: without a number GPU `local_rank` of
/// those that this process sees, or the only one.
/// @throws ConfigError naming `where` for a device that cannot be used, with the reason
ComputeTarget choose_target(const DeviceChoice& device, ComputeChoice compute, const std::string& where,
                            int local_rank = 0);
/// The same for names. @throws ConfigError naming `where` also for an unknown name
ComputeTarget choose_target(const std::string& device, const std::string& compute, const std::string& where,
                            int local_rank = 0);
/// The target of this rank of a run. If it is a GPU, it can exchange with the other ranks' from then on. Collective.
ComputeTarget choose_target(const RunConfig& config, Group& group);

}  // namespace mmfree
