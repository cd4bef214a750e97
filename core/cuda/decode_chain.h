#pragma once
#include <optional>
#include <vector>

#include "core/cuda/decode_plan.h"

/// Consecutive norms and products of a few rows in one kernel: the time of a step of few rows is that of its
/// dependencies, and within a kernel one takes less than from kernel to kernel.
namespace mmfree::cuda::decode {

/// Where the values are that a phase reads: row r of `memory` as the norm says, of others from `at` on.
struct Place {
  enum Kind : int { memory, kept, passed } kind = memory;
  int at = 0;
};

/// A norm and the products that follow it.
struct alignas(16) Phase {
  /// Where a value goes: to the other blocks as word `passes` of its row, unless that is negative; to y if it leaves.
  struct Output {
    float* y;
    int64_t stride;  ///< elements from a row of y to the next
    int passes, leaves;
  };
  Norm norm;
  Group group;
  Output outputs[kMostMatrices];  ///< of each matrix; of the first one of a scan: h
  float scale[kMostMatrices];     ///< of each matrix
  int first[kMostMatrices];       ///< Finish::store: first unit of each matrix; what no unit reaches for the others
  int units, per_block, left;     ///< the first `left` blocks have one more than the others
  int header;                     ///< bytes of the phase and the norm's weights, which the first entry of the ring has
  int first_count[2], count[2];   ///< units that the first and each other entry holds, in the two shapes of the chain
  int at_wanted;
  Place a, b;  ///< the norm's sources
  int keeps;   ///< where the value of a sum is kept; negative: there is none
  int sum_leaves;
};

/// What one launch leaves to the next: blocks that have ended, launches, and the rows of the last launch that passed
/// words in each of the two sets.
struct ChainState {
  uint32_t ended, launches, rows[2];
};

/// The parts of a block's shared memory.
struct ChainShape {
  int number;  ///< 0: for one row, 1: for kFewRows
  int stage_bytes, stages;
  int code_bytes;  ///< of a row
  int columns;     ///< of a row of floats
  int kept;        ///< columns of what is kept of a row
  size_t bytes;
};

/// A run of ops as a chain, for calls of one token per sequence.
struct Chain {
  size_t first, count;  ///< ops
  std::vector<Phase> phases;
  std::optional<DecodeEmbed> embed;
  int embed_keeps = -1, embed_leaves = 0;
  int words = 0, kept = 0;  ///< of a row: that are passed, and floats that are kept
  int blocks = 0;
  std::optional<ChainShape> shapes[2];  ///< by number; none: too large
  std::vector<Tensor> memory;           ///< of what follows, on the device
  const Phase* phases_there = nullptr;
  uint32_t* words_there = nullptr;  ///< [2][kFewRows][words]
  ChainState* state = nullptr;

  const std::optional<ChainShape>& shape(int rows) const { return shapes[rows > 1]; }
};

/// The chains of a program's ops, in order.
std::vector<Chain> chains(const std::vector<Op>& ops);
/// Computes up to kFewRows rows. Output rows of the wanted ones begin at `first_row`.
void run(const Chain& chain, const Rows& rows, int64_t first_row);

}  // namespace mmfree::cuda::decode
