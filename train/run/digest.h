#pragma once
#include <string>

#include "core/ranks/share.h"

namespace mmfree {

/// 16 hex digits that follow from the bits of a step's loss and gradient norm: two computations of a step that differ
/// anywhere differ here, but for chance.
std::string step_digest(double loss, double grad_norm);

/// 16 hex digits that follow from the bits of all parameters, whoever owns which piece. `mine`: this rank's piece of
/// the flat buffer, on any device. Collective if ranks share it.
std::string weights_digest(const Tensor& mine, const Share& share);

}  // namespace mmfree
