#pragma once
#include <cmath>
#include <string>

#include "layers/bitlinear.h"
#include "layers/model_config.h"

/// How a model's structure is declared. Every part has a function template
///
///   template <class Visitor> void visit(Visitor& v, const LayerConfig& c);
///
/// that names its parameters in the order of files: v.projection(name, bitlinear, matrix, c) for a projection, and
/// v.vector(name, var, shape, start) for any other parameter, with the constant initial value `start`. Code that needs
/// the structure is a visitor: SpecVisitor (layers/parameters.cpp) lists the parameters, BindVisitor (layers/lm.cpp)
/// binds the parts to their values.
namespace mmfree {

/// Which elements of a ternary matrix share a scale. Kernels implement `matrix` only; the others are reserved.
enum class ScaleOf {
  matrix,  ///< one scale, [1]
  row,     ///< one per output row, [O]
  group,   ///< one per `group` inputs of a row, [O, K / group]
};

/// Shape and initial values of a projection's matrix.
struct MatrixSpec {
  int64_t out, in;  ///< [O, K]
  Init init;
  ParamRole role = ParamRole::matrix;
  bool tied = false;    ///< the matrix is the embedding table; only the norm is a parameter of the projection
  int64_t experts = 0;  ///< reserved; E > 0: the matrix is [E, O, K]
  ScaleOf scale = ScaleOf::matrix;
  int64_t group = 0;

  /// [O, K]. @throws ConfigError for experts and scales that are not implemented
  Shape shape() const {
    MMFREE_CHECK(ConfigError, experts == 0 && scale == ScaleOf::matrix,
                 "model: experts, and scales of rows or groups, are not implemented");
    return {out, in};
  }
};

/// Initial values of matrices, as in the published code: N(0, std²), and U(-a, a) with a = 2^-2.5 · sqrt(6 / (K + O)).
inline Init normal_init(double std) { return {Init::normal, std}; }
inline Init xavier_init(int64_t out, int64_t in) {
  return {Init::uniform, std::pow(2, -2.5) * std::sqrt(6.0 / double(out + in))};
}

/// Base of visitors: keeps the path of the part that is visited.
class DeclarationVisitor {
 public:
  /// Calls `visit_part`; the names that it declares get the prefix `name`.
  template <class Part>
  void inside(const std::string& name, Part&& visit_part) {
    const std::string outer = prefix_;
    prefix_ += name;
    visit_part();
    prefix_ = outer;
  }

 protected:
  std::string prefix_;
};

}  // namespace mmfree
