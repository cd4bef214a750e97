// recompute: the same values and gradients as without it, and nothing kept but the inputs.
#include <gtest/gtest.h>

#include "autograd/ops.h"
#include "tests/support/glu.h"
#include "tests/support/gradcheck.h"

using namespace mmfree;

namespace {

constexpr double kEps = 0.1;

Tensor random_f64(Shape shape, uint32_t seed) { return random_tensor(shape, DType::f64, seed); }

/// Two outputs from two inputs and a parameter of its own: gate_norm(a, rmsnorm(b, w), w) and a + b.
std::vector<Var> two_outputs(const std::vector<Var>& in, const Var& weight) {
  return {gate_norm(in[0], rmsnorm(in[1], weight, kEps), weight, kEps), add(in[0], in[1])};
}

}  // namespace

TEST(Recompute, GivesTheSameValuesAndGradientsToTheBit) {
  for (DType t : {DType::f64, DType::f32}) {
    std::vector<Tensor> found[2];
    for (bool again : {false, true}) {
      const Var a = Var::leaf(random_tensor({5, 33}, t, 1)), b = Var::leaf(random_tensor({5, 33}, t, 2));
      const Var weight = Var::leaf(random_tensor({33}, t, 3));
      Tape tape;
      const std::vector<Var> in{glu(Var(QuantTensor(random_tensor({5, 66}, t, 4)))), add(a, b)};
      const std::vector<Var> inputs{add(a, in[0]), in[1]};
      const auto f = [w = &weight](const std::vector<Var>& v) { return two_outputs(v, *w); };
      const std::vector<Var> ys = again ? recompute("pair", inputs, f) : f(inputs);
      tape.backward(weighted_sum(ys, {random_tensor({5, 33}, t, 5), random_tensor({5, 33}, t, 6)}));
      found[again] = {ys[0].value(), ys[1].value(), a.grad(), b.grad(), weight.grad()};
    }
    for (size_t i = 0; i < found[0].size(); ++i) EXPECT_TRUE(same_bits(found[0][i], found[1][i])) << i;
  }
}

TEST(Recompute, PassesTheGradientCheck) {
  EXPECT_TRUE(gradcheck(
      [](const std::vector<Var>& in) {
        // The weight is an input here, once for the recomputed part and once more outside of it.
        const auto f = [](const std::vector<Var>& v) { return two_outputs({v[0], v[1]}, v[2]); };
        const std::vector<Var> ys = recompute("pair", in, f);
        return std::vector{add(ys[0], ys[1]), rmsnorm(ys[1], in[2], kEps)};
      },
      {random_f64({3, 17}, 1), random_f64({3, 17}, 2), random_f64({17}, 3)}));
}

TEST(Recompute, MayBeNestedAndSkipsWhatGetsNoGradient) {
  const auto inner = [](const std::vector<Var>& v) { return std::vector{glu(v[0]), glu(v[1])}; };
  const auto outer = [inner](const std::vector<Var>& v) {
    const std::vector<Var> ys = recompute("inner", {v[0], add(v[0], v[0])}, inner);
    return std::vector{ys[0], ys[1]};
  };
  for (size_t which : {0, 1})
    EXPECT_TRUE(gradcheck(
        [&](const std::vector<Var>& in) {
          const std::vector<Var> ys = recompute("outer", {in[0]}, outer);
          return std::vector{rmsnorm(ys[which], Var(QuantTensor(full({3}, DType::f64, 1))), kEps)};
        },
        {random_f64({4, 6}, 1)}))
        << which;
}

