#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "core/cuda/context.h"
#include "core/error.h"

namespace mmfree::cuda {

/// A function of the driver, looked up at run time. The driver's library is not linked, so the program also starts on a
/// machine without it. @throws DeviceError
template <class Function>
Function* driver(const char* name) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &found), name);
  MMFREE_CHECK(DeviceError, entry && found == cudaDriverEntryPointSuccess, "gpu: the driver has no ", name,
               "; a newer driver is needed");
  return reinterpret_cast<Function*>(entry);
}

#define MMFREE_DRIVER(name) ::mmfree::cuda::driver<std::remove_pointer_t<decltype(&::name)>>(#name)

inline void check_driver(CUresult status, const char* what) {
  MMFREE_CHECK(DeviceError, status == CUDA_SUCCESS, "gpu: ", what, " failed with driver status ", int(status));
}

}  // namespace mmfree::cuda
