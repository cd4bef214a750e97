#pragma once
#include "core/ops/elementwise.h"
#include "layers/lm.h"
#include "optim/adamw.h"
#include "tests/support/golden.h"

/// Running a model on a golden set, on any device.
namespace mmfree {

inline void load_parameters(const SafetensorsReader& file, ParamStore& params) {
  for (size_t i = 0; i < params.specs().size(); ++i) {
    Tensor to = params.view(params.values(), i), host(to.shape(), to.dtype());
    cast(file.read(params.specs()[i].name, params.dtype()), host);
    to.copy_from(host);
  }
}

/// Ids [B, T] → inputs and next-token targets; the last position of each sequence is not scored.
struct Example {
  Tensor ids, targets;
  int64_t batch, scored;
  explicit Example(const Tensor& table, Device device = Device::cpu) : batch(table.dim(0)) {
    const int64_t steps = table.dim(1);
    scored = batch * (steps - 1);
    Tensor next({table.size()}, DType::i32);
    for (int64_t i = 0; i < table.size(); ++i)
      next.mut<int32_t>()[i] = (i + 1) % steps ? table.data<int32_t>()[i + 1] : kIgnoreTarget;
    ids = table.reshape({table.size()}).to(device);
    targets = next.to(device);
  }
};

/// Leaves the gradients in `params` and returns the loss.
inline double run_backward(const LM& lm, ParamStore& params, const Example& e, Recompute recompute = Recompute::none) {
  Tape tape;
  params.begin_gradients();
  const Var loss = lm.loss(e.ids, e.targets, e.batch, 1.0 / double(e.scored), recompute);
  tape.backward(loss);
  params.finish_gradients();
  return *loss.value().to(Device::cpu).data<double>();
}

inline OptimConfig oracle_optimizer(double lr) {
  OptimConfig c;
  c.lr = lr;
  c.schedule = Schedule::constant;
  c.warmup_steps = 0;
  c.weight_decay_until = 1;
  return c;
}

}  // namespace mmfree
