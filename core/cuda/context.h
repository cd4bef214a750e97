#pragma once
#include <cuda_runtime.h>

#include "core/error.h"

/// What the kernels of core/cuda share: the stream they run on and how errors become exceptions.
namespace mmfree::cuda {

/// The stream of all kernels.
cudaStream_t stream();
/// The handle of cuBLASLt, a cublasLtHandle_t.
void* blas();
/// Workspace of cuBLASLt's products, kWorkspaceBytes; it belongs to no arena.
void* workspace();
inline constexpr size_t kWorkspaceBytes = size_t(32) << 20;

/// Number of streaming multiprocessors of the GPU in use, for the size of persistent grids.
int multiprocessors();
/// Bytes of shared memory that a block can have.
size_t shared_memory();
/// True on Hopper (compute capability 9.0): some kernels use instructions that only it has.
bool is_hopper();

/// Throws DeviceError "WHAT: cuda says ..." unless `status` is success.
void check(cudaError_t status, const char* what);
/// Call after every launch. With MMFREE_SYNC=1 in the environment it waits for the kernel, so that a fault is reported
/// by the op that caused it.
void check_launch(const char* op);

}  // namespace mmfree::cuda

#define MMFREE_CUDA_CHECK(call) ::mmfree::cuda::check((call), #call)
