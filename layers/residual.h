#pragma once
#include "autograd/ops.h"

namespace mmfree {

/// The residual stream between two mixers: h + pending. The next norm makes the addition, because it reads both.
struct Residual {
  Var h;        ///< [N, D]
  Var pending;  ///< [N, D] output of the last mixer; undefined at the start

  Source source() const { return pending.defined() ? Source::sum(h, pending) : Source::rows(h); }
  /// h + pending, from the outputs of a norm_quant or norm_linear of `source()`.
  const Var& value(const std::vector<Var>& outputs) const { return pending.defined() ? outputs.back() : h; }
  /// The addition as an operation of its own.
  Var sum() const { return pending.defined() ? add(h, pending) : h; }
};

}  // namespace mmfree
