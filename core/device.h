#pragma once
#include <cstddef>
#include <string>

#include "core/error.h"

namespace mmfree {

/// Where a tensor's memory lives and which backend computes on it. One process drives at most one GPU.
enum class Device : unsigned char { cpu, cuda };

constexpr const char* name_of(Device d) { return d == Device::cpu ? "cpu" : "cuda"; }

/// Copies bytes between any two devices, in the order of the kernels on the compute stream. On return host memory may
/// be used: what was copied to it is there, what was copied from it may be overwritten.
/// @throws DeviceError, also inside a captured step when either end is on the host
void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes);
/// Sets bytes to zero, in the order of the kernels on the compute stream.
void zero_bytes(void* to, Device device, size_t bytes);

/// Bytes of host memory that this process may still take without swapping or being stopped: what the system calls
/// available, or less where its control group (version 1 or 2) or one above it has a limit; cache counts as free. 0 if
/// the system does not say. `at`: where /proc and /sys are.
size_t available_host_memory(const std::string& at = "");

/// While alive, on this thread: memory of a GPU is counted but not obtained, kernels and copies for it do not run. What
/// a computation needs for its tensors can so be counted on any machine. What the launchers of kernels take for
/// themselves while they run is not counted: partial sums and sorting buffers, about 0.1 GB.
class DryRun {
 public:
  DryRun();
  ~DryRun();
  DryRun(const DryRun&) = delete;
  static bool active();
};

}  // namespace mmfree
