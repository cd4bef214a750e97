#pragma once
#include "autograd/ops.h"

/// What norm_quant and norm_linear share: how the norm's source is run, saved and differentiated.
namespace mmfree {

/// The forward pass of a norm over a source.
struct NormForward {
  const Source& in;
  const Var& outer;
  RowSource source;
  NormStats stats;
  Tensor x;  ///< value of a sum

  NormForward(const Source& in, const Var& outer);
  /// Buffers for one branch: codes and steps, or values in the compute dtype.
  NormBranch branch(const Branch& b) const;
  void run(double eps_outer, double eps_inner, std::vector<NormBranch>& branches);
  QuantTensor output(const NormBranch& b) const;
  /// Inputs a, b, gate weight, outer; kInputs of them.
  std::vector<Var> inputs() const { return {in.a, in.b, in.weight, outer}; }
  /// a, b, gate weight, outer and three stats; kSaved of them. Of a sum its value in place of a and b, unless
  /// `parts_of_sum`: then the value is added up again, which keeps b's dtype where the value's is wider.
  std::vector<SavedTensor> saved(bool parts_of_sum = false) const;
};

/// The same norm as its node remembers it.
struct SavedNorm {
  static constexpr size_t kInputs = 4, kSaved = 7;
  RowSource::Kind kind;
  double eps, eps_outer, eps_inner;

  /// The source; of a sum whose value was saved, the rows of it. `From` is a BackwardCtx or a Recipe's view of the
  /// saved list.
  template <class From>
  RowSource source(const From& from) const {
    RowSource s;
    s.a = from.saved(0), s.b = from.saved(1), s.weight = from.saved(2), s.eps = eps;
    s.kind = kind == RowSource::sum && !s.b.defined() ? RowSource::rows : kind;
    return s;
  }
  /// Runs the norm again for `branches`.
  void again(const RowSource& source, const Tensor& outer, std::vector<NormBranch>& branches) const;
  /// Passes the gradients of the branches on to the node's first kInputs inputs. Output `sum` of the node is the value
  /// of a sum, whose own gradient joins in.
  void backward(const BackwardCtx& c, std::vector<NormBranchGrad>& grads, size_t sum) const;
};

}  // namespace mmfree
