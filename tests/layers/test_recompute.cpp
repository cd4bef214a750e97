// What the model's forward pass leaves to be computed again changes memory and nothing else.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "layers/lm.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_model.h"

namespace mmfree {
namespace {

struct Outcome {
  double loss;
  Tensor grads;
};

Outcome backward(const ModelConfig& c, DType t, Recompute recompute, Products products = Products::compute,
                 int64_t keep_blocks = 1) {
  ParamStore params(parameter_specs(c), t);
  randomise(params, 11);
  const LM lm(params, c, t, {products, Products::compute});
  const int64_t batch = 3, steps = 19;
  Outcome out{0, {}};
  params.begin_gradients();
  for (uint64_t micro = 0; micro < 2; ++micro) {  // the second one adds to what the first left
    const Tensor ids = random_ids(batch * steps, c.vocab_size, 5 + micro);
    const Tensor targets = random_ids(batch * steps, c.vocab_size, 7 + micro);
    Tape tape;
    const Var loss = lm.loss(ids, targets, batch, 1.0 / double(batch * steps), recompute, keep_blocks);
    tape.backward(loss);
    out.loss += *loss.value().data<double>();
  }
  params.finish_gradients();
  out.grads = params.grads();
  return out;
}

TEST(RecomputeInTheModel, ChangesNoBitOfLossAndGradients) {
  for (GateOrder order : {GateOrder::reference, GateOrder::fixed, GateOrder::paper})
    for (int precision : {0, 1, 2, 3})
      for (bool bound : {true, false})
        for (DType t : {DType::f32, DType::f64}) {
          ModelConfig c = tiny_model_config();
          c.gate_order = order;
          c.use_lower_bound = bound;
          if (precision == 3)
            mix_precisions(c);
          else
            c.precision = std::array{Precision::ternary, Precision::bf16, Precision::f32}[size_t(precision)];
          const Outcome expected = backward(c, t, Recompute::none);
          EXPECT_GT(sum_of_squares(expected.grads), 0);
          for (Recompute r : {Recompute::rounded, Recompute::selective, Recompute::full}) {
            const Outcome found = backward(c, t, r);
            EXPECT_EQ(expected.loss, found.loss) << name_of(r);
            EXPECT_TRUE(same_bits(expected.grads, found.grads)) << name_of(r) << " gate " << int(order) << " precision "
                                                                << precision << " bound " << bound << ' ' << name_of(t);
          }
        }
}

TEST(RecomputeInTheModel, ChangesNoBitOfProductsInEightBits) {
  for (DType t : {DType::f32, DType::f64}) {
    ModelConfig c = tiny_model_config();
    const Outcome plain = backward(c, t, Recompute::none), expected = backward(c, t, Recompute::none, Products::int8);
    EXPECT_EQ(plain.loss, expected.loss) << "the forward pass is the same";
    EXPECT_FALSE(same_bits(plain.grads, expected.grads));
    for (Recompute r : {Recompute::rounded, Recompute::selective, Recompute::full})
      EXPECT_TRUE(same_bits(expected.grads, backward(c, t, r, Products::int8).grads)) << name_of(r);
  }
}

TEST(RecomputeInTheModel, BlocksThatKeepTheirFirstOutputChangeNoBit) {
  for (DType t : {DType::f32, DType::f64})
    for (Products products : {Products::compute, Products::int8})
      for (bool mixed : {false, true}) {
        ModelConfig c = tiny_model_config();
        c.num_hidden_layers = 4;
        if (mixed) mix_precisions(c);
        const Outcome expected = backward(c, t, Recompute::none, products);
        for (Recompute r : {Recompute::none, Recompute::rounded, Recompute::selective, Recompute::full})
          for (int64_t keep : {0, 1, 2, 3, 4, 5}) {
            const Outcome found = backward(c, t, r, products, keep);
            EXPECT_EQ(expected.loss, found.loss) << name_of(r) << ' ' << keep;
            EXPECT_TRUE(same_bits(expected.grads, found.grads)) << name_of(r) << ' ' << keep << ' ' << name_of(t);
          }
      }
}

TEST(RecomputeInTheModel, TakesLessMemoryTheMoreIsComputedAgain) {
  for (Precision precision : {Precision::ternary, Precision::f32}) {
    ModelConfig c = tiny_model_config();
    c.num_hidden_layers = 6;
    c.hidden_size = 64;
    c.intermediate_size = 192;
    c.precision = precision;
    ParamStore params(parameter_specs(c), DType::f32);
    randomise(params, 11);
    const LM lm(params, c);
    params.begin_gradients();
    const int64_t batch = 8, steps = 64, n = batch * steps;
    const Tensor ids = random_ids(n, c.vocab_size, 1), targets = random_ids(n, c.vocab_size, 2);
    std::map<Recompute, size_t> kept, peak;
    const auto measure = [&](Recompute r, int64_t keep_blocks) {
      const auto arena = Arena::host();
      const ArenaScope scope(arena);
      Tape tape;
      const Var loss = lm.loss(ids, targets, batch, 1, r, keep_blocks);
      const size_t live = arena->stats().live;
      tape.backward(loss);
      EXPECT_EQ(256u, arena->stats().live) << "only the loss is left";
      return std::pair(live, arena->stats().peak);
    };
    for (Recompute r : kAllRecomputes) std::tie(kept[r], peak[r]) = measure(r, 1);
    // Kept per layer, in bytes: with `full` the stream alone; `rounded` forgets the rounded activations, for int8 a
    // byte each and a step, else f32; `selective` also gate_proj's output but in
    // the last layer, and keeps its codes, if it has some.
    const size_t width = size_t(c.hidden_size), inner = size_t(c.intermediate_size), rows = size_t(n);
    const size_t rounded =
        precision == Precision::ternary ? rows * (5 * width + inner) + 6 * 4 * rows : 4 * rows * (5 * width + inner);
    EXPECT_EQ(6 * rounded, kept[Recompute::none] - kept[Recompute::rounded]);
    const size_t codes = precision == Precision::ternary ? rows * width + 4 * rows : 0;
    const size_t block = 4 * rows * 2 * inner - codes;
    EXPECT_EQ(5 * block, kept[Recompute::rounded] - kept[Recompute::selective]);
    for (const int64_t keep : {0, 2, 3, 5, 6, 7})
      EXPECT_EQ(kept[Recompute::rounded] - size_t(std::max<int64_t>(6 - keep, 0)) * block,
                measure(Recompute::selective, keep).first)
          << keep;
    for (Recompute r : {Recompute::none, Recompute::rounded, Recompute::full})
      EXPECT_EQ(kept[r], measure(r, 3).first) << name_of(r);
    EXPECT_LT(kept[Recompute::full], 7 * 4 * rows * width + 4 * rows * width + (size_t(1) << 16));
    EXPECT_GT(kept[Recompute::full], 6 * 4 * rows * width);
    EXPECT_LT(peak[Recompute::rounded], peak[Recompute::none]);
    EXPECT_LT(peak[Recompute::selective], peak[Recompute::rounded]);
    EXPECT_LT(peak[Recompute::full], peak[Recompute::selective]);
  }
}

TEST(RecomputeInTheModel, NamesAreThoseOfTheConfiguration) {
  EXPECT_STREQ("none", name_of(Recompute::none));
  EXPECT_STREQ("rounded", name_of(Recompute::rounded));
  EXPECT_STREQ("selective", name_of(Recompute::selective));
  EXPECT_STREQ("full", name_of(Recompute::full));
}

}  // namespace
}  // namespace mmfree
