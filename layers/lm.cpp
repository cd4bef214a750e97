#include "layers/lm.h"

#include <algorithm>
#include <utility>

#include "core/ops/check.h"
#include "core/ops/elementwise.h"

namespace mmfree {

const char* name_of(Recompute r) {
  switch (r) {
    case Recompute::none:
      return "none";
    case Recompute::rounded:
      return "rounded";
    case Recompute::selective:
      return "selective";
    case Recompute::full:
      return "full";
  }
  return "?";
}

Tensor host_f32(const Tensor& t) {
  const Tensor host = t.to(Device::cpu);
  if (host.dtype() == DType::f32) return host;
  Tensor f32(host.shape(), DType::f32);
  cast(host, f32);
  return f32;
}

namespace {

/// Binds the parts of a model to the parameters of a store.
class BindVisitor : public DeclarationVisitor {
 public:
  BindVisitor(const ParamStore& params, const QuantTensor& table, std::vector<const BitLinear*>& projections)
      : params_(params), table_(table), projections_(projections) {}
  void table(const std::string& name, Var& v, const Shape&, Init) {
    v = table_.values.defined() ? Var(table_) : params_[prefix_ + name];
  }
  void vector(const std::string& name, Var& v, const Shape&, double) { v = params_[prefix_ + name]; }
  void projection(const std::string& name, BitLinear& p, const MatrixSpec& m, const LayerConfig& c) {
    p.name = prefix_ + name;
    p.parameter = m.tied ? "model.embeddings.weight" : p.name + ".weight";
    p.precision = c.precision_of(name);
    if (params_.has(p.parameter)) p.weight = params_[p.parameter];
    if (c.inner_norm_of(name)) p.norm = params_[p.name + ".norm.weight"];
    p.matrix = std::make_shared<WeightMatrix>();
    projections_.push_back(&p);
  }

