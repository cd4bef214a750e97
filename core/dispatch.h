#pragma once
#include "core/device.h"
#include "core/op_watch.h"

namespace mmfree {

/// Throws DeviceError when `device` is not the CPU: this build has no other backend.
inline void require_cpu(Device device, const char* op) {
  MMFREE_CHECK(DeviceError, device == Device::cpu, op, ": this build has no ", name_of(device),
               " backend (configure with -DMMFREE_CUDA=ON)");
}

}  // namespace mmfree

/// Calls the kernel `fn` of the backend that owns `device`: the one place where an op chooses between backends.
#if MMFREE_CUDA
#define MMFREE_DISPATCH_CUDA(device, fn, ...) ::mmfree::run_watched((device), #fn, ::mmfree::cuda::fn, __VA_ARGS__)
#else
#define MMFREE_DISPATCH_CUDA(device, fn, ...) ::mmfree::require_cpu((device), #fn)
#endif
#define MMFREE_DISPATCH(device, fn, ...)                                                 \
  do {                                                                                   \
    if (::mmfree::DryRun::active(device))                                                \
      ::mmfree::leave_out((device), #fn, __VA_ARGS__);                                   \
    else if ((device) == ::mmfree::Device::cpu)                                          \
      ::mmfree::run_watched(::mmfree::Device::cpu, #fn, ::mmfree::cpu::fn, __VA_ARGS__); \
    else                                                                                 \
      MMFREE_DISPATCH_CUDA(device, fn, __VA_ARGS__);                                     \
  } while (0)
