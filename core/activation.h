#pragma once
#include "core/error.h"
#include "core/quantize.h"

/// Functions marked MMFREE_KERNEL are host functions in a C++ file and device functions in a CUDA file: they call the
/// exponential of the backend that includes them.
#if defined(__CUDACC__)
#define MMFREE_KERNEL __device__
#else
#define MMFREE_KERNEL
#endif

/// The activation functions: names, formulas and derivatives, for every backend.
namespace mmfree {

enum class Activation { silu, gelu, gelu_tanh, relu, relu2, selu, sigmoid, identity };

inline constexpr Activation kAllActivations[] = {Activation::silu,    Activation::gelu,    Activation::gelu_tanh,
                                                 Activation::relu,    Activation::relu2,   Activation::selu,
                                                 Activation::sigmoid, Activation::identity};

/// The name of an activation, as in `model.activation`; "?" for an invalid value.
constexpr const char* name_of(Activation f) {
  switch (f) {
    case Activation::silu:
      return "silu";
    case Activation::gelu:
      return "gelu";
    case Activation::gelu_tanh:
      return "gelu_tanh";
    case Activation::relu:
      return "relu";
    case Activation::relu2:
      return "relu2";
    case Activation::selu:
      return "selu";
    case Activation::sigmoid:
      return "sigmoid";
    case Activation::identity:
      return "identity";
  }
  return "?";
}

/// SiLU(x) = x σ(x) and its slope σ(x) (1 + x (1 − σ(x))), given s = σ(x).
template <class T>
MMFREE_HOST_DEVICE inline T silu(T x, T s) {
  return x * s;
}
template <class T>
MMFREE_HOST_DEVICE inline T silu_slope(T x, T s) {
  return s * (T(1) + x * (T(1) - s));
}

template <class T>
struct Activated {
  T value, slope;
};

/// f(x) and f'(x). NaN in, NaN out. `Maths` has the backend's exp(T), sigmoid(T) and erf(T).
///   silu       x σ(x)
///   gelu       x Φ(x), Φ(x) = (1 + erf(x / √2)) / 2                       Hendrycks, Gimpel 2016 (arXiv:1606.08415)
///   gelu_tanh  x (1 + tanh(u)) / 2 = x σ(2u), u = √(2/π) (x + 0.044715 x³)      ibid.
///   relu       max(x, 0), slope 0 at 0
///   relu2      max(x, 0)²                                                  So et al. 2021 (arXiv:2109.08668)
///   selu       λ x for x > 0, else λ α (eˣ − 1)                            Klambauer et al. 2017 (arXiv:1706.02515)
///   sigmoid    σ(x)
///   identity   x
template <Activation f, class Maths, class T>
MMFREE_KERNEL inline Activated<T> activated(T x) {
  if constexpr (f == Activation::silu) {
    const T s = Maths::sigmoid(x);
    return {silu(x, s), silu_slope(x, s)};
  } else if constexpr (f == Activation::gelu) {
    const T below = T(0.5) * (T(1) + Maths::erf(x * T(0.70710678118654752440)));
    const T density = T(0.39894228040143267794) * Maths::exp(T(-0.5) * x * x);
    return {x * below, below + x * density};
  } else if constexpr (f == Activation::gelu_tanh) {
    constexpr T twice = T(1.59576912160573071176), cubic = T(0.044715);  // 2 √(2/π)
    const T s = Maths::sigmoid(twice * (x + cubic * x * x * x));
    return {x * s, s + x * s * (T(1) - s) * twice * (T(1) + T(3) * cubic * x * x)};
  } else if constexpr (f == Activation::relu) {
    return {x < T(0) ? T(0) : x, x > T(0) ? T(1) : T(0)};
  } else if constexpr (f == Activation::relu2) {
    const T positive = x < T(0) ? T(0) : x;
    return {positive * positive, T(2) * positive};
  } else if constexpr (f == Activation::selu) {
    constexpr T lambda = T(1.05070098735548049342), alpha = T(1.67326324235437728482);
    const T power = Maths::exp(x > T(0) ? T(0) : x);
    return {lambda * (x > T(0) ? x : alpha * (power - T(1))), lambda * (x > T(0) ? T(1) : alpha * power)};
  } else if constexpr (f == Activation::sigmoid) {
    const T s = Maths::sigmoid(x);
    return {s, s * (T(1) - s)};
  } else {
    static_assert(f == Activation::identity);
    return {x, T(1)};
  }
}

/// Calls body.operator()<f>() with the run-time value `f` as a compile-time constant, so that a loop over elements has
/// no branch. An invalid value: Error on the CPU, a trap on a GPU.
template <class Body>
MMFREE_KERNEL inline void with_activation(Activation f, Body&& body) {
  switch (f) {
    case Activation::silu:
      return body.template operator()<Activation::silu>();
    case Activation::gelu:
      return body.template operator()<Activation::gelu>();
    case Activation::gelu_tanh:
      return body.template operator()<Activation::gelu_tanh>();
    case Activation::relu:
      return body.template operator()<Activation::relu>();
    case Activation::relu2:
      return body.template operator()<Activation::relu2>();
    case Activation::selu:
      return body.template operator()<Activation::selu>();
    case Activation::sigmoid:
      return body.template operator()<Activation::sigmoid>();
    case Activation::identity:
      return body.template operator()<Activation::identity>();
  }
#if defined(__CUDACC__)
  __trap();
#else
  throw Error(concat("unknown activation ", int(f)));
#endif
}

}  // namespace mmfree
