#pragma once
#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "core/quantize.h"

namespace mmfree {

/// Philox4x32-10 (Salmon et al. 2011): four random words, in place of the counter, from a counter and a key.
MMFREE_HOST_DEVICE inline void philox_rounds(uint32_t (&counter)[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * counter[0], b = uint64_t(0xCD9E8D57u) * counter[2];
    counter[0] = uint32_t(b >> 32) ^ counter[1] ^ key0, counter[1] = uint32_t(b);
    counter[2] = uint32_t(a >> 32) ^ counter[3] ^ key1, counter[3] = uint32_t(a);
    key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
  }
}
inline std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  uint32_t words[4] = {counter[0], counter[1], counter[2], counter[3]};
  philox_rounds(words, key[0], key[1]);
  return {words[0], words[1], words[2], words[3]};
}

/// 64-bit FNV-1a hash of a name, for random-number keys. It must not change: it decides the initial weights.
constexpr uint64_t name_hash(std::string_view name) {
  uint64_t h = 0xcbf29ce484222325u;
  for (char c : name) h = (h ^ uint8_t(c)) * 0x100000001b3u;
  return h;
}

/// Random numbers as a pure function of (seed, step, stream name, index). There is no state to save, and the numbers do
/// not depend on threads or on the order of calls.
class RandomStream {
 public:
  RandomStream(uint64_t seed, uint64_t step, std::string_view name)
      : key_{uint32_t(seed), uint32_t(seed >> 32)}, stream_(name_hash(name) ^ (step * 0x9E3779B97F4A7C15u)) {}
  std::array<uint32_t, 4> words(uint64_t index) const {
    return philox({uint32_t(index), uint32_t(index >> 32), uint32_t(stream_), uint32_t(stream_ >> 32)}, key_);
  }
  /// What `words` depends on besides the index: its key, and the upper half of its counter.
  uint64_t key() const { return uint64_t(key_[1]) << 32 | key_[0]; }
  uint64_t stream() const { return stream_; }
  /// Uniform in [0, 1), 53 bits.
  double uniform(uint64_t index) const {
    const auto w = words(index);
    return double((uint64_t(w[0]) << 32 | w[1]) >> 11) * 0x1p-53;
  }
  /// Standard normal, by Box and Muller.
  double normal(uint64_t index) const {
    const auto w = words(index);
    const double u = (double((uint64_t(w[0]) << 32 | w[1]) >> 11) + 1) * 0x1p-53;
    const double angle = 6.283185307179586 * (double((uint64_t(w[2]) << 32 | w[3]) >> 11) * 0x1p-53);
    return std::sqrt(-2 * std::log(u)) * std::cos(angle);
  }

 private:
  std::array<uint32_t, 2> key_;
  uint64_t stream_;
};

}  // namespace mmfree
