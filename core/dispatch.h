#pragma once
#include "core/device.h"

namespace mmfree {

/// Throws DeviceError when `device` is not the CPU: this build has no other backend.
inline void require_cpu(Device device, const char* op) {
  MMFREE_CHECK(DeviceError, device == Device::cpu, op, ": this build has no ", name_of(device), " backend");
}

}  // namespace mmfree

/// Calls the kernel `fn` of the backend that owns `device`: the one place where an op chooses between backends.
#if MMFREE_CUDA
#define MMFREE_DISPATCH(device, fn, ...) \
  ((device) == ::mmfree::Device::cuda ? ::mmfree::cuda::fn(__VA_ARGS__) : ::mmfree::cpu::fn(__VA_ARGS__))
#else
#define MMFREE_DISPATCH(device, fn, ...) (::mmfree::require_cpu((device), #fn), ::mmfree::cpu::fn(__VA_ARGS__))
#endif
