#include "train/run/digest.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/parallel.h"
#include "core/ranks/agreement.h"
#include "core/system/hash.h"

namespace mmfree {
namespace {

/// Blocks that pass through host memory at a time.
constexpr int64_t kBlocksAtATime = 4096;

uint64_t hash_of(const void* bytes, size_t n, uint64_t number) {
  std::string text(sizeof number + n, '\0');
  std::memcpy(text.data(), &number, sizeof number);
  std::memcpy(text.data() + sizeof number, bytes, n);
  return hash64(text);
}

}  // namespace

std::string step_digest(double loss, double grad_norm) {
  const double numbers[] = {loss, grad_norm};
  return hex16(hash_of(numbers, sizeof numbers, 0));
}

/// The sum of the blocks' hashes, each with its block's number: no order of blocks is better than another.
std::string weights_digest(const Tensor& mine, const Share& share) {
  const int64_t blocks = mine.size() / kParamBlock, first = share.begin() / kParamBlock;
  const auto bytes = size_t(kParamBlock * size_of(mine.dtype()));
  std::atomic<uint64_t> sum = 0;
  for (int64_t at = 0; at < blocks; at += kBlocksAtATime) {
    const int64_t end = std::min(blocks, at + kBlocksAtATime);
    const Tensor host = mine.slice(at * kParamBlock, end * kParamBlock).to(Device::cpu);
    parallel_for(end - at, 16, [&](int64_t from, int64_t to) {
      for (int64_t b = from; b < to; ++b)
        sum += hash_of(host.raw() + size_t(b) * bytes, bytes, uint64_t(first + at + b));
    });
  }
  uint64_t all = sum;
  if (share.group) {
    all = 0;
    for (const int64_t part : agree(*share.group, [&] { return int64_t(sum.load()); })) all += uint64_t(part);
  }
  return hex16(all);
}

}  // namespace mmfree
