#pragma once
#include <optional>

#include "core/cuda/decode.h"

/// The steps of a decode program as kernels compute them.
namespace mmfree::cuda::decode {

/// A norm, if there is one, and the products that follow it.
struct Linear {
  std::optional<Norm> norm;
  Group group{};  ///< the ternary products
  std::vector<DecodeMatrix> plain;
  bool at_wanted = false;
  /// The recurrence behind it, which a step of one token per sequence computes with the products.
  std::optional<DecodeScan> scan;
};

struct Attend {
  DecodeAttend step;
  Tensor turns;
};

/// What a program is made of on a GPU.
using Op = std::variant<DecodeEmbed, Linear, DecodeScan, Attend>;

/// Puts norms and products together, and products with what is computed from their outputs.
std::vector<Op> plan(std::vector<DecodeStep> steps);

}  // namespace mmfree::cuda::decode
