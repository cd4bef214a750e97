// What every model must hold whatever its mixers and settings: gradients that are derivatives, bits that do not depend
// on threads, and files that give the same model back. Causality and decoding are in test_lm.cpp, over the same models.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <filesystem>

#include "tests/support/compare.h"
#include "tests/support/model_variants.h"
#include "tests/support/tiny_run.h"
#include "train/formats/hf_folder.h"
#include "train/formats/ternary_file.h"
#include "train/run/checkpoint.h"

namespace mmfree {
namespace {

class ModelProperties : public testing::TestWithParam<Variant> {};

double loss_of(const LM& lm, const Tensor& ids, const Tensor& targets, int64_t batch) {
  return *lm.loss(ids, targets, batch, 1.0 / double(ids.size())).value().data<double>();
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
  params.begin_gradients();
  {
    Tape tape;
    tape.backward(lm.loss(ids, targets, kBatch, 1.0 / double(kTokens)));
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
      loss[side] = loss_of(lm, ids, targets, kBatch);
    }
    values.copy_from(kept);
    const double measured = (loss[1] - loss[0]) / (2 * step);
    EXPECT_NEAR(along, measured, 1e-7 + 1e-4 * std::abs(measured)) << name;
    EXPECT_NE(along, 0) << name;
  }
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
  Tensor expected;
  for (Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
    params.begin_gradients();
    Tape tape;
    tape.backward(lm.loss(ids, targets, kBatch, 1.0 / double(kTokens), recompute));
    params.finish_gradients();
    if (recompute == Recompute::none) expected = params.grads().clone();
    EXPECT_TRUE(same_bits(params.grads(), expected)) << name_of(recompute);
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
