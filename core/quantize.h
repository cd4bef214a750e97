#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MMFREE_HOST_DEVICE __host__ __device__
#else
#define MMFREE_HOST_DEVICE
#endif

/// The two quantisers of the project, defined once for every backend. The order of operations is part of the
/// definition, so equal inputs give equal codes and equal scales on every backend. That excludes contraction into an
/// fma: the host compiler does none (-ffp-contract=off); nvcc does, so the only product that is followed by a sum is a
/// `rounded_product`.
namespace mmfree {

/// Lower bound of absmax and absmean: keeps the reciprocal finite for an all-zero row or matrix. Source: BitNet b1.58.
inline constexpr double kMinScale = 1e-5;

/// Per-row absmax int8 quantiser of activations (Ma et al. 2024, arXiv:2402.17764):
///   m = max(absmax_k |u_k|, 1e-5),  q = round_half_away(u * (127 / m)),  step = m / 127,  u ≈ q * step.
/// Codes cannot hold a NaN or an infinity. If u has one, absmax must be NaN or infinite; then `step` is too, and the
/// value shows in u ≈ q * step.
template <class T>
struct ActivationScale {
  T inverse;  ///< 127 / m
  T step;     ///< m / 127
};

template <class T>
MMFREE_HOST_DEVICE inline ActivationScale<T> activation_scale(T absmax) {
  const T m = absmax < T(kMinScale) ? T(kMinScale) : absmax;
  return {T(127) / m, m / T(127)};
}

/// The largest f32 number below one half.
inline constexpr float kBelowHalf = 0x1.fffffep-2f;

/// Nearest integer, halves away from zero, exact for every |v| < 2^22. It adds the largest number below one half and
/// truncates; adding one half itself would round 0.49999997 up. NaN gives 0.
template <class T>
MMFREE_HOST_DEVICE inline int32_t round_half_away(T v) {
  constexpr T below_half = sizeof(T) == 4 ? T(kBelowHalf) : T(0x1.fffffffffffffp-2);
#if defined(__CUDA_ARCH__)
  return int32_t(v + copysign(below_half, v));  // the conversion makes 0 of NaN
#else
  const T sum = v + std::copysign(below_half, v);
  return int32_t(sum == sum ? sum : T(0));
#endif
}

/// a * b, rounded: never fused with a sum that follows.
template <class T>
MMFREE_HOST_DEVICE inline T rounded_product(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 4)
    return __fmul_rn(a, b);
  else
    return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

template <class T>
MMFREE_HOST_DEVICE inline int8_t activation_code(T u, T inverse) {
  return int8_t(round_half_away(rounded_product(u, inverse)));
}

/// Int8 quantiser of gradients. As that of activations, without its lower bound: gradients are small. A row below
/// kMinGradient, whose reciprocal may be infinite, counts as zeros.
inline constexpr double kMinGradient = 1e-30;

template <class T>
MMFREE_HOST_DEVICE inline ActivationScale<T> gradient_scale(T absmax) {
  if (absmax < T(kMinGradient)) return {T(0), T(0)};
  return {T(127) / absmax, absmax / T(127)};
}

/// Per-tensor absmean ternary quantiser of weights (ibid.):
///   a = max(mean |W|, 1e-5),  w = clamp(round_half_even(W * (1 / a)), -1, 1),  W ≈ w * a.
/// round_half_even then clamp is the same as: |v| > 0.5 gives the sign, else 0.
template <class T>
MMFREE_HOST_DEVICE inline T weight_scale(double mean_abs) {
  const T a = T(mean_abs);
  return a < T(kMinScale) ? T(kMinScale) : a;
}

template <class T>
MMFREE_HOST_DEVICE inline int32_t weight_code(T w, T inverse_scale) {
  const T v = w * inverse_scale;
  return int32_t(v > T(0.5)) - int32_t(v < T(-0.5));
}

}  // namespace mmfree
