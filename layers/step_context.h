#pragma once
#include <vector>

#include "autograd/ops.h"
#include "layers/decode/state.h"

namespace mmfree {

/// What the forward pass leaves to be computed again in the backward pass.
enum class Recompute {
  none,       ///< nothing
  selective,  ///< what is cheap: rounded activations, and the first product of the channel mixer, the largest of all
              ///< outputs
  full,       ///< whole blocks: only the residual stream between them is kept
};

const char* name_of(Recompute r);

/// A loss beside the main one, such as the load balance of experts: the step minimises loss + Σ weight · value.
struct AuxiliaryLoss {
  Var value;  ///< f64 [1]
  double weight;
};

/// What a mixer may need besides its input and parameters.
struct StepContext {
  int64_t batch = 1;  ///< sequences B: the rows are B · T tokens
  Recompute recompute = Recompute::none;
  LayerState* state = nullptr;  ///< of this layer, read and updated; null: the sequence starts here and nothing follows
  Var bound;                    ///< [D] lower bound of this layer's forget gate; undefined: 0
  Tensor starts;  ///< [N] u8, 1 at the first token of a document; undefined: each sequence is one document
  std::vector<AuxiliaryLoss>* losses = nullptr;  ///< where mixers add losses of their own; null: they are not wanted

  /// What the first norm_linear of a mixer keeps for the backward pass, and what a later one keeps.
  Keep keep_rounded() const { return recompute == Recompute::selective ? Keep::source : Keep::all; }
  /// The same for a product whose output is made again too.
  Keep keep_output() const { return recompute == Recompute::selective ? Keep::nothing : Keep::all; }
};

}  // namespace mmfree
