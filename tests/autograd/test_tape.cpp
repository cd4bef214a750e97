#include <gtest/gtest.h>

#include "autograd/ops.h"
#include "autograd/tape.h"
#include "tests/support/glu.h"
#include "tests/support/gradcheck.h"

using namespace mmfree;

namespace {

Tensor ones(int64_t n, int64_t d) { return full({n, d}, DType::f64, 1); }

/// factor · x, recorded with the accumulating destination instead of `pass`.
Var scaled(const Var& x, double factor) {
  Tensor y = x.value().clone();
  for (int64_t i = 0; i < y.size(); ++i) set(y, i, factor * at(y, i));
  return record("scaled", {x}, {y}, {}, [factor](const BackwardCtx& c) {
    auto [dx, beta] = c.grad(0);
    const Tensor dy = c.out_grad();
    for (int64_t i = 0; i < dy.size(); ++i) set(dx, i, (beta != 0 ? beta * at(dx, i) : 0) + factor * at(dy, i));
  })[0];
}

void expect_all(double expected, const Tensor& t) {
  ASSERT_TRUE(t.defined());
  for (int64_t i = 0; i < t.size(); ++i) EXPECT_EQ(expected, at(t, i)) << i;
}

}  // namespace

TEST(Tape, RecordsOnlyWhatIsWanted) {
  const Var x = Var::leaf(ones(2, 3)), constant(QuantTensor(ones(2, 3)));
  EXPECT_EQ(nullptr, Tape::current());
  EXPECT_FALSE(add(x, x).requires_grad());
  Tape tape;
  EXPECT_EQ(&tape, Tape::current());
  EXPECT_FALSE(add(constant, constant).requires_grad());
  EXPECT_EQ(0u, tape.size());
  EXPECT_TRUE(add(x, constant).requires_grad());
  EXPECT_EQ(1u, tape.size());
  {
    Tape inner;
    EXPECT_EQ(&inner, Tape::current());
    add(x, x);
    EXPECT_EQ(1u, inner.size());
  }
  EXPECT_EQ(&tape, Tape::current());
  EXPECT_EQ(1u, tape.size());
}

TEST(Tape, CallsWhatWaitsForItsReturnBetweenTheTwoSides) {
  const Var x = Var::leaf(ones(2, 3));
  bool called = false;
  on_return([called = &called] { *called = true; });  // without a tape
  Tape tape;
  std::vector<double> seen;
  const auto mark = [&] {
    on_return([slot = x.slot().get(), to = &seen] { to->push_back(slot->written ? at(slot->grad, 0) : 0); });
  };
  mark();
  const Var early = scaled(x, 2);
  mark();
  const Var late = scaled(x, 30);
  mark();
  tape.backward({early, late}, std::vector<Tensor>{ones(2, 3), ones(2, 3)});
  EXPECT_EQ((std::vector<double>{0, 30, 32}), seen);
  EXPECT_FALSE(called);
}

TEST(Tape, DoesNotKeepWhatBackwardDoesNotNeed) {
  const auto arena = Arena::host();
  ArenaScope scope(arena);
  const Var x = Var::leaf(ones(100, 64));
  const size_t one = 100 * 64 * 8, start = arena->stats().live;
  Tape tape;
  Var y = x;
  for (int i = 0; i < 10; ++i) y = add(y, x);
  EXPECT_EQ(start + one, arena->stats().live) << "sums that nothing needs are alive";
  y = glu(y);
  EXPECT_EQ(start + one + one / 2, arena->stats().live) << "glu saves its input";
  EXPECT_EQ((std::map<std::string, int64_t>{{"add", 0}, {"norm_quant", int64_t(one)}}), [&] {
    auto bytes = tape.saved_bytes();
    bytes.emplace("add", 0);
    return bytes;
  }());
  tape.backward(weighted_sum({y}, {full({100, 32}, DType::f64, 1)}));
  EXPECT_EQ(0u, tape.size());
  EXPECT_EQ(start + one / 2 + one, arena->stats().live) << "only y and the gradient of x remain";
}

