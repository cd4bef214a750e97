#include "core/device.h"

#include <cstring>

#include "core/gpu.h"

namespace mmfree {
namespace {

thread_local int dry_runs = 0;

}  // namespace

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  if (bytes == 0) return;
  if (to_device == Device::cpu && from_device == Device::cpu)
    std::memcpy(to, from, bytes);
  else if (!DryRun::active())
    gpu::copy(to, to_device, from, from_device, bytes);
}

void zero_bytes(void* to, Device device, size_t bytes) {
  if (bytes == 0) return;
  if (device == Device::cpu)
    std::memset(to, 0, bytes);
  else if (!DryRun::active())
    gpu::zero(to, bytes);
}

DryRun::DryRun() { ++dry_runs; }
DryRun::~DryRun() { --dry_runs; }
bool DryRun::active() { return dry_runs > 0; }

}  // namespace mmfree
