#include "autograd/plan.h"

namespace mmfree {
namespace {

thread_local Plan* current_plan = nullptr;

}  // namespace

Plan::Plan() : outer_(current_plan) { current_plan = this; }
Plan::~Plan() { current_plan = outer_; }
Plan* Plan::current() { return current_plan; }

Var Plan::value(int64_t width, DType compute) {
  kept_.push_back(Tensor::zeros({1, width}, compute));
  made_.insert(kept_.back().raw());
  return Var(QuantTensor(kept_.back(), compute));
}

}  // namespace mmfree
