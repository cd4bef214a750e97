#include "core/device.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "core/gpu.h"

namespace mmfree {
namespace {

thread_local int dry_runs[2] = {};  // by device

constexpr size_t kNone = std::numeric_limits<size_t>::max();

/// The number in the file `path`; `otherwise` if the file is missing or holds no number ("max").
size_t number_in(const std::string& path, size_t otherwise) {
  std::ifstream in(path);
  size_t value = 0;
  return in >> value ? value : otherwise;
}

/// The number after the word `key` in the file `path`, or 0.
size_t number_after(const char* key, const std::string& path) {
  std::ifstream in(path);
  size_t value = 0;
  for (std::string word; in >> word;)
    if (word == key && in >> value) return value;
  return 0;
}

/// Bytes left under the limits of this control group and of those above it. `keys`: the files of the limit and of the
/// use, and the word in memory.stat for the cache in that use. Inside a container only the root may exist.
size_t left_in_group(const std::string& root, std::string group, const std::array<const char*, 3>& keys) {
  size_t left = kNone;
  for (;; group.erase(group.rfind('/'))) {
    const std::string folder = root + group + "/";
    const size_t limit = number_in(folder + keys[0], kNone), used = number_in(folder + keys[1], 0);
    const size_t in_use = used - std::min(used, number_after(keys[2], folder + "memory.stat"));
    if (limit != kNone) left = std::min(left, limit - std::min(limit, in_use));
    if (group.empty()) return left;
  }
}

}  // namespace

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  if (bytes == 0) return;
  if (DryRun::active(to_device) || DryRun::active(from_device)) return;
  if (to_device == Device::cpu && from_device == Device::cpu)
    std::memcpy(to, from, bytes);
  else
    gpu::copy(to, to_device, from, from_device, bytes);
}

void zero_bytes(void* to, Device device, size_t bytes) {
  if (bytes == 0 || DryRun::active(device)) return;
  if (device == Device::cpu)
    std::memset(to, 0, bytes);
  else
    gpu::zero(to, bytes);
}

size_t available_host_memory(const std::string& at) {
  size_t available = number_after("MemAvailable:", at + "/proc/meminfo") * 1024;
  std::ifstream groups(at + "/proc/self/cgroup");  // lines of number:controllers:path
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos || line[second + 1] != '/') continue;
    const std::string kind = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string group = line.substr(second + 1);
    while (group.ends_with('/')) group.pop_back();
    const std::string root = at + "/sys/fs/cgroup";
    size_t left = kNone;
    if (kind == ",,")  // version 2
      left = left_in_group(root, group, {"memory.max", "memory.current", "inactive_file"});
    else if (kind.find(",memory,") != std::string::npos)
      left = left_in_group(root + "/memory", group,
                           {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"});
    available = std::min(available, left);
  }
  return available;
}

bool fast_bf16_products() {
#if defined(__x86_64__)
  static const bool fast = __builtin_cpu_supports("avx512bf16") && !__builtin_cpu_is("intel");
  return fast;
#else
  return false;
#endif
}

DryRun::DryRun(Device device) : device_(device) { ++dry_runs[size_t(device)]; }
DryRun::~DryRun() { --dry_runs[size_t(device_)]; }
bool DryRun::active(Device device) { return dry_runs[size_t(device)] > 0; }

}  // namespace mmfree
