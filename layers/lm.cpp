#include "layers/lm.h"

#include "core/ops/check.h"
#include "core/ops/elementwise.h"

namespace mmfree {

const char* name_of(Recompute r) {
  return r == Recompute::none ? "none" : r == Recompute::selective ? "selective" : "full";
}

Tensor host_f32(const Tensor& t) {
  const Tensor host = t.to(Device::cpu);
  if (host.dtype() == DType::f32) return host;
  Tensor f32(host.shape(), DType::f32);
  cast(host, f32);
  return f32;
}

LM::LM(const ParamStore& params, const ModelConfig& config, DType compute)
    : params_(params),
      config_(config),
      compute_(compute),
      embeddings_(params["model.embeddings.weight"]),
      norm_(params["model.norm.weight"]),
      lm_head_(params, "lm_head", config.precision_of(-1, "lm_head")) {
  if (config.use_lower_bound) lower_bounds_ = params["model.lower_bounds"];
  for (int l = 0; l < int(config.num_hidden_layers); ++l) blocks_.emplace_back(params, config, l);
  for_each_projection([&](const BitLinear& p) {
    p.prepare(compute_);
    if (p.weight.defined() && p.precision == Precision::ternary)
      ternary_.push_back({params_.offset(params_.index(p.name + ".weight")), p.matrix->ternary});
  });
  requantise();
}

void LM::for_each_projection(const std::function<void(const BitLinear&)>& visit) const {
  for (const Block& b : blocks_)
    for (const BitLinear* p : {&b.mixer.i_proj, &b.mixer.f_proj, &b.mixer.g_proj, &b.mixer.o_proj, &b.channel.gate_proj,
                               &b.channel.down_proj})
      visit(*p);
  visit(lm_head_);
}

void LM::requantise(const Tensor& abs_sums) const {
  ternary_quantise_flat(params_.values(), abs_sums, ternary_);
  for_each_projection([](const BitLinear& p) { p.round(); });
}

Var LM::hidden(const Tensor& ids, int64_t batch, DecodeState* state, Trace* trace, Recompute recompute) const {
  MMFREE_CHECK(ShapeError, batch > 0 && ids.size() % batch == 0, "lm: ", ids.size(), " tokens do not make ", batch,
               " sequences of one length");
  std::vector<Var> bounds;
  if (lower_bounds_.defined()) bounds = lower_bounds(lower_bounds_);
  Residual r{embedding(embeddings_, ids, compute_), Var()};
  for (size_t l = 0; l < blocks_.size(); ++l) {
    if (trace) trace->push_back(r.sum().value());
    r = blocks_[l](r, l && !bounds.empty() ? bounds[l] : Var(), batch, state ? &state->layer(int64_t(l)) : nullptr,
                   recompute);
  }
  if (trace) trace->push_back(rmsnorm(r.sum(), norm_, config_.rms_norm_eps).value());
  return norm_quant(r.source(), norm_, config_.rms_norm_eps, BitLinear::kEps, {lm_head_.branch()})[0];
}

Var LM::loss(const Tensor& ids, const Tensor& targets, int64_t batch, const LossScale& scale,
             Recompute recompute) const {
  return head_loss(hidden(ids, batch, nullptr, nullptr, recompute), lm_head_.weight, *lm_head_.matrix, targets, scale);
}

Tensor LM::head(const QuantTensor& q) const {
  Tensor y({q.values.dim(0), config_.vocab_size}, q.compute, q.values.device());
  linear(q, *lm_head_.matrix, y);
  return y;
}

Tensor LM::logits(const Tensor& ids, int64_t batch, DecodeState* state) const {
  return head(hidden(ids, batch, state).quant());
}

Tensor LM::next_logits(const Tensor& ids, int64_t batch, DecodeState& state) const {
  const QuantTensor q = hidden(ids, batch, &state).quant();
  const int64_t steps = ids.size() / batch;
  if (steps == 1) return head(q);
  Tensor values({batch, q.values.dim(1)}, q.values.dtype(), device()), scale;
  if (q.quantised()) scale = Tensor({batch}, q.scale.dtype(), device());
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t row = (b + 1) * steps - 1;
    values.slice(b, b + 1).copy_from(q.values.slice(row, row + 1));
    if (q.quantised()) scale.slice(b, b + 1).copy_from(q.scale.slice(row, row + 1));
  }
  return head(q.quantised() ? QuantTensor(values, scale, q.compute) : QuantTensor(values));
}

Tensor LM::nll(const Tensor& ids, const Tensor& targets, int64_t batch, DecodeState* state) const {
  const QuantTensor q = hidden(ids, batch, state).quant();
  Tensor nll({ids.size()}, param_dtype(q.compute), q.values.device());
  head_loss(q, *lm_head_.matrix, targets, nll, nullptr);
  return nll;
}

}  // namespace mmfree