 private:
  const ParamStore& params_;
  const QuantTensor& table_;
  std::vector<const BitLinear*>& projections_;
};

QuantTensor rows_of(const QuantTensor& q, const std::vector<RowRange>& ranges) {
  int64_t rows = 0;
  for (const RowRange& r : ranges) rows += r.end - r.begin;
  if (rows == q.values.dim(0)) return q;
  Tensor values({rows, q.values.dim(1)}, q.values.dtype(), q.values.device()), scale;
  if (q.quantised()) scale = Tensor({rows}, q.scale.dtype(), q.scale.device());
  int64_t to = 0;
  for (const RowRange& r : ranges) {
    const int64_t end = to + r.end - r.begin;
    values.slice(to, end).copy_from(q.values.slice(r.begin, r.end));
    if (q.quantised()) scale.slice(to, end).copy_from(q.scale.slice(r.begin, r.end));
    to = end;
  }
  return q.quantised() ? QuantTensor(values, scale, q.compute) : QuantTensor(values, q.compute);
}

}  // namespace

LM::LM(const ParamStore& params, const ModelConfig& config, DType compute, BackwardProducts backward,
       const QuantTensor& table)
    : params_(params), config_(config), compute_(compute), parts_(config) {
  BindVisitor bind(params, table, projections_);
  parts_.visit(bind, config);
  for (const BitLinear* p : projections_) {
    p->prepare(compute_);
    if (p->weight.defined() && p->precision == Precision::ternary)
      ternary_.push_back({params_.offset(params_.index(p->parameter)), p->matrix->ternary});
  }
  set_backward(backward);
  if (params_.share().group)
    share_codes();
  else
    requantise();
}

void LM::set_backward(BackwardProducts backward) {
  for (const BitLinear* p : projections_) {
    const bool inner = p->precision == Precision::ternary && p != &parts_.head;
    if (p->precision != Precision::f32) p->matrix->backward = inner ? backward.ternary : backward.other;
  }
}

void LM::requantise(const Tensor& abs_sums) const {
  for (size_t part = 0; shared_ && part < params_.share().part_count(); ++part) {
    params_.share().group->all_gather(offer_codes(part, abs_sums));
    take_codes(part);
  }
  if (!ternary_.empty()) ternary_quantise_flat(params_.values(), abs_sums, ternary_);
  round_others();
}

std::vector<Group::Gather> LM::offer_codes(size_t part, const Tensor& abs_sums) const {
  if (!shared_) return {};
  return shared_->offer(part, params_.values(), abs_sums.defined() ? params_.share().my_blocks(abs_sums) : abs_sums);
}

void LM::take_codes(size_t part) const {
  if (shared_) shared_->take(part);
}

void LM::round_others() const {
  for (const BitLinear* p : projections_) p->round();
}

/// Puts the codes of all matrices where ranks send each other theirs.
void LM::share_codes() {
  std::vector<TernaryJob> all = std::exchange(ternary_, {});
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
  if (all.empty()) return;
  shared_.emplace(params_.share(), all);
  for (size_t i = 0; i < all.size(); ++i)
    for (const BitLinear* p : projections_)
      if (p->matrix->ternary.codes.raw() == all[i].out.codes.raw()) p->matrix->ternary = shared_->matrix(i);
}

Var LM::hidden(const Tensor& ids, const Sequences& sequences, Trace* trace, Recompute recompute, int64_t keep_blocks,
               const Reached* reached) const {
  const auto& [batch, starts, state] = sequences;
  MMFREE_CHECK(ShapeError, batch > 0 && ids.size() % batch == 0, "lm: ", ids.size(), " tokens do not make ", batch,
               " sequences of one length");
  check_optional("lm", "starts", starts, ids.shape(), DType::u8);
  StepContext whole;
  whole.reached = reached;
  whole.mark(parts_.embedding);
  std::vector<Var> bounds;
  if (parts_.lower_bounds.defined()) bounds = lower_bounds(parts_.lower_bounds);
  Residual r{embedding(parts_.embedding, ids, compute_), Var()};
  for (size_t l = 0; l < parts_.blocks.size(); ++l) {
    if (trace) trace->push_back(r.sum().value());
    StepContext step = whole;
    step.batch = batch;
    step.starts = starts;
    step.recompute = recompute;
    step.keeps_output = int64_t(l) >= int64_t(parts_.blocks.size()) - keep_blocks;
    step.state = state ? &state->layer(int64_t(l)) : nullptr;
    if (l && !bounds.empty()) step.bound = bounds[l];
    step.mark(parts_.blocks[l].token_norm);
    r = parts_.blocks[l](r, step);
  }
  whole.mark(parts_.norm);
  if (trace) trace->push_back(rmsnorm(r.sum(), parts_.norm, config_.rms_norm_eps).value());
  return norm_quant(r.source(), parts_.norm, config_.rms_norm_eps, BitLinear::kEps, {parts_.head.branch()})[0];
}

Var LM::loss(const Tensor& ids, const Tensor& targets, const Sequences& sequences, const LossScale& scale,
             Recompute recompute, int64_t keep_blocks, const Reached* reached) const {
  return head_loss(hidden(ids, sequences, nullptr, recompute, keep_blocks, reached), parts_.head.weight,
                   *parts_.head.matrix, targets, scale);
}

Tensor LM::head(const QuantTensor& q) const {
  Tensor y({q.values.dim(0), config_.vocab_size}, q.compute, q.values.device());
  linear(q, *parts_.head.matrix, y);
  return y;
}

Tensor LM::logits(const Tensor& ids, const Sequences& sequences) const { return head(hidden(ids, sequences).quant()); }

Tensor LM::logits_at(const Tensor& ids, const Sequences& sequences, const std::vector<RowRange>& positions) const {
  return head(rows_of(hidden(ids, sequences).quant(), positions));
}

Tensor LM::next_logits(const Tensor& ids, int64_t batch, DecodeState& state) const {
  const int64_t steps = ids.size() / batch;
  std::vector<RowRange> last;
  for (int64_t b = 1; b <= batch; ++b) last.push_back({b * steps - 1, b * steps});
  return logits_at(ids, {batch, &state}, last);
}

DecodeState LM::zero_state(int64_t batch) const {
  DecodeState state(config_.num_hidden_layers);
  for (size_t l = 0; l < parts_.blocks.size(); ++l) {
    const LayerConfig c = config_.layer(int(l));
    std::visit(
        [&](const auto& mixer) {
          for (const Shape& shape : mixer.state_shapes(c, batch))
            state.layer(int64_t(l)).tensors.push_back(Tensor::zeros(shape, params_.dtype(), device()));
        },
        parts_.blocks[l].token);
  }
  return state;
}

Tensor LM::nll(const Tensor& ids, const Tensor& targets, const Sequences& sequences) const {
  const QuantTensor q = hidden(ids, sequences).quant();
  Tensor nll({ids.size()}, param_dtype(q.compute), q.values.device());
  head_loss(q, *parts_.head.matrix, targets, nll, nullptr);
  return nll;
}

}  // namespace mmfree
