#pragma once
#include "autograd/ops.h"
#include "core/ops/check.h"

/// What norm_quant and norm_linear share: how the norm's source is run, saved and differentiated.
namespace mmfree {

/// Where a node keeps the norm's tensors in its saved list. The first kNormInputs are also its first inputs.
enum NormSlot : size_t { kA, kB, kGateWeight, kOuter, kR0, kR1, kR2, kNormSlots, kNormInputs = kR0 };

/// dtype of a branch's rounded values.
inline DType value_dtype(Rounding rounding, DType compute) {
  return rounding == Rounding::none ? param_dtype(compute) : compute;
}

/// A branch of `n` rows with its buffers: codes and steps, or values.
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
  std::vector<Var> inputs() const { return {in.a, in.b, in.weight, outer}; }
  /// The tensors of NormSlot. Of a sum its value as a in place of a and b, unless `parts_of_sum`: then the value is
  /// added up again, which keeps b's dtype where the value's is wider.
  std::vector<SavedTensor> saved(bool parts_of_sum = false) const;
};

/// The same norm as its node remembers it.
struct SavedNorm {
  RowSource::Kind kind;
  Activation f;
  double eps, eps_outer, eps_inner;

  SavedNorm(const Source& in, double eps_outer, double eps_inner)
      : kind(in.kind), f(in.f), eps(in.eps), eps_outer(eps_outer), eps_inner(eps_inner) {}

  /// The source; of a sum whose value was saved, the rows of it. `From` is a BackwardCtx or a Recipe's view of the
  /// saved list.
  template <class From>
  RowSource source(const From& from) const {
    const Tensor b = from.saved(kB);
    const bool value = kind == RowSource::sum && !b.defined();
    return {value ? RowSource::rows : kind, from.saved(kA), b, from.saved(kGateWeight), eps, f};
  }
  /// Runs the norm again for `branches`.
  void again(const RowSource& source, const Tensor& outer, std::vector<NormBranch>& branches) const;
  /// Passes the gradients of the branches on to the node's first kNormInputs inputs. Output `sum` of the node is the
  /// value of a sum, whose own gradient joins in.
  void backward(const BackwardCtx& c, std::vector<NormBranchGrad>& grads, size_t sum) const;
};

}  // namespace mmfree
