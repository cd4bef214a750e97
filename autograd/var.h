#pragma once
#include <memory>

#include "core/quant_tensor.h"

namespace mmfree {

/// Destination of a gradient contribution: write tensor = beta · tensor + contribution.
struct GradTarget {
  Tensor tensor;
  double beta = 0;
};

/// Where the gradient of one value is gathered. Kept by the tape apart from the value, so a value that no backward
/// pass needs is freed as soon as its Var goes out of scope.
struct GradSlot {
  Shape shape;
  DType dtype;
  Device device;
  Tensor grad;                ///< undefined until first written; for a parameter a view into the flat gradient buffer
  bool parameter = false;     ///< grad stays after the backward pass
  bool written = false;       ///< the next write accumulates
  bool fixed_weight = false;  ///< the gradients behind it are computed already, for a loss of weight 1

  /// Allocates on the first write, and unshares a gradient that another slot still refers to.
  GradTarget target();
};

struct Recipe;

/// A value in a computation: a tensor, plain or quantised, and the slot of its gradient if one is wanted. The gradient
/// has the value's compute dtype; that of a quantised value is the gradient of what it stands for.
class Var {
 public:
  Var() = default;
  explicit Var(QuantTensor value) : value_(std::move(value)) {}
  Var(QuantTensor value, std::shared_ptr<GradSlot> slot) : value_(std::move(value)), slot_(std::move(slot)) {}
  /// A plain value whose gradient is wanted.
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
  /// The gradient after Tape::backward; undefined if nothing reached this value.
  Tensor grad() const { return slot_ && slot_->written ? slot_->grad : Tensor(); }
  const std::shared_ptr<GradSlot>& slot() const { return slot_; }

  /// How to make the value again: operations that need it in their backward pass keep the recipe in its stead.
  const std::shared_ptr<const Recipe>& recipe() const { return recipe_; }
  void set_recipe(std::shared_ptr<const Recipe> recipe) { recipe_ = std::move(recipe); }

 private:
  QuantTensor value_;
  std::shared_ptr<GradSlot> slot_;
  std::shared_ptr<const Recipe> recipe_;
};

}  // namespace mmfree
