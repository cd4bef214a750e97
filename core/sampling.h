#pragma once
#include <cmath>
#include <cstdint>

#include "core/quantize.h"

/// The arithmetic of sampling, defined once for every backend. From the distance of a logit to the largest on
/// everything is integers, whose sums have no order, so equal logits give equal tokens on every backend.
namespace mmfree {

/// How far a token is behind the most likely one: the binary logarithm of the quotient of their probabilities, in units
/// of 2^-27 and rounded down. Behind 32 all are equally far.
inline constexpr int kDistanceBits = 27;
inline constexpr uint32_t kFarthest = 0xffffffffu;

/// @param top       largest logit
/// @param per_unit  log2(e) / temperature
MMFREE_HOST_DEVICE inline uint32_t token_distance(float logit, float top, float per_unit) {
  const float binary = rounded_product(top - logit, per_unit);
  return binary < 31.9999f ? uint32_t(binary * float(1 << kDistanceBits)) : kFarthest;  // the product is exact
}

/// A number in proportion to a token's probability, below 2^30: 2^30 · 2^-distance, 0 from 30 on.
MMFREE_HOST_DEVICE inline uint32_t token_mass(uint32_t distance) {
  // 2^-x for 0 <= x < 1 by its Taylor polynomial around 1/2, exact to 2e-8.
  const float x = float(distance & ((1u << kDistanceBits) - 1)) * (1.0f / float(1 << kDistanceBits)) - 0.5f;
  constexpr float kLn2 = 0.69314718f;
  const float u = rounded_product(-kLn2, x);
  float p = 1.0f / 720;
  p = fmaf(p, u, 1.0f / 120);
  p = fmaf(p, u, 1.0f / 24);
  p = fmaf(p, u, 1.0f / 6);
  p = fmaf(p, u, 0.5f);
  p = fmaf(p, u, 1.0f);
  p = fmaf(p, u, 1.0f);
  const float whole = rounded_product(p, 0.70710678f * float(1 << 30));
  constexpr uint32_t kMost = (1u << 30) - 1;
  const uint32_t mass = uint32_t(whole);
  return (mass < kMost ? mass : kMost) >> (distance >> kDistanceBits);
}

/// floor(total · r / 2^64) for a random r of 64 bits.
MMFREE_HOST_DEVICE inline uint64_t scaled_random(uint64_t r, uint64_t total) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(r, total);
#else
  return uint64_t((unsigned __int128)(r)*total >> 64);
#endif
}

}  // namespace mmfree
