#pragma once
#include <memory>

#include "core/quant_tensor.h"

namespace mmfree {

/// Destination of a gradient contribution: write tensor = beta · tensor + contribution.
struct GradTarget {
  Tensor tensor;
  double beta = 0;
};

/// What the consumer of a gradient reads: its values, its rows in 8 bits (see Gradient), or both.
enum class GradientForm { values, rows, both };

/// The gradient of one value. The tape holds the slot and not the value, so a value that no backward pass needs is
/// freed as soon as its Var goes out of scope.
struct GradSlot {
  Shape shape;
  DType dtype;
  Device device;
  Tensor grad;                ///< undefined until first written; for a parameter a view into the flat gradient buffer
  bool parameter = false;     ///< a leaf: grad stays after the backward pass
  bool written = false;       ///< grad holds a value, so the next contribution is added to it
  bool fixed_weight = false;  ///< of a loss whose gradients are already computed, for the weight 1
  GradientForm wanted = GradientForm::values;  ///< what the node that computed the value reads
  /// The gradient in 8 bits by rows, if its only contributor made it; grad may be undefined then.
  QuantTensor rows = {};
  int uses = 0;  ///< how many inputs of nodes the value is

  /// The tensor for a contribution and its beta. Allocates it first if needed, and copies one that another slot shares.
  GradTarget target();
};

struct Recipe;

/// A value in a computation: a tensor, plain or quantised, and the slot of its gradient, if required. The gradient has
/// the compute dtype. For a quantised value it is the gradient with respect to values ⊙ scale.
class Var {
 public:
  Var() = default;
  explicit Var(QuantTensor value) : value_(std::move(value)) {}
  Var(QuantTensor value, std::shared_ptr<GradSlot> slot) : value_(std::move(value)), slot_(std::move(slot)) {}
  /// A plain value that requires a gradient.
  static Var leaf(QuantTensor value) {
    const Tensor& t = value.values;
    auto slot = std::make_shared<GradSlot>(GradSlot{t.shape(), value.compute, t.device(), {}, true, false});
    return Var(std::move(value), std::move(slot));
  }

  bool defined() const { return value_.values.defined(); }
  const Tensor& value() const { return value_.values; }
  const QuantTensor& quant() const { return value_; }
  const Shape& shape() const { return value_.values.shape(); }
  int64_t dim(int i) const { return value_.values.dim(i); }
  DType compute() const { return value_.compute; }
  Device device() const { return value_.values.device(); }
  bool requires_grad() const { return slot_ != nullptr; }
  /// The gradient after Tape::backward; undefined if none was computed.
  Tensor grad() const { return slot_ && slot_->written ? slot_->grad : Tensor(); }
  const std::shared_ptr<GradSlot>& slot() const { return slot_; }

  /// How to compute the value again; null: not known. An operation that needs the value in its backward pass saves the
  /// recipe instead.
  const std::shared_ptr<const Recipe>& recipe() const { return recipe_; }
  void set_recipe(std::shared_ptr<const Recipe> recipe) { recipe_ = std::move(recipe); }

 private:
  QuantTensor value_;
  std::shared_ptr<GradSlot> slot_;
  std::shared_ptr<const Recipe> recipe_;
};

}  // namespace mmfree
