#include "layers/lm.h"

#include <cstring>

namespace mmfree {

LM::LM(const ParamStore& params, const ModelConfig& config)
    : config_(config),
      embeddings_(params["model.embeddings.weight"]),
      norm_(params["model.norm.weight"]),
      lm_head_(params, "lm_head", config.precision_of(-1, "lm_head")) {
  if (config.use_lower_bound) lower_bounds_ = params["model.lower_bounds"];
  for (int l = 0; l < int(config.num_hidden_layers); ++l) blocks_.emplace_back(params, config, l);
  requantise();
}

void LM::for_each_projection(const std::function<void(const BitLinear&)>& visit) const {
  for (const Block& b : blocks_)
    for (const BitLinear* p : {&b.mixer.i_proj, &b.mixer.f_proj, &b.mixer.g_proj, &b.mixer.o_proj, &b.channel.gate_proj,
                               &b.channel.down_proj})
      visit(*p);
  visit(lm_head_);
}

void LM::requantise() const {
  for_each_projection([](const BitLinear& p) { p.requantise(); });
}

Var LM::hidden(const Tensor& ids, int64_t batch, DecodeState* state, Trace* trace) const {
  MMFREE_CHECK(ShapeError, batch > 0 && ids.size() % batch == 0, "lm: ", ids.size(), " tokens do not make ", batch,
               " sequences of one length");
  std::vector<Var> bounds;
  if (lower_bounds_.defined()) bounds = lower_bounds(lower_bounds_);
  Var h = embedding(embeddings_, ids);
  for (size_t l = 0; l < blocks_.size(); ++l) {
    if (trace) trace->push_back(h.value());
    h = blocks_[l](h, l && !bounds.empty() ? bounds[l] : Var(), batch, state ? &state->layer(int64_t(l)) : nullptr);
  }
  if (trace) trace->push_back(rmsnorm(h, norm_, config_.rms_norm_eps).value());
  return norm_quant(h, norm_, config_.rms_norm_eps, BitLinear::kEps, {lm_head_.branch()})[0];
}

Var LM::loss(const Tensor& ids, const Tensor& targets, int64_t batch, double scale) const {
  return head_loss(hidden(ids, batch), lm_head_.weight, *lm_head_.matrix, targets, scale);
}

Tensor LM::head(const QuantTensor& q) const {
  Tensor y({q.values.dim(0), config_.vocab_size}, q.compute_dtype());
  linear(q, *lm_head_.matrix, y);
  return y;
}

Tensor LM::logits(const Tensor& ids, int64_t batch, DecodeState* state) const {
  return head(hidden(ids, batch, state).quant());
}

Tensor LM::next_logits(const Tensor& ids, int64_t batch, DecodeState& state) const {
  const QuantTensor q = hidden(ids, batch, &state).quant();
  const int64_t steps = ids.size() / batch;
  Tensor values({batch, q.values.dim(1)}, q.values.dtype()), scale;
  if (q.quantised()) scale = Tensor({batch}, q.scale.dtype());
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t row = (b + 1) * steps - 1;
    std::memcpy(values.slice(b, b + 1).raw_mut(), q.values.slice(row, row + 1).raw(), size_t(values.bytes() / batch));
    if (q.quantised())
      std::memcpy(scale.slice(b, b + 1).raw_mut(), q.scale.slice(row, row + 1).raw(), size_t(scale.bytes() / batch));
  }
  return head(q.quantised() ? QuantTensor(values, scale) : QuantTensor(values));
}

Tensor LM::nll(const Tensor& ids, const Tensor& targets, int64_t batch, DecodeState* state) const {
  const QuantTensor q = hidden(ids, batch, state).quant();
  Tensor nll({ids.size()}, q.compute_dtype());
  head_loss(q, *lm_head_.matrix, targets, 1, nll, nullptr);
  return nll;
}

}  // namespace mmfree
