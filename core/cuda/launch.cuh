#pragma once
#include <utility>

#include "core/cuda/context.h"

/// Launches whose start overlaps the end of the kernel before (programmatic dependent launch, compute capability 9.0).
/// A kernel that waits for another one's end pays for its launch, the distribution of its blocks and its first
/// instructions each time; a launch that overlaps pays for them while the other one still runs.
///
/// The rule. A kernel that launch_kernel starts calls begin_kernel in every thread before it reads or writes global
/// memory, and before any thread returns. It may prepare registers and shared memory before. Then every pair is safe:
///
///   ours after any kernel         It may start early, but begin_kernel waits until the kernel before has ended and its
///                                 memory is visible. That kernel need not know anything of this.
///   any kernel after ours         A launch without the attribute waits for the end of the kernel before, as ever.
///   ours after ours after ours    begin_kernel lets the next kernel start only behind its own wait, and no kernel ends
///                                 before its wait: so when C passes its wait for B, what B waited for has ended too.
///   copies, fills, events, hosts  They wait for the end of the kernel before, and a kernel behind them waits for
///   theirs.
///
/// A block of the next kernel starts when all blocks of this one have started and a multiprocessor has room for it, so
/// it takes nothing from this one. Under capture the order becomes an edge of the same kind.
namespace mmfree::cuda {

/// See above. Without launch_kernel, or below compute capability 9.0, it does nothing.
__device__ inline void begin_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// The attribute that lets a kernel start before the one before it has ended, and whether this GPU, its driver and the
/// kernels' code allow it: kernels compiled for less than compute capability 9.0 do not wait.
cudaLaunchAttribute overlap_attribute();
bool can_overlap();

struct LaunchShape {
  dim3 grid, threads;
  size_t shared = 0;     ///< bytes of dynamic shared memory
  unsigned cluster = 1;  ///< blocks of a cluster, on Hopper more than one
};

/// Launches a kernel that calls begin_kernel, on `stream()`. Call check_launch behind it.
template <class... Params, class... Args>
void launch_kernel(void (*kernel)(Params...), const LaunchShape& shape, Args&&... args) {
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (can_overlap()) attributes[count++] = overlap_attribute();
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {shape.cluster, 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.threads;
  config.dynamicSmemBytes = shape.shared;
  config.stream = stream();
  config.attrs = attributes;
  config.numAttrs = count;
  cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
}

}  // namespace mmfree::cuda