TEST(Tape, FreesAsItGoesBack) {
  const auto arena = Arena::host();
  ArenaScope scope(arena);
  const Var x = Var::leaf(ones(100, 64));
  const size_t one = 100 * 64 * 8;
  Tape tape;
  Var loss;
  {
    Var y = x;
    for (int i = 0; i < 8; ++i) {
      const Var weight(QuantTensor(full({64}, DType::f64, 1)));
      y = rmsnorm(y, weight, 1e-6);  // saves its input
    }
    loss = weighted_sum({y}, {ones(100, 64)});
  }
  const size_t before = arena->stats().live;
  EXPECT_GT(before, 8 * one);
  arena->reset_peak();
  tape.backward(loss);
  EXPECT_LT(arena->stats().peak, before + 3 * one);
  EXPECT_LT(arena->stats().live, 3 * one);
}

TEST(Tape, DetectsSavedTensorsModifiedInPlace) {
  Tape tape;
  const Var x = Var::leaf(random_tensor({2, 6}, DType::f64, 1));
  const Var y = glu(x);
  Tensor view = x.value().slice(1, 2);
  view.mut<double>()[0] = 5;
  const Var loss = weighted_sum({y}, {ones(2, 3)});
  expect_error<Error>({"norm_quant", "f64 [2, 6] cpu", "modified in place"}, [&] { tape.backward(loss); });
}

TEST(Tape, SharedGradientsAreNotCorruptedByLaterContributions) {
  // y = x + f(x) + g(x): the addition hands the same gradient to all, and x gathers two more on top.
  for (int order = 0; order < 6; ++order) {
    const Var x = Var::leaf(ones(1, 3)), z = Var::leaf(ones(1, 3));
    Tape tape;
    const Var trunk = scaled(x, 1);
    std::vector<Var> terms(3);
    for (int i = 0; i < 3; ++i) {
      const int which = (order / 2 + (order % 2 ? 3 - i : i)) % 3;
      terms[size_t(which)] = which == 0 ? trunk : which == 1 ? scaled(trunk, 10) : scaled(trunk, 100);
    }
    const Var sum = order % 2 ? add(add(terms[0], terms[1]), terms[2]) : add(terms[0], add(terms[1], terms[2]));
    const Var y = add(sum, z);
    const Tensor cotangent = full({1, 3}, DType::f64, 2);
    tape.backward(weighted_sum({y}, {cotangent}));
    expect_all(222, x.grad());
    expect_all(2, z.grad());
    expect_all(2, cotangent);
  }
}

TEST(Tape, LeavesDoNotShareAGradient) {
  const Var a = Var::leaf(ones(1, 3)), b = Var::leaf(ones(1, 3));
  Tape tape;
  const Var extra = scaled(a, 10);
  tape.backward(weighted_sum({add(add(a, b), extra)}, {ones(1, 3)}));
  expect_all(11, a.grad());
  expect_all(1, b.grad());
  const Var twice = Var::leaf(ones(1, 3));
  tape.backward(weighted_sum({add(twice, twice)}, {ones(1, 3)}));
  expect_all(2, twice.grad());
}

TEST(Tape, LeavesAccumulateOverBackwardPasses) {
  const Var x = Var::leaf(ones(1, 3));
  for (int pass = 1; pass <= 3; ++pass) {
    Tape tape;
    tape.backward(weighted_sum({pass == 2 ? scaled(x, 5) : add(x, x)}, {ones(1, 3)}));
    expect_all(pass == 1 ? 2 : pass == 2 ? 7 : 9, x.grad());
  }
}

TEST(Tape, SkipsBranchesThatDoNotReachTheLoss) {
  const Var x = Var::leaf(ones(1, 3)), unused = Var::leaf(ones(1, 3));
  Tape tape;
  scaled(unused, 3);
  const Var y = scaled(x, 4);
  scaled(y, 5);
  tape.backward(weighted_sum({y}, {ones(1, 3)}));
  expect_all(4, x.grad());
  EXPECT_FALSE(unused.grad().defined());
}

TEST(Tape, UnreachedOutputsGiveZeros) {
  const Var lambda = Var::leaf(random_tensor({3, 4}, DType::f64, 1));
  const Tensor cotangent = random_tensor({4}, DType::f64, 2), zeros = Tensor::zeros({4}, DType::f64);
  Tensor grads[2];
  for (int i : {0, 1}) {
    const Var leaf = Var::leaf(lambda.value());
    Tape tape;
    const std::vector<Var> rows = lower_bounds(leaf);
    tape.backward(i ? weighted_sum({rows[1]}, {cotangent}) : weighted_sum(rows, {zeros, cotangent, zeros}));
    grads[i] = leaf.grad();
  }
  EXPECT_TRUE(same_bits(grads[0], grads[1]));
}

