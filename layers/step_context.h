#pragma once
#include <functional>
#include <vector>

#include "autograd/ops.h"
#include "layers/decode/state.h"

namespace mmfree {

/// What the backward pass computes again, instead of the forward pass saving it.
enum class Recompute {
  none,       ///< nothing
  rounded,    ///< rounded activations
  selective,  ///< rounded activations, and the output of the channel mixer's first product, the largest of all, from
              ///< its codes, which are the smallest; not of the last blocks, see LM::hidden
  full,       ///< whole blocks: only the residual stream between blocks is saved
};

const char* name_of(Recompute r);
inline constexpr Recompute kAllRecomputes[] = {Recompute::none, Recompute::rounded, Recompute::selective,
                                               Recompute::full};

/// An additional loss, such as the load balance of experts: the step minimises loss + Σ weight · value.
struct AuxiliaryLoss {
  Var value;  ///< f64 [1]
  double weight;
};

/// Called during the backward pass: the gradients of the parameter `first` and of all that are declared behind it will
/// not change any more.
using Reached = std::function<void(const Var& first)>;

/// What a mixer may need besides its input and parameters.
struct StepContext {
  int64_t batch = 1;  ///< number of sequences B; there are B · T rows
  Recompute recompute = Recompute::none;
  bool keeps_output = false;  ///< with `selective`: this block keeps the output that others compute again
  /// Decode state of this layer; null: whole sequences. A mixer puts new tensors in the place of those it read, which
  /// the backward pass may need.
  LayerState* state = nullptr;
  Var bound;      ///< [D] lower bound of this layer's forget gate; undefined: 0
  Tensor starts;  ///< [N] u8, 1 at the first token of a document; undefined: nowhere inside a sequence
  std::vector<AuxiliaryLoss>* losses = nullptr;  ///< mixers append additional losses; null: not wanted
  const Reached* reached = nullptr;              ///< see `mark`; must outlive the tape; null: not wanted

  /// Before the first use of `first` and of all parameters behind it: `reached` is called when the backward pass is
  /// through with them.
  void mark(const Var& first) const {
    if (reached) on_return([reached = reached, parameter = &first] { (*reached)(*parameter); });
  }

  /// What a norm_linear saves for the backward pass.
  Keep keep_rounded() const {
    return recompute == Recompute::selective || recompute == Recompute::rounded ? Keep::source : Keep::all;
  }
  /// The same for a norm_linear whose output `selective` computes again too.
  Keep keep_output() const {
    return recompute != Recompute::selective ? keep_rounded() : keeps_output ? Keep::terms : Keep::codes;
  }
};

}  // namespace mmfree
