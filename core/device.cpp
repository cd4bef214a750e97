#include "core/device.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "core/gpu.h"

namespace mmfree {
namespace {

thread_local int dry_runs = 0;

/// The number that `path` holds, or `otherwise` if there is none ("max").
size_t number_in(const char* path, size_t otherwise) {
  std::ifstream in(path);
  size_t value = 0;
  return in >> value ? value : otherwise;
}

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

size_t available_host_memory() {
  std::ifstream in("/proc/meminfo");
  size_t available = 0;
  std::string word;
  while (in >> word)
    if (word == "MemAvailable:" && in >> available) break;
  available *= 1024;
  constexpr size_t none = std::numeric_limits<size_t>::max();
  const size_t limit = number_in("/sys/fs/cgroup/memory.max", none);
  if (limit == none) return available;
  const size_t used = number_in("/sys/fs/cgroup/memory.current", 0);
  return std::min(available, limit - std::min(limit, used));
}

DryRun::DryRun() { ++dry_runs; }
DryRun::~DryRun() { --dry_runs; }
bool DryRun::active() { return dry_runs > 0; }

}  // namespace mmfree