TEST(Tape, RejectsWhatIsNotALoss) {
  Tape tape;
  const Var x = Var::leaf(ones(2, 3)), constant(QuantTensor(full({1}, DType::f64, 1)));
  expect_error<ShapeError>({"backward", "one element", "[2, 3]"}, [&] { tape.backward(add(x, x)); });
  expect_error<Error>({"backward", "does not depend"}, [&] { tape.backward(constant); });
}

TEST(Tape, SeveralLossesAddUpByTheirWeights) {
  const Tensor value = random_tensor({2, 3}, DType::f64, 1), first = random_tensor({2, 3}, DType::f64, 2),
               second = random_tensor({2, 3}, DType::f64, 3);
  const Var x = Var::leaf(value);
  Tape tape;
  tape.backward({weighted_sum({x}, {first}), weighted_sum({x}, {second})}, {1, -0.5});
  for (int64_t i = 0; i < 6; ++i) EXPECT_DOUBLE_EQ(at(first, i) - 0.5 * at(second, i), at(x.grad(), i)) << i;
  EXPECT_EQ(0u, tape.size());
  const Var loss = weighted_sum({x}, {first});
  expect_error<ShapeError>({"backward", "1 losses with 2 weights"}, [&] { tape.backward({loss}, {1, 2}); });
}

TEST(Tape, HeadLossIsOneOfSeveral) {
  const Tensor value = random_tensor({2, 3}, DType::f64, 1), cotangent = random_tensor({2, 3}, DType::f64, 5);
  WeightMatrix w;
  w.plain = random_tensor({4, 3}, DType::f64, 2);
  const Tensor targets = random_ids(2, 4, 3);
  Tensor grads[3];
  for (int which : {0, 1, 2}) {  // the head's loss, the other, both
    const Var q = Var::leaf(value), latent = Var::leaf(w.plain);
    Tape tape;
    std::vector<Var> losses;
    if (which != 1) losses.push_back(head_loss(q, latent, w, targets, 0.5));
    if (which != 0) losses.push_back(weighted_sum({q}, {cotangent}));
    std::vector<double> weights(losses.size(), 1);
    if (which != 0) weights.back() = 0.25;
    tape.backward(losses, weights);
    grads[which] = q.grad().clone();
  }
  for (int64_t i = 0; i < 6; ++i) EXPECT_NEAR(at(grads[0], i) + at(grads[1], i), at(grads[2], i), 1e-15) << i;
  const Var q = Var::leaf(value);
  Tape tape;
  const Var loss = head_loss(q, Var(), w, targets, 1), other = weighted_sum({q}, {cotangent});
  expect_error<Error>({"backward", "loss 1", "0.5", "`scale`"}, [&] { tape.backward({other, loss}, {1, 0.5}); });
}

TEST(Tape, HeadLossTakesItsScaleFromATensorToo) {
  const Tensor value = random_tensor({2, 3}, DType::f64, 1), targets = random_ids(2, 4, 3);
  WeightMatrix w;
  w.plain = random_tensor({4, 3}, DType::f64, 2);
  const auto run = [&](const LossScale& scale) {
    const Var q = Var::leaf(value);
    Tape tape;
    const Var loss = head_loss(q, Var(), w, targets, scale);
    tape.backward(loss);
    return std::pair{loss.value().clone(), q.grad().clone()};
  };
  Tensor scale = full({1}, DType::f64, 0.375);
  const auto number = run(0.375), tensor = run(scale), other = run(1);
  EXPECT_TRUE(same_bits(number.first, tensor.first) && same_bits(number.second, tensor.second));
  EXPECT_NEAR(0.375 * at(other.first, 0), at(number.first, 0), 1e-15);
  EXPECT_NEAR(0.375 * at(other.second, 1), at(number.second, 1), 1e-15);
}

TEST(Tape, HeadLossMustBeTheLossItself) {
  const Var q = Var::leaf(random_tensor({2, 3}, DType::f64, 1));
  WeightMatrix w;
  w.plain = random_tensor({4, 3}, DType::f64, 2);
  const Tensor targets = random_ids(2, 4, 3);
  Tape tape;
  const Var loss = head_loss(q, Var(), w, targets, 1);
  expect_error<Error>({"head_loss", "scale"}, [&] { tape.backward(weighted_sum({loss}, {full({1}, DType::f64, 2)})); });
}
