#pragma once
#include <cmath>
#include <string>

#include "layers/bitlinear.h"
#include "layers/model_config.h"

/// How a model's structure is declared, once. Every part has a function template
///
///   template <class Visitor> void visit(Visitor& v, const LayerConfig& c);
///
/// that names its parameters in the order of files: v.projection(name, bitlinear, matrix, c) for a projection and
/// v.vector(name, var, shape, start) for any other parameter that starts as a constant. What else needs the structure
/// is a visitor: specs and names (layers/parameters.cpp), binding to values (layers/lm.cpp).
namespace mmfree {

/// Which elements of a ternary matrix share a scale. Kernels know `matrix`; the others are reserved.
enum class ScaleOf {
  matrix,  ///< one scale, [1]
  row,     ///< one per output row, [O]
  group,   ///< one per `group` inputs of a row, [O, K / group]
};

/// Shape and start of a projection's matrix.
struct MatrixSpec {
  int64_t out, in;  ///< [O, K]
  Init init;
  ParamRole role = ParamRole::matrix;
  bool tied = false;    ///< the matrix is another parameter: only the norm is the projection's own
  int64_t experts = 0;  ///< E > 0: [E, O, K]; reserved
  ScaleOf scale = ScaleOf::matrix;
  int64_t group = 0;

  /// [O, K], or [E, O, K]. @throws ConfigError for what no kernel knows
  Shape shape() const {
    MMFREE_CHECK(ConfigError, experts == 0 && scale == ScaleOf::matrix,
                 "model: experts, and scales of rows or groups, are not implemented");
    return {out, in};
  }
};

/// Starts of matrices: N(0, std²), and U(±2^-2.5 · sqrt(6 / (K + O))), as the published code has them.
inline Init normal_init(double std) { return {Init::normal, std}; }
inline Init xavier_init(int64_t out, int64_t in) {
  return {Init::uniform, std::pow(2, -2.5) * std::sqrt(6.0 / double(out + in))};
}

/// What visitors share: the path of the part that is being visited.
class DeclarationVisitor {
 public:
  /// Calls `visit_part` with `name` before the names that it declares.
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
