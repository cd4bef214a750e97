#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "autograd/tape.h"
#include "tests/support/tensors.h"

namespace mmfree {

/// A computation from leaves (f64) to outputs. A single output of one element is taken as the loss itself; otherwise
/// the loss is Σ outputs ⊙ random cotangents.
using Computation = std::function<std::vector<Var>(const std::vector<Var>&)>;

/// Σ_i <weights_i, ys_i>, a loss [1].
inline Var weighted_sum(const std::vector<Var>& ys, const std::vector<Tensor>& weights) {
  double sum = 0;
  for (size_t i = 0; i < ys.size(); ++i)
    for (int64_t k = 0; k < weights[i].size(); ++k) sum += at(ys[i].value(), k) * at(weights[i], k);
  const std::vector<SavedTensor> saved(weights.begin(), weights.end());
  return record("weighted_sum", ys, {full({1}, ys[0].value().dtype(), sum)}, saved,
                [count = ys.size()](const BackwardCtx& c) {
                  const double seed = at(c.out_grad(), 0);
                  for (size_t i = 0; i < count; ++i) {
                    Tensor gradient = c.saved(i);
                    if (seed != 1) gradient = gradient.clone();
                    for (int64_t k = 0; seed != 1 && k < gradient.size(); ++k) set(gradient, k, seed * at(gradient, k));
                    c.pass(i, gradient);
                  }
                })[0];
}

inline std::vector<Tensor> random_cotangents(const std::vector<Var>& ys, uint32_t seed) {
  std::vector<Tensor> cotangents;
  for (const Var& y : ys) cotangents.push_back(random_tensor(y.shape(), y.compute(), seed++));
  return cotangents;
}

/// Compares the recorded backward pass of `f` with central differences at `inputs` (f64, moved by 1e-5 of their size):
/// along single coordinates, 60 random ones at most per input, and along 3 random directions that move a whole input.
///
/// The outputs are differenced before they are summed, so rounding costs about eps·|y| / 1e-5 = 2e-11·|y| per element
/// and truncation about 1e-10 times the third derivative. Accepted: an error of 2e-7 of the derivative plus its typical
/// size (its root mean square over the input) plus 1e-9; a forgotten term is larger by orders of magnitude.
class Gradcheck {
 public:
  Gradcheck(Computation f, std::vector<Tensor> inputs, uint32_t seed = 1)
      : f_(std::move(f)), inputs_(std::move(inputs)), rng_(seed) {
    const std::vector<Var> ys = evaluate();
    is_loss_ = ys.size() == 1 && ys[0].value().size() == 1;
    cotangents_ = is_loss_ ? std::vector<Tensor>{full({1}, DType::f64, 1)} : random_cotangents(ys, seed * 7919);
  }

  testing::AssertionResult run() {
    const std::vector<Tensor> gradients = backward();
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (!gradients[i].defined()) return testing::AssertionFailure() << "input " << i << " got no gradient";
      if (const auto result = check_input(i, gradients[i]); !result) return result;
    }
    return testing::AssertionSuccess();
  }

 private:
  std::vector<Var> evaluate() const {
    std::vector<Var> constants;
    for (const Tensor& t : inputs_) constants.emplace_back(QuantTensor(t));
    return f_(constants);
  }

  std::vector<Tensor> backward() const {
    std::vector<Var> leaves;
    for (const Tensor& t : inputs_) leaves.push_back(Var::leaf(t));
    Tape tape;
    const std::vector<Var> ys = f_(leaves);
    tape.backward(is_loss_ ? ys[0] : weighted_sum(ys, cotangents_));
    std::vector<Tensor> gradients;
    for (const Var& leaf : leaves) gradients.push_back(leaf.grad());
    return gradients;
  }

  /// Derivative of the loss along `direction` from input i, by a central difference.
  double difference(size_t i, const std::vector<double>& direction) {
    constexpr double kStep = 1e-5;
    const Tensor kept = inputs_[i];
    std::vector<Var> moved[2];
    for (int side : {0, 1}) {
      inputs_[i] = kept.clone();
      for (int64_t k = 0; k < kept.size(); ++k)
        if (direction[size_t(k)] != 0) set(inputs_[i], k, at(kept, k) + (side ? kStep : -kStep) * direction[size_t(k)]);
      moved[side] = evaluate();
    }
    inputs_[i] = kept;
    double sum = 0;
    for (size_t o = 0; o < cotangents_.size(); ++o)
      for (int64_t k = 0; k < cotangents_[o].size(); ++k)
        sum += at(cotangents_[o], k) * (at(moved[1][o].value(), k) - at(moved[0][o].value(), k));
    return sum / (2 * kStep);
  }

  testing::AssertionResult check_input(size_t i, const Tensor& gradient) {
    constexpr double kTolerance = 2e-7, kNoise = 1e-9;
    const int64_t size = gradient.size();
    double squares = 0;
    for (int64_t k = 0; k < size; ++k) squares += at(gradient, k) * at(gradient, k);
    const double typical = std::sqrt(squares / double(size));
    std::vector<int64_t> coordinates(static_cast<size_t>(size));
    for (int64_t k = 0; k < size; ++k) coordinates[size_t(k)] = k;
    std::shuffle(coordinates.begin(), coordinates.end(), rng_);
    coordinates.resize(std::min<size_t>(coordinates.size(), 60));
    std::normal_distribution<double> normal;
    for (size_t trial = 0; trial < coordinates.size() + 3; ++trial) {
      std::vector<double> direction(static_cast<size_t>(size));
      if (trial < coordinates.size())
        direction[size_t(coordinates[trial])] = 1;
      else
        for (double& x : direction) x = normal(rng_);
      double expected = 0, length = 0;
      for (int64_t k = 0; k < size; ++k) {
        expected += direction[size_t(k)] * at(gradient, k);
        length += direction[size_t(k)] * direction[size_t(k)];
      }
      const double found = difference(i, direction), size_of_it = std::abs(expected) + std::sqrt(length) * typical;
      if (!(std::abs(found - expected) <= kTolerance * size_of_it + kNoise * std::sqrt(length)))
        return testing::AssertionFailure() << "input " << i << ", trial " << trial << ": backward gives " << expected
                                           << ", the difference quotient " << found;
    }
    return testing::AssertionSuccess();
  }

  Computation f_;
  std::vector<Tensor> inputs_, cotangents_;
  std::mt19937 rng_;
  bool is_loss_ = false;
};

inline testing::AssertionResult gradcheck(Computation f, std::vector<Tensor> inputs, uint32_t seed = 1) {
  return Gradcheck(std::move(f), std::move(inputs), seed).run();
}

}  // namespace mmfree
