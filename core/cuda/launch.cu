#include "core/cuda/launch.cuh"

namespace mmfree::cuda {
namespace {

/// Stands for all kernels: they are compiled for the same architectures.
__global__ void probe() { begin_kernel(); }

}  // namespace

cudaLaunchAttribute overlap_attribute() {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  return overlap;
}

bool can_overlap() {
  static const bool can = [] {
    constexpr int kDriver = 12030;  // the first that records such launches
    int driver = 0;
    cudaFuncAttributes code{};
    MMFREE_CUDA_CHECK(cudaDriverGetVersion(&driver));
    MMFREE_CUDA_CHECK(cudaFuncGetAttributes(&code, probe));
    return driver >= kDriver && code.ptxVersion >= 90;
  }();
  return can;
}

}  // namespace mmfree::cuda
