// What every model must hold whatever its mixers and settings: gradients that are derivatives, documents and windows
// that may be cut and joined, bits that do not depend on threads, and files that give the same model back. Causality
// and decoding are in test_lm.cpp, over the same models.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <filesystem>

#include "tests/support/compare.h"
#include "tests/support/model_variants.h"
#include "tests/support/starts.h"
#include "tests/support/tiny_run.h"
#include "train/formats/hf_folder.h"
#include "train/formats/ternary_file.h"
#include "train/run/checkpoint.h"

namespace mmfree {
namespace {

class ModelProperties : public testing::TestWithParam<Variant> {};

double loss_of(const LM& lm, const Tensor& ids, const Tensor& targets, const Sequences& sequences) {
  return *lm.loss(ids, targets, sequences, 1.0 / double(ids.size())).value().data<double>();
}

/// The state of `batch` sequences after some tokens.
DecodeState state_after_some(const LM& lm, int64_t batch) {
  DecodeState state = lm.zero_state(batch);
  lm.hidden(random_ids(batch * 5, lm.config().vocab_size, 4), {batch, &state});
  return state;
}

// Codes are not differentiable: here every projection multiplies plainly. The codes' straight-through gradients are
// compared with the oracle's golden sets.
TEST_P(ModelProperties, GradientsAreDerivatives) {
  ModelConfig c = GetParam().config;
  c.precision = Precision::f32;
  for (LayerEntry& entry : c.layers) entry.precision.reset();
  c.precision_rules.clear();
  ParamStore params(parameter_specs(c), DType::f64);
  const LM lm(params, c);
  randomise(params, 3);
  lm.requantise();
  constexpr int64_t kBatch = 2, kTokens = 14;
  const Tensor ids = random_ids(kTokens, c.vocab_size, 1), targets = random_ids(kTokens, c.vocab_size, 2);
  const Tensor starts = some_starts(kBatch, kTokens / kBatch).reshape({kTokens});
  const DecodeState before = state_after_some(lm, kBatch);
  for (const bool carried : {false, true}) {
    DecodeState state = before;
    const Sequences sequences = carried ? Sequences(kBatch, starts, &state) : Sequences(kBatch);
    params.begin_gradients();
    {
      Tape tape;
      tape.backward(lm.loss(ids, targets, sequences, 1.0 / double(kTokens)));
    }
    params.finish_gradients();
    for (size_t i = 0; i < params.specs().size(); ++i) {
      const std::string& name = params.specs()[i].name;
      Tensor values = params.view(params.values(), i);
      const Tensor kept = values.clone(), grad = params.view(params.grads(), i);
      const RandomStream random(7, 0, name);
      const double step = 1e-6;
      double along = 0, loss[2];
      for (int side : {0, 1}) {
        for (int64_t k = 0; k < values.size(); ++k) {
          const double direction = random.normal(uint64_t(k));
          values.mut<double>()[k] = kept.data<double>()[k] + (side ? step : -step) * direction;
          if (side) along += direction * grad.data<double>()[k];
        }
        lm.requantise();
        state = before;  // a constant: no gradient flows into it
        loss[side] = loss_of(lm, ids, targets, sequences);
      }
      values.copy_from(kept);
      const double measured = (loss[1] - loss[0]) / (2 * step);
      EXPECT_NEAR(along, measured, 1e-7 + 1e-4 * std::abs(measured)) << name << " carried " << carried;
      EXPECT_NE(along, 0) << name;
    }
  }
}

TEST_P(ModelProperties, TheBackwardPassTellsWhichGradientsAreFinal) {
  const ModelConfig& c = GetParam().config;
  const Tensor ids = random_ids(14, c.vocab_size, 1), targets = random_ids(14, c.vocab_size, 2);
  for (const Recompute recompute : kAllRecomputes) {
    ParamStore params(parameter_specs(c), DType::f32);
    const LM lm(params, c);
    randomise(params, 11);
    lm.requantise();
    std::vector<size_t> order;
    std::vector<Tensor> told;
    const auto from = [&](size_t i) { return params.grads().slice(params.offset(i), params.size()); };
    const Reached reached = [&](const Var& first) {
      order.push_back(params.index(first));
      params.finish_gradients(order.back());
      told.push_back(from(order.back()).clone());
    };
    params.begin_gradients();
    params.grads().fill_zero();
    {
      Tape tape;
      tape.backward(lm.loss(ids, targets, 2, 1.0 / 14, recompute, 1, &reached));
    }
    const size_t in_blocks = recompute == Recompute::full ? 1 : 2;
    ASSERT_EQ(in_blocks * size_t(c.num_hidden_layers) + 2, order.size());
    EXPECT_EQ(0u, order.back());
    for (size_t k = 0; k < order.size(); ++k) {
      EXPECT_TRUE(k == 0 || order[k] < order[k - 1]) << k;
      EXPECT_TRUE(same_bits(told[k], from(order[k]))) << name_of(recompute) << ' ' << params.specs()[order[k]].name;
    }
  }
}

TEST_P(ModelProperties, AStartBetweenDocumentsGivesWhatEachGivesAlone) {
  const ModelConfig& c = GetParam().config;
  ParamStore params(parameter_specs(c), DType::f64);
  const LM lm(params, c);
  randomise(params, 11);
  lm.requantise();
  constexpr int64_t kSteps = 14, kTokens = 2 * kSteps;
  // Row 0 is documents of 5 and 9 tokens, row 1 of 11 and 3.
  const std::pair<int64_t, int64_t> documents[] = {{0, 5}, {5, 14}, {14, 25}, {25, 28}};
  Tensor starts = Tensor::zeros({kTokens}, DType::u8);
  for (const auto& [begin, end] : documents) starts.mut<uint8_t>()[begin] = 1;
  const Tensor ids = random_ids(kTokens, c.vocab_size, 1), targets = random_ids(kTokens, c.vocab_size, 2);
  const auto gradient = [&](int64_t begin, int64_t end, const Sequences& sequences) {
    Tape tape;
    tape.backward(lm.loss(ids.slice(begin, end), targets.slice(begin, end), sequences, 1.0 / double(kTokens)));
  };
  DecodeState state = state_after_some(lm, 2);  // forgotten at the first tokens
  const Tensor whole = lm.logits(ids, {2, starts, &state}), joined = lm.logits(ids, 2);
  params.begin_gradients();
  for (const auto& [begin, end] : documents) {
    EXPECT_TRUE(same_bits(lm.logits(ids.slice(begin, end), 1), whole.slice(begin, end))) << begin;
    EXPECT_EQ(begin % kSteps != 0, !same_bits(joined.slice(begin, end), whole.slice(begin, end))) << begin;
    gradient(begin, end, 1);
  }
  params.finish_gradients();
  const Tensor expected = params.grads().clone();
  params.begin_gradients();
  gradient(0, kTokens, {2, starts});
  params.finish_gradients();
  EXPECT_LE(relative_error(params.grads(), expected), 1e-12) << "the same terms in another order";
}

TEST_P(ModelProperties, ACarriedStateJoinsWindows) {
  const ModelConfig& c = GetParam().config;
  ParamStore params(parameter_specs(c), DType::f32);
  const LM lm(params, c);
  randomise(params, 11);
  lm.requantise();
  constexpr int64_t kBatch = 3, kSteps = 16, kHalf = kSteps / 2;
  const Tensor ids = random_ids(kBatch * kSteps, c.vocab_size, 1);
  const Tensor whole = lm.logits(ids, kBatch);
  DecodeState state = lm.zero_state(kBatch);
  std::vector<Shape> shapes;
  state.for_each([&](int64_t, size_t, const Tensor& t) { shapes.push_back(t.shape()); });
  for (int64_t begin : {int64_t(0), kHalf}) {
    const Tensor half = lm.logits(columns(ids, kBatch, begin, begin + kHalf), {kBatch, &state});
    for (int64_t b = 0; b < kBatch; ++b)
      EXPECT_TRUE(same_bits(half.slice(b * kHalf, (b + 1) * kHalf),
                            whole.slice(b * kSteps + begin, b * kSteps + begin + kHalf)))
          << "row " << b << " from " << begin;
  }
  size_t count = 0;  // of the tensors whose shape stays
  state.for_each([&](int64_t l, size_t, const Tensor& t) {
    if (c.layer(int(l)).token == TokenKind::attention) return;
    EXPECT_EQ(t.shape(), shapes.at(count++));
  });
  EXPECT_EQ(count, shapes.size());
}

TEST_P(ModelProperties, BitsDoNotDependOnThreads) {
  const int before = omp_get_max_threads();
  ModelConfig c = GetParam().config;
  c.vocab_size = 523, c.hidden_size = 101;  // every loop has several blocks
  constexpr int64_t kBatch = 3, kTokens = 3 * 67;
  const Tensor ids = random_ids(kTokens, c.vocab_size, 1), targets = random_ids(kTokens, c.vocab_size, 2);
  ParamStore params(parameter_specs(c), DType::f32);
  const LM lm(params, c);
  randomise(params, 11);
  lm.requantise();
  Tensor grads, logits;
  for (int threads : {1, 2, 5}) {
    omp_set_num_threads(threads);
    params.begin_gradients();
    Tape tape;
    tape.backward(lm.loss(ids, targets, kBatch, 1.0 / double(kTokens)));
    params.finish_gradients();
    const Tensor y = lm.logits(ids, kBatch);
    if (threads == 1) grads = params.grads().clone(), logits = y;
    EXPECT_TRUE(same_bits(params.grads(), grads)) << threads;
    EXPECT_TRUE(same_bits(y, logits)) << threads;
  }
  omp_set_num_threads(before);
}

TEST_P(ModelProperties, RecomputingChangesNoBit) {
  const ModelConfig& c = GetParam().config;
  constexpr int64_t kBatch = 2, kTokens = 22;
  const Tensor ids = random_ids(kTokens, c.vocab_size, 1), targets = random_ids(kTokens, c.vocab_size, 2);
  ParamStore params(parameter_specs(c), DType::f32);
  const LM lm(params, c);
  randomise(params, 11);
  lm.requantise();
  const Tensor starts = some_starts(kBatch, kTokens / kBatch).reshape({kTokens});
  const DecodeState before = state_after_some(lm, kBatch);
  for (const bool carried : {false, true}) {
    Tensor expected;
    DecodeState expected_state;
    for (Recompute recompute : kAllRecomputes) {
      SCOPED_TRACE(concat(name_of(recompute), " carried ", carried));
      DecodeState state = before;
      params.begin_gradients();
      Tape tape;
      const Sequences sequences = carried ? Sequences(kBatch, starts, &state) : Sequences(kBatch);
      tape.backward(lm.loss(ids, targets, sequences, 1.0 / double(kTokens), recompute));
      params.finish_gradients();
      if (recompute == Recompute::none) expected = params.grads().clone(), expected_state = state;
      EXPECT_TRUE(same_bits(params.grads(), expected));
      state.for_each([&](int64_t l, size_t i, const Tensor& t) {
        EXPECT_TRUE(same_bits(t, expected_state.layer(l).at(i))) << "state of layer " << l;
        EXPECT_EQ(carried, !same_bits(t, DecodeState(before).layer(l).at(i)));
        EXPECT_EQ(state.layer(l).position, expected_state.layer(l).position);
      });
    }
  }
}

TEST_P(ModelProperties, CheckpointTernaryFileAndFolderGiveTheSameModel) {
  const TempDir dir;
  Model m = tiny_model(GetParam().config, false);
  const auto logits = [](const Model& model) {
    return model.lm->logits(random_ids(34, model.config.vocab_size, 3), 2);
  };
  const Tensor expected = logits(m);
  RunConfig run;
  run.model = m.config;
  save_checkpoint(dir / "m.h5", run, *m.params, {m.params->values(), {}}, {}, "");
  NamedShapes tensors;
  for (const ParamSpec& spec : parameter_specs(m.config)) tensors.emplace_back(spec.name, spec.shape);
  write_hf_folder(dir / "hf", m.config, tensors, [&](const std::string& name) { return (*m.params)[name].value(); });
  export_ternary(dir / "m.mmfree", m, EmbeddingStore::f32, [] {});
  for (const std::string& path : {dir / "m.h5", dir / "hf", dir / "m.mmfree"})
    EXPECT_TRUE(same_bits(logits(load_model(path)), expected)) << path;
  for (EmbeddingStore store : {EmbeddingStore::bf16, EmbeddingStore::int8})
    EXPECT_NO_THROW(export_ternary(dir / "small.mmfree", m, store, [] {}));  // which compares logits itself
}

INSTANTIATE_TEST_SUITE_P(Models, ModelProperties, testing::ValuesIn(model_variants({DType::f32})),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace mmfree
