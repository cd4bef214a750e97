#include "autograd/ops.h"
#include "autograd/plan.h"
#include "core/ops/elementwise.h"
#include "core/ops/embedding.h"

namespace mmfree {

Var add(const Var& a, const Var& b) {
  Tensor y(a.shape(), a.value().dtype(), a.device());
  add(a.value(), b.value(), y);
  return record("add", {a, b}, {QuantTensor(y, a.compute())}, {}, [](const BackwardCtx& c) {
    const Tensor dy = c.out_grad();
    c.pass(0, dy);
    c.pass(1, dy);
  })[0];
}

Var embedding(const Var& table, const Tensor& ids, DType compute) {
  if (Plan* plan = Plan::current()) {
    const Var y = plan->value(table_width(table.quant()), compute);
    plan->steps.emplace_back(Plan::Embed{table, y});
    return y;
  }
  if (is_packed(table.quant())) {
    Tensor y({ids.size(), table_width(table.quant())}, DType::f32);
    stored_embedding(table.quant(), ids, y);
    return Var(QuantTensor(y, compute));
  }
  Tensor y({ids.size(), table.dim(1)}, table.value().dtype(), table.device());
  embedding(table.value(), ids, y);
  return record("embedding", {table}, {QuantTensor(y, compute)}, {ids}, [](const BackwardCtx& c) {
    auto [dtable, beta] = c.grad(0);
    embedding_backward(c.saved(0), c.out_grad(), dtable, beta);
  })[0];
}

}  // namespace mmfree
