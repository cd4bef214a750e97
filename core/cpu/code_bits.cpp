#include "core/ops/code_bits.h"

#include "core/parallel.h"

namespace mmfree::cpu {
namespace {

constexpr int64_t kGrain = 1 << 16;  ///< bytes of packed codes

}  // namespace

void pack_codes(const PackCodesArgs& g) {
  parallel_for(g.count / 4, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      int byte = 0;
      for (int k = 0; k < 4; ++k) byte |= (g.codes[4 * j + k] + 1) << (2 * k);
      g.packed[j] = uint8_t(byte);
    }
  });
}

void unpack_codes(const UnpackCodesArgs& g) {
  parallel_for(g.count / 4, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j)
      for (int k = 0; k < 4; ++k) g.codes[4 * j + k] = int8_t((g.packed[j] >> (2 * k) & 3) - 1);
  });
}

}  // namespace mmfree::cpu