TEST(Recompute, KeepsOnlyItsInputs) {
  const auto arena = Arena::host();
  const ArenaScope scope(arena);
  const Var x = Var::leaf(random_f64({64, 128}, 1));
  const size_t one = 64 * 128 * 8;
  // Each glu halves; all but the last output dies with the call.
  const auto f = [](const std::vector<Var>& v) { return std::vector{glu(glu(glu(v[0])))}; };
  const size_t before = arena->stats().live;
  Tape tape;
  const Var y = recompute("three", {x}, f)[0];
  EXPECT_EQ(1u, tape.size());
  EXPECT_EQ(int64_t(one), tape.saved_bytes().at("three"));
  EXPECT_EQ(before + one / 8, arena->stats().live);
  tape.backward(weighted_sum({y}, {full({64, 16}, DType::f64, 1)}));
  EXPECT_EQ(before + one / 8 + one, arena->stats().live) << "y and the gradient of x";
}

TEST(Recompute, CallsOnceWhereNothingIsRecorded) {
  int calls = 0;
  const auto f = [count = &calls](const std::vector<Var>& v) {
    ++*count;
    return std::vector{add(v[0], v[0])};
  };
  const Var leaf = Var::leaf(random_f64({2, 3}, 1)), constant(QuantTensor(leaf.value()));
  EXPECT_FALSE(recompute("twice", {leaf}, f)[0].requires_grad());  // no tape
  Tape tape;
  EXPECT_FALSE(recompute("twice", {constant}, f)[0].requires_grad());
  EXPECT_EQ(2, calls);
  {
    const NoTape quiet;
    EXPECT_EQ(nullptr, Tape::current());
    EXPECT_FALSE(recompute("twice", {leaf}, f)[0].requires_grad());
  }
  EXPECT_EQ(&tape, Tape::current());
  EXPECT_EQ(0u, tape.size());
  const Var y = recompute("twice", {leaf}, f)[0];
  EXPECT_EQ(4, calls);
  tape.backward(weighted_sum({y}, {full({2, 3}, DType::f64, 1)}));
  EXPECT_EQ(5, calls) << "once more for the backward pass";
  EXPECT_EQ(2, at(leaf.grad(), 4));
}

TEST(Recompute, InputsKeepTheirComputeDtype) {
  // A residual stream that stays f32 under bf16 activations, with and without a gradient: as behind a frozen embedding.
  for (const bool wanted : {false, true}) {
    const QuantTensor stream(full({2, 3}, DType::f32, 1), DType::bf16);
    std::vector<DType> seen;
    const auto f = [types = &seen](const std::vector<Var>& v) {
      types->push_back(v[0].compute());
      return std::vector{add(v[1], v[1])};
    };
    const Var other = Var::leaf(random_f64({2, 3}, 1));
    Tape tape;
    const Var y = recompute("stream", {wanted ? Var::leaf(stream) : Var(stream), other}, f)[0];
    tape.backward(weighted_sum({y}, {full({2, 3}, DType::f64, 1)}));
    EXPECT_EQ((std::vector{DType::bf16, DType::bf16}), seen) << wanted;
  }
}

TEST(Recompute, NoticesInputsModifiedInPlace) {
  const Var x = Var::leaf(random_f64({2, 6}, 1));
  Tape tape;
  const Var y = recompute("half", {x}, [](const std::vector<Var>& v) { return std::vector{glu(v[0])}; })[0];
  Tensor changed = x.value();
  changed.mut<double>()[0] = 5;
  const Var loss = weighted_sum({y}, {full({2, 3}, DType::f64, 1)});
  expect_error<Error>({"half", "modified in place"}, [&] { tape.backward(loss); });
}

TEST(Tape, GoesBackFromSeveralOutputs) {
  const Var x = Var::leaf(random_f64({2, 3}, 1)), unused = Var::leaf(random_f64({2, 3}, 2));
  const Tensor g = random_f64({2, 3}, 3), h = random_f64({2, 3}, 4);
  Tape tape;
  const Var twice = add(x, x), thrice = add(twice, x), none = add(unused, unused);
  tape.backward({twice, thrice, none}, {g, h, Tensor()});
  EXPECT_EQ(0u, tape.size());
  for (int64_t i = 0; i < 6; ++i) EXPECT_NEAR(2 * at(g, i) + 3 * at(h, i), at(x.grad(), i), 1e-14);
  EXPECT_FALSE(unused.grad().defined());
}
