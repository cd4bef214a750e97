#pragma once
#include "autograd/ops.h"

namespace mmfree {

/// f(x[:, :D]) ⊙ x[:, D:] as an operation by itself: a glu source that is neither normalised nor rounded.
inline Var glu(const Var& x, Activation f = Activation::silu) {
  return norm_quant(Source::glu(x, f), Var(), 1, 1, {{Var(), Rounding::none}})[0];
}

}  // namespace mmfree
