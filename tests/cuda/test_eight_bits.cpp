// Models on a GPU whose projections are wide enough to read gradients in 8 bits from whoever computes them.
#include <gtest/gtest.h>

#include "tests/cuda/small_run.h"
#include "tests/support/compare.h"
#include "tests/support/golden_run.h"
#include "tests/support/tensors.h"

namespace mmfree {
namespace {

struct WideModel {
  const char* name;
  ModelConfig config;
};

/// Two layers with K >= 1024. `inner` decides what down and the first product of the channel mixer read.
WideModel wide_model(const char* name, TokenKind token, GateOrder order, ChannelKind channel, int64_t inner) {
  WideModel m{name, small_model()};
  m.config.hidden_size = 1024;
  m.config.num_hidden_layers = 2;
  m.config.intermediate_size = inner;
  m.config.token = token;
  m.config.channel = channel;
  m.config.gate_order = order;
  if (token == TokenKind::attention) m.config.heads = 8;
  return m;
}

/// i, f (scan), g (gate), o (sum) and gate-up (glu) in all; in the second down reads rows alone, from a sum; the third
/// has an activation whose input reads rows alone; the fourth a row kernel's glu of two parts and attention.
std::vector<WideModel> wide_models() {
  std::vector<WideModel> all{
      wide_model("glu", TokenKind::mlgru, GateOrder::reference, ChannelKind::glu, 1024),
      wide_model("narrow glu", TokenKind::mlgru, GateOrder::fixed, ChannelKind::glu, 512),
      wide_model("mlp", TokenKind::mlgru, GateOrder::paper, ChannelKind::mlp, 2048),
      wide_model("attention", TokenKind::attention, GateOrder::reference, ChannelKind::glu, 2048),
  };
  all.back().config.fused_gate = false;
  return all;
}

TEST(CudaEightBits, AProjectionAsksForWhatItReads) {
  MMFREE_NEEDS_GPU();
  struct Case {
    int64_t o, k;
    GradientForm form;
  };
  for (const auto& [o, k, form] :
       {Case{2048, 1024, GradientForm::rows}, Case{1024, 1024, GradientForm::both}, Case{512, 2048, GradientForm::both},
        Case{1024, 512, GradientForm::rows}, Case{640, 512, GradientForm::values}})
    for (Products products : {Products::compute, Products::int8}) {
      WeightMatrix matrix;
      matrix.backward = products;
      const Var latent = Var::leaf(random_tensor({o, k}, DType::f32, 1, 0.05).to(Device::cuda));
      matrix.ternary = make_ternary(o, k, DType::f32, Device::cuda);
      ternary_quantise(latent.value(), matrix.ternary);
      const Var x = Var::leaf(QuantTensor(random_tensor({4, k}, DType::f32, 2).to(Device::cuda), DType::bf16));
      Tape tape;
      const Var y =
          norm_linear(Source::rows(x), Var(), 1e-6, 1e-6, {{{Var(), Rounding::int8}, latent, &matrix}}, Keep::all)[0];
      EXPECT_EQ(products == Products::int8 ? form : GradientForm::values, y.slot()->wanted) << o << 'x' << k;
    }
}

// The forward pass has the same bits, so only 8-bit roundings differ. One of a row costs max / rms / 127 / sqrt(12) of
// it: 1 % for normal numbers, 3.4 % where the largest is 15 times the rms. Some six of them lie behind one another:
// at most sqrt(6) * 3.4 % = 8 %, and the bound is 10 %.
constexpr double kEightBits = 0.1;

TEST(CudaEightBits, GradientsHaveTheSameBitsWhateverIsComputedAgain) {
  MMFREE_NEEDS_GPU();
  for (const WideModel& model : wide_models()) {
    ParamStore params(parameter_specs(model.config), DType::f32, Device::cuda);
    params.initialise(5);
    Tensor table({3, 50}, DType::i32);
    std::mt19937 random(9);
    for (int64_t i = 0; i < table.size(); ++i) table.mut<int32_t>()[i] = int32_t(random() % 1000);
    const Example e(table, Device::cuda);
    for (DType compute : {DType::bf16, DType::f32}) {
      const LM plain(params, model.config, compute);
      const double loss = run_backward(plain, params, e);
      const Tensor exact = params.grads().to(Device::cpu);
      const LM lm(params, model.config, compute, BackwardProducts{Products::int8, Products::compute});
      Tensor first;
      for (Recompute r : kAllRecomputes) {
        SCOPED_TRACE(concat(model.name, ' ', name_of(compute), ' ', name_of(r)));
        EXPECT_EQ(loss, run_backward(lm, params, e, r));
        const Tensor grads = params.grads().to(Device::cpu);
        if (!first.defined()) first = grads;
        EXPECT_TRUE(same_bits(first, grads));
      }
      const double error = norm_error(first, exact);
      EXPECT_GT(error, 1e-3) << model.name << ": nothing was rounded";
      EXPECT_LT(error, kEightBits) << model.name << ' ' << name_of(compute);
    }
  }
}

TEST(CudaEightBits, ARecordedStepEqualsAnEagerOneToTheBit) {
  MMFREE_NEEDS_GPU();
  for (const WideModel& model : wide_models()) {
    SCOPED_TRACE(model.name);
    SmallRun eager(false, DType::bf16, Recompute::selective, 2, false, Products::int8, model.config);
    SmallRun recorded(true, DType::bf16, Recompute::selective, 2, false, Products::int8, model.config);
    for (int64_t s = 0; s < 4; ++s) {
      const StepResult a = eager.step(s), b = recorded.step(s);
      EXPECT_EQ(a.loss, b.loss) << "step " << s;
      EXPECT_EQ(a.report.grad_norm, b.report.grad_norm) << "step " << s;
    }
    EXPECT_TRUE(same_bits(eager.params->values().to(Device::cpu), recorded.params->values().to(Device::cpu)));
  }
}

}  // namespace
}  // namespace mmfree
