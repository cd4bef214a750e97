#pragma once
#include <cstdint>
#include <string>

#include "core/op_watch.h"

namespace mmfree {

/// What one call of an op must do: operations of a product (two per multiply-add), or bytes read and written, each
/// array once. Neither is known of an op that has no entry.
struct OpWork {
  enum Kind { passes, f32, bf16, int8 } kind = passes;
  double operations = 0, bytes = 0;
  int64_t inner = 0;         ///< terms of a product's sums; the width of a pass' rows, or 0
  int64_t side = 0;          ///< the largest side of a product: the vocabulary's tells the head
  std::string variant = {};  ///< what else decides how fast the op is: "bf16 nt", "glu, 1 branch"

  double amount() const { return kind == passes ? bytes : operations; }
};

/// The work of one call, from the arguments of its kernel.
OpWork work_of(const OpCall& call);

/// "matmul bf16 nt": calls of one name differ in their sizes alone.
std::string name_of(const OpCall& call, const OpWork& work);

}  // namespace mmfree
