#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/activation.h"
#include "core/ops/adamw.h"
#include "tests/support/tensors.h"

/// The plain twin of every op: the formula of its header in f64, one element at a time, sharing nothing with the
/// kernels. Arguments of any float dtype, results in f64.
namespace mmfree::composed {

inline double sigmoid(double x) { return 0.5 * (1 + std::tanh(x / 2)); }
inline double silu(double x) { return x * sigmoid(x); }

/// x_nk / sqrt(mean_k x_nk² + eps) · weight_k
inline Tensor rmsnorm(const Tensor& x_any, const Tensor& weight_any, double eps) {
  const Tensor x = as_f64(x_any), weight = as_f64(weight_any);
  const int64_t d = x.cols();
  Tensor y(x.shape(), DType::f64);
  for (int64_t n = 0; n < x.rows(); ++n) {
    double squares = 0;
    for (int64_t k = 0; k < d; ++k) squares += at(x, n * d + k) * at(x, n * d + k);
    const double rms = std::sqrt(squares / double(d) + eps);
    for (int64_t k = 0; k < d; ++k) set(y, n * d + k, at(x, n * d + k) / rms * at(weight, k));
  }
  return y;
}

/// One branch of norm_quant before its rounding.
inline Tensor normed(const Tensor& x, const Tensor& outer, double eps_outer, double eps_inner, const Tensor& weight) {
  return rmsnorm(outer.defined() ? rmsnorm(x, outer, eps_outer) : x, weight, eps_inner);
}

/// Rows on the scale of their int8 codes, not yet rounded, and the steps.
struct Scaled {
  Tensor codes;  ///< f64 [N, D], in -127..127
  Tensor step;   ///< f64 [N]
};

inline Scaled absmax_scaled(const Tensor& v) {
  const int64_t n = v.rows(), d = v.cols();
  Scaled out{Tensor(v.shape(), DType::f64), Tensor({n}, DType::f64)};
  for (int64_t i = 0; i < n; ++i) {
    double most = 1e-5;
    for (int64_t k = 0; k < d; ++k) most = std::max(most, std::abs(at(v, i * d + k)));
    for (int64_t k = 0; k < d; ++k) set(out.codes, i * d + k, at(v, i * d + k) * 127 / most);
    set(out.step, i, most / 127);
  }
  return out;
}

inline Tensor gate_norm(const Tensor& a_any, const Tensor& b_any, const Tensor& weight, double eps) {
  const Tensor a = as_f64(a_any), b = as_f64(b_any);
  Tensor y = weight.defined() ? rmsnorm(a, weight, eps) : a.clone();
  for (int64_t i = 0; i < y.size(); ++i) set(y, i, at(y, i) * (weight.defined() ? silu(at(b, i)) : sigmoid(at(b, i))));
  return y;
}

inline Tensor mlgru_scan(const Tensor& z_any, const Tensor& a_any, const Tensor& gamma, const Tensor& h0,
                         const Tensor& starts = {}) {
  const Tensor z = as_f64(z_any), a = as_f64(a_any);
  const int64_t steps = z.dim(1), d = z.dim(2);
  Tensor h(z.shape(), DType::f64);
  for (int64_t b = 0; b < z.dim(0); ++b)
    for (int64_t k = 0; k < d; ++k) {
      double state = h0.defined() ? at(h0, b * d + k) : 0;
      const double bound = gamma.defined() ? at(gamma, k) : 0;
      for (int64_t t = 0; t < steps; ++t) {
        const int64_t i = (b * steps + t) * d + k;
        if (starts.defined() && starts.data<uint8_t>()[b * steps + t]) state = 0;
        const double keep = bound + (1 - bound) * sigmoid(at(z, i));
        state = keep * state + (1 - keep) * silu(at(a, i));
        set(h, i, state);
      }
    }
  return h;
}

/// An activation function by its textbook formula.
inline double activation(Activation f, double x) {
  switch (f) {
    case Activation::silu:
      return silu(x);
    case Activation::gelu:
      return x * std::erfc(-x / std::sqrt(2.0)) / 2;
    case Activation::gelu_tanh:
      return x / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * std::pow(x, 3))));
    case Activation::relu:
      return std::fmax(x, 0);
    case Activation::relu2:
      return std::pow(std::fmax(x, 0), 2);
    case Activation::selu:  // the constants that keep mean 0 and variance 1
      return 1.0507009873554804934193349852946 * (x > 0 ? x : 1.6732632423543772848170429916717 * std::expm1(x));
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::identity:
      return x;
  }
  throw Error("composed: an unknown activation");
}

