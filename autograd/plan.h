#pragma once
#include <set>
#include <variant>
#include <vector>

#include "autograd/ops.h"

namespace mmfree {

/// A list of forward operations, to be run many times on other memory without a tape (layers/decode/engine.h). While a
/// Plan is alive, the operations of this thread that it knows compute nothing: they append a step with what they were
/// given and return Vars of one row, which name values. So the code that computes a model also gives its plan.
class Plan {
 public:
  struct Embed {
    Var table, y;
  };
  /// norm_quant: one output per branch.
  struct Norm {
    Source source;
    Var outer;
    double eps_outer, eps_inner;
    std::vector<Branch> branches;
    std::vector<Var> outputs;
    Var sum;  ///< value of a `sum` source, else undefined
  };
  /// norm_linear: one output per projection.
  struct NormLinear {
    Source source;
    Var outer;
    double eps_outer, eps_inner;
    std::vector<Projection> projections;
    std::vector<Var> outputs;
    Var sum;
  };
  struct Scan {
    Var z, a, bound, h;
  };
  struct Attend {
    Var q, k, v;
    AttentionShape shape;
    Var o;
  };
  using Step = std::variant<Embed, Norm, NormLinear, Scan, Attend>;

  Plan();
  ~Plan();
  Plan(const Plan&) = delete;
  static Plan* current();

  /// A value of one row of `width` elements, made by a step of this plan.
  Var value(int64_t width, DType compute);
  /// Whether `v` was made by this plan. Other Vars are constants, such as parameters.
  bool made(const Var& v) const { return v.defined() && made_.count(v.value().raw()) != 0; }

  std::vector<Step> steps;

 private:
  std::set<const char*> made_;
  std::vector<Tensor> kept_;  ///< keeps the addresses in made_ apart
  Plan* outer_;
};

}  // namespace mmfree
