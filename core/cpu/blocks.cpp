#include "core/ops/blocks.h"

#include <cstring>

#include "core/cpu/vec.h"
#include "core/dtype.h"
#include "core/ops/adamw.h"
#include "core/parallel.h"

namespace mmfree::cpu {

void squares_of_blocks(const SquaresArgs& g) {
  dispatch_float(g.dtype, "squares_of_blocks", [&]<class T>() {
    const T* x = static_cast<const T*>(g.x);
    double* const squares = g.squares;
    parallel_for(g.blocks, 1, [=](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const T* block = x + b * kParamBlock;
        squares[b] = double(lane_sum<T>(kParamBlock, [=](int64_t i) { return block[i] * block[i]; }));
      }
    });
  });
}

void add_blocks(const AddBlocksArgs& g) {
  double total = 0;
  for (int64_t b = 0; b < g.blocks; ++b) total += g.squares[b];
  *g.out = total;
}

void copy_blocks(const CopyBlocksArgs& g) {
  const char* from = static_cast<const char*>(g.from);
  char* to = static_cast<char*>(g.to);
  parallel_for(g.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(to + g.to_index[i] * g.bytes, from + g.from_index[i] * g.bytes, size_t(g.bytes));
  });
}

}  // namespace mmfree::cpu
