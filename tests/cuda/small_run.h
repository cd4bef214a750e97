#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "layers/parameters.h"
#include "optim/adamw.h"
#include "tests/support/gpu.h"
#include "train/run/step.h"

/// Training steps on a GPU.
namespace mmfree {

inline ModelConfig small_model() {
  ModelConfig model;
  model.hidden_size = 128;
  model.num_hidden_layers = 3;
  model.intermediate_size = 320;
  model.vocab_size = 1000;
  return model;
}

/// A model, by default a small one of shapes that the fast kernels take, trained on random tokens below 1000.
struct SmallRun {
  RunConfig config;
  std::unique_ptr<ParamStore> params;
  std::unique_ptr<LM> lm;
  std::unique_ptr<AdamW> optimizer;
  std::unique_ptr<StepRunner> runner;

  explicit SmallRun(bool capture, DType compute = DType::bf16, Recompute recompute = Recompute::selective,
                    int64_t micro = 0, bool carry = false, Products ternary = Products::compute,
                    const ModelConfig& model = small_model()) {
    config.model = model;
    config.data.seq_len = 96;
    config.train.batch_size = 4;
    config.train.micro_batch_size = micro;
    config.train.steps = 100;
    config.train.capture = capture;
    config.data.reset_state = config.data.carry_state = carry;
    params = std::make_unique<ParamStore>(parameter_specs(config.model), DType::f32, Device::cuda);
    params->initialise(3);
    lm = std::make_unique<LM>(*params, config.model, compute, BackwardProducts{ternary, Products::compute});
    optimizer = std::make_unique<AdamW>(*params, config.optim);
    runner = std::make_unique<StepRunner>(*lm, *params, *optimizer, config, recompute);
  }
  /// With products of the backward pass in 8 bits.
  static SmallRun int8(bool capture, Recompute recompute = Recompute::selective, int64_t micro = 0) {
    return SmallRun(capture, DType::bf16, recompute, micro, false, Products::int8);
  }
  /// Makes the last `blocks` blocks keep what `selective` computes again in the others. Before the first step.
  void keep_blocks(int64_t blocks) {
    config.train.keep_blocks = blocks;
    runner = std::make_unique<StepRunner>(*lm, *params, *optimizer, config, Recompute::selective);
  }
  /// On the batch of step s, of which only every `of`-th target is scored.
  StepResult step(int64_t s, int64_t of = 1) {
    std::mt19937 random(uint32_t(s) + 17);
    int64_t scored = 0;
    for (Tensor* t : {&runner->ids(), &runner->targets()}) {
      Tensor tokens(t->shape(), DType::i32);
      for (int64_t i = 0; i < tokens.size(); ++i) tokens.mut<int32_t>()[i] = int32_t(random() % 50 * (random() % 20));
      if (t == &runner->targets())
        for (int64_t i = 0; i < tokens.size(); ++i)
          i % of ? void(tokens.mut<int32_t>()[i] = kIgnoreTarget) : void(++scored);
      t->copy_from(tokens);
    }
    if (runner->starts().defined()) {
      Tensor starts(runner->starts().shape(), DType::u8);
      for (int64_t i = 0; i < starts.size(); ++i) starts.mut<uint8_t>()[i] = random() % 40 == 0;
      runner->starts().copy_from(starts);
    }
    runner->launch(s, scored);
    return *runner->collect();
  }
};

}  // namespace mmfree
