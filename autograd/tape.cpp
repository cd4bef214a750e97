#include "autograd/tape.h"

#include <cmath>
#include <cstdlib>

#include "autograd/plan.h"
#include "core/ops/elementwise.h"
#include "core/ops/ternary_int8.h"

namespace mmfree {
namespace {

thread_local Tape* current_tape = nullptr;

void check_finite(const char* op, const char* what, size_t index, const Tensor& t) {
  if (!t.defined() || (t.dtype() != DType::f32 && t.dtype() != DType::f64 && t.dtype() != DType::bf16)) return;
  Tensor squares({1}, DType::f64, t.device());
  sum_of_squares(t, squares);
  MMFREE_CHECK(DivergedError, std::isfinite(*squares.to(Device::cpu).data<double>()), op, ": ", what, ' ', index, " (",
               t.describe(), ") holds a NaN, an infinity or a value too large to square");
}

}  // namespace

bool checking_finite() {
  static const bool on = [] {
    const char* v = std::getenv("MMFREE_CHECK_FINITE");
    return v && *v == '1';
  }();
  return on;
}

Tensor SavedTensor::get(const char* op) const {
  if (recipe_) return recipe_->call(*recipe_);
  MMFREE_CHECK(Error, tensor_.version() == version_, op, ": a tensor (", tensor_.describe(),
               ") saved for backward was modified in place");
  return tensor_;
}

Var BackwardCtx::leaf(size_t i) const {
  const Tensor value = saved(i);
  if (!value.defined()) return {};
  const QuantTensor again(value, node_.saved[i].compute());
  return needs(i) ? Var::leaf(again) : Var(again);
}

Tensor BackwardCtx::out_grad(size_t i) const {
  const GradSlot& slot = *node_.outputs[i];
  MMFREE_CHECK(Error, slot.grad.defined() || !slot.written, node_.op, ": the gradient of output ", i,
               " is there by rows alone");
  return slot.written ? slot.grad : Tensor::zeros(slot.shape, slot.dtype, slot.device);
}

Gradient BackwardCtx::out_gradient(size_t i) const {
  GradSlot& slot = *node_.outputs[i];
  if (slot.wanted == GradientForm::values) return out_grad(i);
  if (!slot.rows.quantised()) {
    const Tensor values = out_grad(i);
    slot.rows = make_gradient_rows(values.rows(), values.cols(), values.dtype(), values.device());
    gradient_rows(values, slot.rows);
  }
  return {slot.grad, slot.rows};
}

GradientForm BackwardCtx::wanted(size_t i) const {
  if (!needs(i)) return GradientForm::values;
  const GradSlot& slot = *node_.inputs[i];
  return slot.uses == 1 && !slot.written && !slot.parameter ? slot.wanted : GradientForm::values;
}

Tensor BackwardCtx::take(size_t i) const {
  if (!needs(i) || !node_.inputs[i]->written) return {};
  GradSlot& slot = *node_.inputs[i];
  MMFREE_CHECK(Error, !slot.rows.quantised(), node_.op, ": takes a gradient that is there by rows");
  const Tensor sum = slot.grad;
  slot.written = false;
  if (!slot.parameter) slot.grad = Tensor();
  return sum;
}

GradTarget GradSlot::target() {
  MMFREE_CHECK(Error, !rows.quantised(), "backward: a second contribution to a gradient that is there by rows");
  const double beta = written ? 1 : 0;
  if (!grad.defined())
    grad = Tensor(shape, dtype, device);
  else if (!parameter && !grad.unique())
    grad = grad.clone();
  written = true;
  return {grad, beta};
}

void BackwardCtx::pass(size_t i, const Gradient& contribution) const {
  if (!needs(i)) return;
  GradSlot& slot = *node_.inputs[i];
  const Tensor values = contribution.values.defined() ? contribution.values.reshape(slot.shape) : Tensor();
  if (!slot.parameter && !slot.written && !slot.grad.defined()) {
    slot.grad = values;
    slot.rows = contribution.rows;
    slot.written = true;
    return;
  }
  auto [target, beta] = slot.target();
  if (beta == 0)
    cast(values, target);
  else
    add(target, values, target);
}

Tape::Tape(bool recording) : recording_(recording), outer_(current_tape) { current_tape = this; }
Tape::~Tape() { current_tape = outer_; }
Tape* Tape::current() { return current_tape && current_tape->recording_ ? current_tape : nullptr; }

void Tape::backward(const std::vector<Var>& losses, const std::vector<double>& weights) {
  MMFREE_CHECK(ShapeError, losses.size() == weights.size(), "backward: ", losses.size(), " losses with ",
               weights.size(), " weights");
  std::vector<Tensor> seeds;
  for (size_t i = 0; i < losses.size(); ++i) {
    const Var& loss = losses[i];
    MMFREE_CHECK(ShapeError, loss.value().size() == 1, "backward: the loss must have one element, got ",
                 loss.value().describe());
    MMFREE_CHECK(Error, loss.requires_grad(), "backward: the loss does not depend on anything that wants a gradient");
    MMFREE_CHECK(Error, !loss.slot()->fixed_weight || weights[i] == 1, "backward: loss ", i, " has the weight ",
                 weights[i], ", but its gradients were computed for 1 (head_loss: put factors into `scale`)");
    fill(seeds.emplace_back(loss.slot()->shape, loss.slot()->dtype, loss.slot()->device), weights[i]);
  }
  backward(losses, seeds);
}

void Tape::backward(const std::vector<Var>& outputs, const std::vector<Tensor>& gradients) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!gradients[i].defined() || !outputs[i].requires_grad()) continue;
    outputs[i].slot()->grad = gradients[i];
    outputs[i].slot()->written = true;
  }
  while (!nodes_.empty()) {
    const Node node = std::move(nodes_.back());
    nodes_.pop_back();
    bool reached = node.outputs.empty();
    for (const auto& out : node.outputs) reached |= out->written;
    if (!reached) continue;
    node.call(node.closure, BackwardCtx(node));
    if (checking_finite())
      for (size_t i = 0; i < node.inputs.size(); ++i)
        if (node.inputs[i] && node.inputs[i]->written)
          check_finite(node.op, "gradient of input", i, node.inputs[i]->grad),
              check_finite(node.op, "8-bit gradient of input", i, node.inputs[i]->rows.scale);
    for (const auto& out : node.outputs) {
      if (!out->parameter) out->grad = Tensor();
      out->rows = {};
    }
  }
}

