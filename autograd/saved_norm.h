#pragma once
#include "autograd/norm_watch.h"
#include "autograd/ops.h"
#include "core/ops/check.h"

/// What norm_quant and norm_linear share: how the norm's source is run, saved and differentiated.
namespace mmfree {

/// Indices of the norm's tensors in a node's saved list. The first kNormInputs are also the node's first inputs.
enum NormSlot : size_t { kA, kB, kGateWeight, kOuter, kR0, kR1, kR2, kNormSlots, kNormInputs = kR0 };

/// dtype of a branch's rounded values.
inline DType value_dtype(Rounding rounding, DType compute) {
  return rounding == Rounding::none ? param_dtype(compute) : compute;
}

/// A branch of `n` rows with allocated outputs: codes and steps, or values.
inline NormBranch make_branch(const Tensor& weight, Rounding rounding, int64_t n, int64_t d, DType compute,
                              Device device) {
  if (rounding != Rounding::int8) return {weight, rounding, Tensor({n, d}, value_dtype(rounding, compute), device), {}};
  return {weight, rounding, Tensor({n, d}, DType::i8, device), Tensor({n}, param_dtype(compute), device)};
}

/// The forward pass of a norm over a source.
struct NormForward {
  const Source& in;
  const Var& outer;
  RowSource source;
  NormStats stats;
  Tensor x;  ///< value of a sum

  NormForward(const Source& in, const Var& outer);
  NormBranch branch(const Branch& b) const {
    return make_branch(b.weight.value(), b.rounding, source.rows_count(), source.width(), in.a.compute(),
                       in.a.device());
  }
  void run(double eps_outer, double eps_inner, std::vector<NormBranch>& branches);
  QuantTensor output(const NormBranch& b) const;
  /// Shows a branch that holds codes to norm_watch; `matrix` as there.
  void show(const WeightMatrix* matrix, const NormBranch& b) const {
    if (norm_watch && b.step.defined())
      norm_watch->rounded(matrix, output(b), outer.defined() ? stats.r1 : b.weight.defined() ? stats.r2 : Tensor());
  }
  std::vector<Var> inputs() const { return {in.a, in.b, in.weight, outer}; }
  /// The tensors of NormSlot. For a sum a is its value and b is undefined. With `parts_of_sum` a and b are its terms,
  /// and the backward pass adds them again: that takes less memory if b's dtype is narrower than the value's.
  std::vector<SavedTensor> saved(bool parts_of_sum = false) const;
};

/// What a node stores of the same norm besides tensors.
struct SavedNorm {
  RowSource::Kind kind;
  Activation f;
  double eps, eps_outer, eps_inner;

  SavedNorm(const Source& in, double eps_outer, double eps_inner)
      : kind(in.kind), f(in.f), eps(in.eps), eps_outer(eps_outer), eps_inner(eps_inner) {}

  /// The source; `rows` of the value for a sum whose value was saved. `From` is a BackwardCtx or a RecipeView: it gives
  /// access to the saved list.
  template <class From>
  RowSource source(const From& from) const {
    const Tensor b = from.saved(kB);
    const bool value = kind == RowSource::sum && !b.defined();
    return {value ? RowSource::rows : kind, from.saved(kA), b, from.saved(kGateWeight), eps, f};
  }
  /// Runs the norm again for `branches`.
  void again(const RowSource& source, const Tensor& outer, std::vector<NormBranch>& branches) const;
  /// Computes the gradients of the node's first kNormInputs inputs from those of the branches. For a sum, output number
  /// `sum` of the node is its value; the gradient of that output is added.
  void backward(const BackwardCtx& c, std::vector<NormBranchGrad>& grads, size_t sum) const;
};

}  // namespace mmfree
