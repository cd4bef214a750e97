#pragma once
#include "autograd/ops.h"

namespace mmfree {

/// The residual stream between two mixers: h + pending. The addition is left to the next norm, which reads both anyway.
struct Residual {
  Var h;        ///< [N, D]
  Var pending;  ///< [N, D] output of the last mixer; undefined at the start

  Source source() const { return pending.defined() ? Source::sum(h, pending) : Source::rows(h); }
  /// h + pending, which norm_quant and norm_linear give behind their other outputs.
  const Var& value(const std::vector<Var>& outputs) const { return pending.defined() ? outputs.back() : h; }
  /// The addition as an operation of its own.
  Var sum() const { return pending.defined() ? add(h, pending) : h; }
};

}  // namespace mmfree
