#pragma once
#include "core/ops/elementwise.h"
#include "layers/lm.h"
#include "optim/adamw.h"
#include "tests/support/golden.h"

/// Running a model on a golden set, on any device.
namespace mmfree {

inline void load_parameters(const Golden& golden, ParamStore& params) {
  for (size_t i = 0; i < params.specs().size(); ++i) {
    Tensor to = params.view(params.values(), i), host(to.shape(), to.dtype());
    cast(golden.parameter(params.specs()[i].name, params.dtype()), host);
    to.copy_from(host);
  }
}

/// A batch on a device: inputs and targets [B·T], kIgnoreTarget where nothing is scored, and starts if it has any.
struct Example {
  Tensor ids, targets, starts;
  int64_t batch, scored;

  /// Ids [B, T], each scored against the next one; the last position of each sequence is not scored.
  explicit Example(const Tensor& table, Device device = Device::cpu) : Example(table, next_ids(table), device) {}
  /// The batch of a golden set: its `input_ids` against its `targets`, if it has any, else as above.
  explicit Example(const SafetensorsReader& expected, Device device = Device::cpu)
      : Example(expected.read("input_ids", DType::i32),
                expected.has("targets") ? expected.read("targets", DType::i32)
                                        : next_ids(expected.read("input_ids", DType::i32)),
                device) {
    if (!expected.has("starts")) return;
    const Tensor table = expected.read("starts", DType::i32);
    Tensor host({table.size()}, DType::u8);
    for (int64_t i = 0; i < table.size(); ++i) host.mut<uint8_t>()[i] = uint8_t(table.data<int32_t>()[i]);
    starts = host.to(device);
  }
  Sequences sequences() const { return {batch, starts}; }

 private:
  Example(const Tensor& table, const Tensor& next, Device device)
      : ids(table.reshape({table.size()}).to(device)),
        targets(next.reshape({table.size()}).to(device)),
        batch(table.dim(0)),
        scored(next.size() - std::count(next.data<int32_t>(), next.data<int32_t>() + next.size(), kIgnoreTarget)) {}

  static Tensor next_ids(const Tensor& table) {
    Tensor next(table.shape(), DType::i32);
    for (int64_t i = 0; i < table.size(); ++i)
      next.mut<int32_t>()[i] = (i + 1) % table.dim(1) ? table.data<int32_t>()[i + 1] : kIgnoreTarget;
    return next;
  }
};

/// Leaves the gradients in `params` and returns the loss.
inline double run_backward(const LM& lm, ParamStore& params, const Example& e, Recompute recompute = Recompute::none) {
  Tape tape;
  params.begin_gradients();
  const Var loss = lm.loss(e.ids, e.targets, e.sequences(), 1.0 / double(e.scored), recompute);
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
