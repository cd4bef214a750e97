// Leaves: a step adds their gradients in a balanced tree, whatever the micro-batches inside.
#include <gtest/gtest.h>

#include "layers/parameters.h"
#include "optim/adamw.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_run.h"
#include "train/run/step.h"

namespace mmfree {
namespace {

/// The sum of terms [begin, end) as a balanced tree.
template <class Term>
auto tree(int64_t begin, int64_t end, const Term& term) -> decltype(term(0)) {
  if (end - begin == 1) return term(begin);
  const auto left = tree(begin, (begin + end) / 2, term), right = tree((begin + end) / 2, end, term);
  return left + right;
}

TEST(LeafSums, AddABalancedTreeInOrder) {
  constexpr int64_t kSize = 5;
  for (int64_t count = 1; count <= 32; count *= 2) {
    const Tensor all = random_tensor({count, kSize}, DType::f32, 7);
    Tensor buffer({kSize}, DType::f32);
    LeafSums sums(count, buffer);
    for (int round = 0; round < 2; ++round) {
      for (int64_t leaf = 0; leaf < count; ++leaf) {
        buffer.copy_from(all.slice(leaf, leaf + 1).reshape({kSize}));
        sums.add(leaf, buffer);
      }
      for (int64_t i = 0; i < kSize; ++i)
        EXPECT_EQ(tree(0, count, [&](int64_t leaf) { return all.data<float>()[leaf * kSize + i]; }),
                  buffer.data<float>()[i])
            << count << " leaves, element " << i;
    }
  }
  EXPECT_THROW(LeafSums(3, Tensor({1}, DType::f32)), Error);
}

/// A run of eight rows in leaves.
RunConfig leafy_run(const TempDir& dir, int64_t leaves, int64_t micro) {
  RunConfig c = tiny_run(dir / "run");
  c.train.batch_size = 8;
  c.train.leaves = leaves;
  c.train.micro_batch_size = micro;
  return c;
}

struct Parts {
  RunConfig config;
  Corpus corpus{config.data};
  Batches batches{corpus, {config.data.seq_len, uint64_t(config.train.seed), config.data.shuffle}};
  ParamStore params{parameter_specs(config.model), DType::f32};
  LM lm{params, config.model};
  AdamW optimizer{params, config.optim};

  explicit Parts(RunConfig c) : config(std::move(c)) {
    params.initialise(3);
    lm.requantise();
  }

  /// Gradients of a leaf of step `step`, into the store; gives its loss.
  double leaf(int64_t step, int64_t number) {
    const TrainConfig& t = config.train;
    const int64_t length = config.data.seq_len, size = t.micro_batch() * length;
    double loss = 0;
    params.begin_gradients();
    for (int64_t row = 0; row < t.leaf_rows(); row += t.micro_batch()) {
      Tensor ids({size}, DType::i32), targets({size}, DType::i32);
      batches.read(step * t.batch_size + number * t.leaf_rows() + row, t.micro_batch(),
                   {ids.mut<int32_t>(), targets.mut<int32_t>()});
      Tape tape;
      const Var l = lm.loss(ids, targets, t.micro_batch(), 1 / double(t.batch_size * length));
      tape.backward(l);
      loss += *l.value().data<double>();
    }
    params.finish_gradients();
    return loss;
  }

  /// A step by hand; gives the loss.
  double by_hand(int64_t step) {
    const int64_t leaves = config.train.leaves;
    std::vector<Tensor> grads;
    double loss = 0;
    for (int64_t i = 0; i < leaves; ++i) {
      loss += leaf(step, i);
      grads.push_back(params.grads().clone());
    }
    for (int64_t k = 0; k < params.grads().size(); ++k)
      params.grads().mut<float>()[k] = tree(0, leaves, [&](int64_t i) { return grads[size_t(i)].data<float>()[k]; });
    optimizer.begin_step(step + 1, config.train.steps);
    optimizer.update();
    lm.requantise();
    return loss;
  }
};

TEST(Leaves, AddInATreeAndTheirMicroBatchesInOrder) {
  const TempDir dir;
  for (const auto& [leaves, micro] : {std::pair{1, 0}, {1, 2}, {2, 0}, {2, 1}, {4, 0}, {4, 1}, {8, 0}}) {
    SCOPED_TRACE(concat(leaves, " leaves, micro-batches of ", micro));
    const RunConfig c = leafy_run(dir, leaves, micro);
    Parts expected(c), run(c);
    StepRunner runner(run.lm, run.params, run.optimizer, c, Recompute::none);
    BatchFeed feed(run.batches, 0, c.train.steps, c.train.batch_size, c.data.seq_len, false);
    for (int64_t step = 0; step < 4; ++step) {
      const double loss = expected.by_hand(step);
      EXPECT_EQ(loss, runner.run(step, feed)->loss) << step;
    }
    EXPECT_TRUE(same_bits(expected.params.values(), run.params.values()));
    EXPECT_TRUE(same_bits(expected.optimizer.v(), run.optimizer.v()));
  }
}

TEST(Leaves, AreAPowerOfTwoThatDividesTheBatch) {
  TrainConfig t;
  t.batch_size = 24;
  EXPECT_EQ(24, t.leaf_rows()) << "not decided";
  for (int64_t n : {1, 2, 4, 8}) EXPECT_TRUE(t.splits_into(n)) << n;
  for (int64_t n : {0, 3, 6, 16}) EXPECT_FALSE(t.splits_into(n)) << n;
  t.leaves = 8;
  EXPECT_EQ(3, t.leaf_rows());
  EXPECT_EQ(3, t.micro_batch());
  t.micro_batch_size = 1;
  EXPECT_EQ(1, t.micro_batch());
}

}  // namespace
}  // namespace mmfree
