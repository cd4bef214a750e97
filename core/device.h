#pragma once
#include <cstddef>
#include <string>

#include "core/error.h"

namespace mmfree {

/// Where a tensor's memory lives and which backend computes on it. One process drives at most one GPU.
enum class Device : unsigned char { cpu, cuda };

constexpr const char* name_of(Device d) { return d == Device::cpu ? "cpu" : "cuda"; }

/// Copies bytes between any two devices, in the order of the kernels on the compute stream. If one side is host memory,
/// the copy is complete on return.
/// @throws DeviceError, also inside a captured step when either end is on the host
void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes);
/// Sets bytes to zero, in the order of the kernels on the compute stream.
void zero_bytes(void* to, Device device, size_t bytes);

/// Bytes of host memory that this process can still allocate without swapping or being killed: MemAvailable of
/// /proc/meminfo, or less if its control group (version 1 or 2) or one above has a smaller limit. Page cache counts as
/// free. 0 if unknown. `at`: prefix of the paths /proc and /sys, for tests.
size_t available_host_memory(const std::string& at = "");

/// While alive, ops and copies for a device do not run on this thread; op_watch sees the ops. Together with an
/// ArenaScope of Arena::counted this measures on any machine how much memory the tensors of a computation need. Not
/// counted: what kernels and their launchers allocate while they run, such as partial sums and sorting buffers (about
/// 0.1 GB).
class DryRun {
 public:
  explicit DryRun(Device device = Device::cuda);
  ~DryRun();
  DryRun(const DryRun&) = delete;
  static bool active(Device device = Device::cuda);

 private:
  Device device_;
};

/// Whether this processor multiplies bf16 faster than f32: it has AVX-512 BF16, and is not one of Intel's, where that
/// instruction runs at half the rate of an f32 multiply-add.
bool fast_bf16_products();

}  // namespace mmfree
