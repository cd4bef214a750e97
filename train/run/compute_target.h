#pragma once
#include <string>

#include "core/device.h"
#include "core/dtype.h"

namespace mmfree {

/// Where and in what precision to compute, as resolved from "auto", "cpu", "cuda" or "cuda:N" and "auto", "f32" or
/// "bf16".
struct ComputeTarget {
  Device device = Device::cpu;
  DType compute = DType::f32;  ///< dtype of activations
  std::string name = "cpu";    ///< for people: "cpu" or "cuda:0 (NVIDIA H100 80GB HBM3)"
};

/// `auto` takes GPU 0 where one can be used, else the CPU; activations are bf16 on a GPU and f32 on the CPU. Makes the
/// GPU the one of this process. @throws ConfigError naming `where` for a device that is not there, with the reason
ComputeTarget choose_target(const std::string& device, const std::string& compute, const std::string& where);

/// Whether `text` names a device: auto, cpu, cuda or cuda:N.
bool is_device_name(const std::string& text);

}  // namespace mmfree
