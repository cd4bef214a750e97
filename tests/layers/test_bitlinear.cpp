// What a projection's precision and its inner norm mean, against their formulas.
#include <gtest/gtest.h>

#include "layers/bitlinear.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

constexpr int64_t n = 7, d = 33, o = 19;

Tensor as_bf16(const Tensor& t) { return as_f64(as_type(as_type(t, DType::bf16), DType::f32)); }

/// Codes times their scale, by the definition of the quantisers.
Tensor int8_rounded(const Tensor& v) {
  composed::Scaled s = composed::absmax_scaled(v);
  for (int64_t i = 0; i < v.size(); ++i) set(s.codes, i, std::round(at(s.codes, i)) * at(s.step, i / v.cols()));
  return s.codes;
}
Tensor ternary_rounded(const Tensor& w) {
  double mean = 0;
  for (int64_t i = 0; i < w.size(); ++i) mean += std::abs(at(w, i)) / double(w.size());
  Tensor y(w.shape(), DType::f64);
  for (int64_t i = 0; i < w.size(); ++i) set(y, i, mean * std::clamp(std::nearbyint(at(w, i) / mean), -1.0, 1.0));
  return y;
}

}  // namespace

TEST(BitLinear, MultipliesAsItsPrecisionSays) {
  ParamStore params({{"p.weight", {o, d}, {}}, {"p.norm.weight", {d}, {}}}, DType::f64);
  Tensor w = params["p.weight"].value(), norm = params["p.norm.weight"].value();
  w.copy_from(random_tensor({o, d}, DType::f64, 1));
  norm.copy_from(random_tensor({d}, DType::f64, 2, 0.5, 1));
  const Var x{QuantTensor(random_tensor({n, d}, DType::f64, 3, 2))};
  const Tensor v = composed::rmsnorm(x.value(), norm, BitLinear::kEps);
  for (Precision precision : {Precision::ternary, Precision::bf16, Precision::f32}) {
    BitLinear p;
    p.precision = precision;
    p.weight = params["p.weight"];
    p.norm = params["p.norm.weight"];
    p.matrix = std::make_shared<WeightMatrix>();
    p.prepare(DType::f64);
    p.round();
    if (precision == Precision::ternary) ternary_quantise(w, p.matrix->ternary);
    const Var y = norm_linear(Source::rows(x), Var(), BitLinear::kEps, BitLinear::kEps, {p.projection()}, Keep::all)[0];
    const Tensor expected = precision == Precision::ternary
                                ? composed::product(int8_rounded(v), false, ternary_rounded(w), true)
                            : precision == Precision::bf16 ? composed::product(as_bf16(v), false, as_bf16(w), true)
                                                           : composed::product(v, false, w, true);
    EXPECT_LE(relative_error(y.value(), expected), 1e-13) << name_of(precision);
  }
}
