#include "layers/token/attention.h"

namespace mmfree {
namespace {

/// The places of a cache's tensors in the layer's state.
enum StateTensor : size_t { kKeys, kValues, kBegins };

/// The cache in a layer's state. It leaves the state, so that no second Tensor sees what is appended to.
KeyCache taken(LayerState& state) {
  KeyCache cache{std::move(state.at(kKeys)), std::move(state.at(kValues)), state.at(kBegins), state.position};
  state.tensors.clear();
  return cache;
}

}  // namespace

Residual Attention::operator()(const Residual& in, const Var& block_norm, StepContext& step) const {
  const auto y = norm_linear(in.source(), block_norm, eps, BitLinear::kEps,
                             {q_proj.projection(), k_proj.projection(), v_proj.projection()}, step.keep_rounded());
  const Var &q = y[0], &k = y[1], &v = y[2];
  KeyCache cache;
  if (step.state) cache = taken(*step.state);
  const Var o = attention(q, k, v, shape, step.batch, step.state ? &cache : nullptr, step.starts);
  if (step.state) step.state->tensors = {cache.keys, cache.values, cache.begins};
  const Var out =
      norm_linear(Source::rows(o), sub_norm, eps, BitLinear::kEps, {o_proj.projection()}, step.keep_rounded())[0];
  return {in.value(y), out};
}

}  // namespace mmfree