inline Tensor activation(Activation f, const Tensor& x) {
  Tensor y(x.shape(), DType::f64);
  for (int64_t i = 0; i < x.size(); ++i) set(y, i, activation(f, at(x, i)));
  return y;
}

/// f(x[:, :D]) ⊙ x[:, D:]
inline Tensor glu(Activation f, const Tensor& x) {
  const int64_t inner = x.cols() / 2;
  Tensor y({x.rows(), inner}, DType::f64);
  for (int64_t n = 0; n < x.rows(); ++n)
    for (int64_t k = 0; k < inner; ++k)
      set(y, n * inner + k, activation(f, at(x, n * 2 * inner + k)) * at(x, n * 2 * inner + inner + k));
  return y;
}

inline Tensor lower_bounds(const Tensor& lambda) {
  const int64_t layers = lambda.dim(0), d = lambda.dim(1);
  Tensor gamma(lambda.shape(), DType::f64);
  for (int64_t k = 0; k < d; ++k) {
    double total = 0, sum = 0;
    for (int64_t l = 0; l < layers; ++l) total += std::exp(at(lambda, l * d + k));
    for (int64_t l = 0; l < layers; ++l) {
      if (l > 0) sum += std::exp(at(lambda, l * d + k)) / total;
      set(gamma, l * d + k, sum);
    }
  }
  return gamma;
}

/// a [M, K] · b [K, N], either one transposed where its flag is set.
inline Tensor product(const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b) {
  const int64_t m = a.dim(transpose_a), inner = a.dim(!transpose_a), n = b.dim(!transpose_b);
  Tensor c({m, n}, DType::f64);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < inner; ++k)
        sum += at(a, transpose_a ? k * m + i : i * inner + k) * at(b, transpose_b ? j * inner + k : k * n + j);
      set(c, i * n + j, sum);
    }
  return c;
}

/// Int8 codes times their row's step.
inline Tensor dequantised(const Tensor& codes, const Tensor& step) {
  Tensor u(codes.shape(), DType::f64);
  for (int64_t i = 0; i < u.size(); ++i) set(u, i, codes.data<int8_t>()[i] * at(step, i / u.cols()));
  return u;
}

struct CrossEntropy {
  Tensor nll;      ///< [N]
  Tensor dlogits;  ///< [N, V]: (softmax − onehot)·scale, zero rows where the target is negative
};

inline CrossEntropy cross_entropy(const Tensor& logits, const Tensor& targets, double scale) {
  const int64_t n = logits.rows(), v = logits.cols();
  CrossEntropy out{Tensor::zeros({n}, DType::f64), Tensor::zeros({n, v}, DType::f64)};
  for (int64_t i = 0; i < n; ++i) {
    const int32_t target = targets.data<int32_t>()[i];
    if (target < 0) continue;
    long double total = 0;  // long double: its range makes the usual shift by the maximum unnecessary
    for (int64_t k = 0; k < v; ++k) total += std::exp((long double)(at(logits, i * v + k)));
    set(out.nll, i, double(std::log(total) - at(logits, i * v + target)));
    for (int64_t k = 0; k < v; ++k)
      set(out.dlogits, i * v + k,
          (double(std::exp((long double)(at(logits, i * v + k))) / total) - (k == target)) * scale);
  }
  return out;
}

/// One element of AdamW.
struct AdamwElement {
  double p, m, v;
  void update(double grad, double lr_factor, double weight_decay, const StepParams& s) {
    const double lr = s.lr * lr_factor;
    const double g = grad * s.grad_scale;
    m = s.beta1 * m + (1 - s.beta1) * g;
    v = s.beta2 * v + (1 - s.beta2) * g * g;
    p = p - lr * s.decay_factor * weight_decay * p - lr * (m / s.bias1) / (std::sqrt(v / s.bias2) + s.eps);
  }
};

}  // namespace mmfree::composed