std::map<std::string, int64_t> Tape::saved_bytes() const {
  std::map<std::string, int64_t> bytes;
  for (const Node& node : nodes_)
    for (const SavedTensor& s : node.saved) bytes[node.op] += s.bytes();
  return bytes;
}

std::vector<Var> record_node(Node&& node, const std::vector<Var>& inputs, std::vector<QuantTensor> outputs) {
  if (const Plan* plan = Plan::current())
    for (const Var& in : inputs)
      MMFREE_CHECK(Error, !plan->made(in), node.op, ": this operation cannot be part of a plan");
  if (checking_finite())
    for (size_t i = 0; i < outputs.size(); ++i) check_finite(node.op, "output", i, outputs[i].values);
  bool wanted = false;
  for (const Var& in : inputs) wanted |= in.requires_grad();
  std::vector<Var> vars;
  if (!Tape::current() || !wanted) {
    for (QuantTensor& out : outputs) vars.emplace_back(std::move(out));
    return vars;
  }
  for (const Var& in : inputs) {
    node.inputs.push_back(in.slot());
    if (in.slot()) ++in.slot()->uses;
  }
  for (QuantTensor& out : outputs) {
    const Tensor& t = out.values;
    auto slot = std::make_shared<GradSlot>(GradSlot{t.shape(), out.compute, t.device(), {}, false, false});
    node.outputs.push_back(slot);
    vars.emplace_back(std::move(out), std::move(slot));
  }
  Tape::current()->nodes_.push_back(std::move(node));
  return vars;
}

void record_place(Node&& node) { Tape::current()->nodes_.push_back(std::move(node)); }

}  // namespace mmfree
