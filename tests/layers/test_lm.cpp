// The language model as a whole: causality, the same bits in training, prefill and decoding, independence of batch and
// threads, gradients everywhere, three levels per matrix, and the published names and sizes.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <functional>
#include <set>

#include "layers/lm.h"
#include "optim/adamw.h"
#include "tests/support/compare.h"
#include "tests/support/model_variants.h"

namespace mmfree {
namespace {

constexpr int64_t kBatch = 3, kSteps = 19;

struct TestModel {
  ParamStore params;
  LM lm;
  TestModel(const ModelConfig& c, DType t) : params(parameter_specs(c), t), lm(params, c) {
    randomise(params, 11);
    lm.requantise();
  }
};

bool same_row(const Tensor& a, int64_t i, const Tensor& b, int64_t j) {
  return same_bits(a.slice(i, i + 1), b.slice(j, j + 1));
}

/// Loss and gradients of one batch.
double backward(TestModel& m, const Tensor& ids, const Tensor& targets, int64_t batch) {
  Tape tape;
  m.params.begin_gradients();
  const Var loss = m.lm.loss(ids, targets, batch, 1.0 / double(ids.size()));
  tape.backward(loss);
  m.params.finish_gradients();
  return *loss.value().data<double>();
}

/// How many positions after its own a token can change.
int64_t reach(const ModelConfig& c) {
  int64_t sum = 0;
  for (int l = 0; l < int(c.num_hidden_layers); ++l) {
    const LayerConfig layer = c.layer(l);
    if (layer.sliding_window == 0) return std::numeric_limits<int32_t>::max();
    sum += layer.sliding_window - 1;
  }
  return sum;
}

/// Whether the state keeps its size.
bool state_is_constant(const ModelConfig& c) {
  for (int l = 0; l < int(c.num_hidden_layers); ++l)
    if (c.layer(l).token == TokenKind::attention) return false;
  return true;
}

class LmTest : public testing::TestWithParam<Variant> {
 protected:
  TestModel model_{GetParam().config, GetParam().dtype};
  const LM& lm_ = model_.lm;
  Tensor ids_ = random_ids(kBatch * kSteps, GetParam().config.vocab_size, 5);
  Tensor targets_ = random_ids(kBatch * kSteps, GetParam().config.vocab_size, 6);
};

TEST_P(LmTest, LaterTokensAndOtherRowsChangeNothing) {
  const Tensor before = lm_.logits(ids_, kBatch);
  for (int64_t t : {0, 1, 9, 18}) {
    Tensor changed = ids_.clone();
    int32_t& token = changed.mut<int32_t>()[kSteps + t];
    token = (token + 1) % int32_t(lm_.config().vocab_size);
    const Tensor after = lm_.logits(changed, kBatch);
    for (int64_t i = 0; i < kBatch * kSteps; ++i)
      if (i < kSteps + t || i >= 2 * kSteps) {
        ASSERT_TRUE(same_row(before, i, after, i)) << "token " << t << " of row 1 changed position " << i;
      }
    EXPECT_FALSE(same_row(before, kSteps + t, after, kSteps + t));
    const int64_t last = std::min(kSteps - 1, t + reach(lm_.config()));
    EXPECT_FALSE(same_row(before, kSteps + last, after, kSteps + last)) << "token " << t << " is forgotten";
    for (int64_t i = kSteps + last + 1; i < 2 * kSteps; ++i)
      ASSERT_TRUE(same_row(before, i, after, i)) << "token " << t << " is beyond the windows of " << i;
  }
}

TEST_P(LmTest, PrefillAndDecodingGiveTheBitsOfTheWholeSequence) {
  const Tensor whole = lm_.logits(ids_, kBatch);
  for (int64_t split : {1, 2, 7, 18, 19}) {
    DecodeState state(lm_.config().num_hidden_layers);
    DecodeState last = state.copy();
    const Tensor prefix = columns(ids_, kBatch, 0, split);
    const Tensor logits = lm_.logits(prefix, {kBatch, &state}), next = lm_.next_logits(prefix, kBatch, last);
    for (int64_t b = 0; b < kBatch; ++b) {
      for (int64_t t = 0; t < split; ++t) ASSERT_TRUE(same_row(logits, b * split + t, whole, b * kSteps + t)) << split;
      ASSERT_TRUE(same_row(next, b, whole, b * kSteps + split - 1)) << split;
    }
    const int64_t bytes = state.bytes();
    const bool constant = state_is_constant(lm_.config());
    if (constant) {
      EXPECT_EQ(bytes, lm_.config().num_hidden_layers * kBatch * lm_.config().hidden_size * size_of(GetParam().dtype));
    }
    for (int64_t t = split; t < kSteps; ++t) {
      const Tensor one = lm_.next_logits(columns(ids_, kBatch, t, t + 1), kBatch, state);
      for (int64_t b = 0; b < kBatch; ++b) ASSERT_TRUE(same_row(one, b, whole, b * kSteps + t)) << split << ' ' << t;
    }
    if (constant) {
      EXPECT_EQ(state.bytes(), bytes);
    }
  }
}

TEST_P(LmTest, ACopiedStateIsIndependentAndAResetOneEmpty) {
  DecodeState state(lm_.config().num_hidden_layers);
  const Tensor start = lm_.next_logits(columns(ids_, kBatch, 0, 1), kBatch, state);
  DecodeState copy = state.copy();
  const Tensor a = lm_.next_logits(columns(ids_, kBatch, 1, 2), kBatch, state);
  EXPECT_TRUE(same_bits(a, lm_.next_logits(columns(ids_, kBatch, 1, 2), kBatch, copy)));
  state.reset();
  EXPECT_TRUE(same_bits(start, lm_.next_logits(columns(ids_, kBatch, 0, 1), kBatch, state)));
}

TEST_P(LmTest, ARowDoesNotDependOnItsBatch) {
  const Tensor together = lm_.logits(ids_, kBatch);
  for (int64_t b = 0; b < kBatch; ++b) {
    const Tensor alone = lm_.logits(ids_.slice(b * kSteps, (b + 1) * kSteps), 1);
    for (int64_t t = 0; t < kSteps; ++t) ASSERT_TRUE(same_row(alone, t, together, b * kSteps + t));
  }
}

TEST_P(LmTest, TrainingSeesTheSameBitsAsInference) {
  const Var plain = lm_.hidden(ids_, kBatch);
  const Tensor nll = lm_.nll(ids_, targets_, kBatch), logits = as_f64(lm_.logits(ids_, kBatch));
  Tape tape;
  const Var recorded = lm_.hidden(ids_, kBatch);
  EXPECT_TRUE(same_bits(plain.value(), recorded.value()));
  if (plain.quant().quantised()) {
    EXPECT_TRUE(same_bits(plain.quant().scale, recorded.quant().scale));
  }
  const double loss = *lm_.loss(ids_, targets_, kBatch, 0.25).value().data<double>();
  double sum = 0;
  const double tolerance = GetParam().dtype == DType::f64 ? 1e-13 : 2e-6;
  for (int64_t i = 0; i < nll.size(); ++i) {
    const double* x = logits.data<double>() + i * logits.dim(1);
    double total = 0;
    for (int64_t v = 0; v < logits.dim(1); ++v) total += std::exp(x[v]);
    const double expected = std::log(total) - x[targets_.data<int32_t>()[i]];
    const double got = as_f64(nll).data<double>()[i];
    ASSERT_NEAR(got, expected, tolerance * (1 + std::abs(expected)));
    sum += got;
  }
  EXPECT_NEAR(loss, 0.25 * sum, tolerance * sum);
}

TEST_P(LmTest, EveryParameterGetsAGradient) {
  // Ids that cover the vocabulary, so that every row of the embedding takes part.
  const int64_t vocab = lm_.config().vocab_size, n = 4 * vocab;
  Tensor ids({n}, DType::i32);
  for (int64_t i = 0; i < n; ++i) ids.mut<int32_t>()[i] = int32_t(i * 17 % vocab);
  backward(model_, ids, random_ids(n, vocab, 8), 4);
  for (size_t i = 0; i < model_.params.specs().size(); ++i) {
    const Tensor grad = as_f64(model_.params.view(model_.params.grads(), i));
    int64_t zeros = 0;
    for (int64_t k = 0; k < grad.size(); ++k) {
      ASSERT_TRUE(std::isfinite(grad.data<double>()[k]));
      zeros += grad.data<double>()[k] == 0;
    }
    // A ReLU passes nothing where its argument is negative; here and there that is so for every token which counts.
    const Activation f = lm_.config().activation;
    const bool may_be_off = f == Activation::relu || f == Activation::relu2 || !lm_.config().uniform();
    EXPECT_LE(zeros, may_be_off ? grad.size() / 100 : 0) << model_.params.specs()[i].name << " of " << grad.size();
  }
}

TEST_P(LmTest, GradientsOfMicroBatchesAddUp) {
  backward(model_, ids_, targets_, kBatch);
  const Tensor together = model_.params.grads().clone();
  model_.params.begin_gradients();
  for (int64_t b = 0; b < kBatch; ++b) {
    Tape tape;
    tape.backward(lm_.loss(ids_.slice(b * kSteps, (b + 1) * kSteps), targets_.slice(b * kSteps, (b + 1) * kSteps), 1,
                           1.0 / double(ids_.size())));
  }
  model_.params.finish_gradients();
  EXPECT_LT(relative_error(model_.params.grads(), together), GetParam().dtype == DType::f64 ? 1e-13 : 1e-5);
}

TEST_P(LmTest, TernaryMatricesHoldThreeLevelsAndOthersTheirLatents) {
  lm_.for_each_projection([&](const BitLinear& p) {
    SCOPED_TRACE(p.name);
    const Tensor latent = as_f64(p.weight.value());
    if (p.precision != Precision::ternary) {
      ASSERT_FALSE(p.matrix->is_ternary());
      const double error = relative_error(p.matrix->plain, latent);
      EXPECT_LE(error, p.precision == Precision::bf16 ? 0x1p-8 : 0.0);
      EXPECT_EQ(error > 0, p.precision == Precision::bf16);
      return;
    }
    Tensor dense(latent.shape(), GetParam().dtype);
    ternary_dequantise(p.matrix->ternary, dense);
    const Tensor levels = as_f64(dense);
    double mean = 0;
    for (int64_t k = 0; k < latent.size(); ++k) mean += std::abs(latent.data<double>()[k]) / double(latent.size());
    std::set<double> seen;
    for (int64_t k = 0; k < latent.size(); ++k) {
      const double v = latent.data<double>()[k] / mean, got = levels.data<double>()[k];
      seen.insert(got);
      if (std::abs(std::abs(v) - 0.5) < 1e-5) continue;
      ASSERT_NEAR(got, std::clamp(std::nearbyint(v), -1.0, 1.0) * mean, 1e-6 * mean);
    }
    ASSERT_EQ(seen.size(), 3u);
    EXPECT_EQ(*seen.begin(), -*seen.rbegin());
    EXPECT_EQ(seen.count(0.0), 1u);
  });
}

TEST_P(LmTest, ChangedLatentsCountOnceRequantised) {
  const Tensor before = lm_.logits(ids_, kBatch);
  Tensor weight = model_.params[projections(lm_.config())[0].path + ".weight"].value();
  const Tensor original = weight.clone();
  dispatch_float(weight.dtype(), "test", [&]<class T>() {
    for (int64_t k = 0; k < weight.size(); ++k) weight.mut<T>()[k] *= T(-1);
  });
  lm_.requantise();
  EXPECT_FALSE(same_bits(before, lm_.logits(ids_, kBatch)));
  std::memcpy(weight.raw_mut(), original.raw(), size_t(weight.bytes()));
  lm_.requantise();
  EXPECT_TRUE(same_bits(before, lm_.logits(ids_, kBatch)));
}

INSTANTIATE_TEST_SUITE_P(Lm, LmTest, testing::ValuesIn(model_variants({DType::f32, DType::f64})),
                         [](const auto& info) { return info.param.name; });

/// Sizes at which every loop has several blocks.
TEST(Lm, BitsDoNotDependOnThreads) {
  const int before = omp_get_max_threads();
  for (const DType type : {DType::f32, DType::f64}) {
    ModelConfig c = tiny_model_config();
    mix_precisions(c);
    c.vocab_size = 523;
    c.hidden_size = 101;
    c.intermediate_size = 135;
    const int64_t batch = 4, steps = 141;
    const Tensor ids = random_ids(batch * steps, c.vocab_size, 1), targets = random_ids(batch * steps, c.vocab_size, 2);
    Tensor grads, values, logits;
    double loss = 0;
    for (int threads : {1, 2, 3, 5}) {
      omp_set_num_threads(threads);
      TestModel m(c, type);
      const double l = backward(m, ids, targets, batch);
      AdamW optimizer(m.params, OptimConfig{});
      optimizer.begin_step(1, 10);
      optimizer.update();
      m.lm.requantise();
      const Tensor y = m.lm.logits(ids, batch);
      if (threads == 1) loss = l, grads = m.params.grads().clone(), values = m.params.values().clone(), logits = y;
      EXPECT_EQ(l, loss) << threads;
      EXPECT_TRUE(same_bits(m.params.grads(), grads)) << threads;
      EXPECT_TRUE(same_bits(m.params.values(), values)) << threads;
      EXPECT_TRUE(same_bits(y, logits)) << threads;
    }
  }
  omp_set_num_threads(before);
}

TEST(Lm, RefusesIdsOutsideTheVocabularyAndUnevenBatches) {
  const TestModel m(tiny_model_config(), DType::f32);
  for (int32_t bad : {-1, 61, 1 << 30}) {
    Tensor ids = random_ids(4, 61, 1);
    ids.mut<int32_t>()[2] = bad;
    EXPECT_THROW(m.lm.logits(ids, 1), DataError) << bad;
    EXPECT_THROW(m.lm.nll(random_ids(4, 61, 1), ids, 1), DataError) << bad;
  }
  EXPECT_THROW(m.lm.logits(random_ids(4, 61, 1), 3), ShapeError);
  EXPECT_THROW(m.lm.logits(random_ids(4, 61, 1), 0), ShapeError);
}

int64_t elements(const std::vector<ParamSpec>& specs) {
  int64_t n = 0;
  for (const ParamSpec& s : specs) n += s.shape.size();
  return n;
}

TEST(Parameters, PublishedSizes) {
  struct Size {
    int64_t layers, width, inner, all, matrices;
  };
  for (const Size& s : {Size{24, 1024, 2816, 374108160, 341049344}, Size{24, 2048, 5632, 1364779008, 1298661376},
                        Size{32, 2560, 6912, 2702357504, 2619473920}}) {
    ModelConfig c;
    c.num_hidden_layers = s.layers;
    c.hidden_size = s.width;
    EXPECT_EQ(c.intermediate(), s.inner);
    EXPECT_EQ(c.parameter_count(), s.all);
    EXPECT_EQ(c.matrix_parameter_count(), s.matrices);
    EXPECT_EQ(elements(parameter_specs(c)), s.all);
    EXPECT_EQ(elements(unpacked_specs(c)), s.all - s.matrices);
    EXPECT_EQ(int64_t(parameter_specs(c).size()), 15 * s.layers + 5);
  }
}

TEST(Parameters, TheWidthInsideFollowsFromTheRatio) {
  ModelConfig c;
  c.hidden_size = 1000;
  for (auto [ratio, inner] : {std::pair<int64_t, int64_t>{1, 768}, {3, 2048}, {4, 2816}}) {
    c.hidden_ratio = ratio;
    EXPECT_EQ(c.intermediate(), inner) << ratio;
  }
  c.intermediate_size = 7;
  EXPECT_EQ(c.intermediate(), 7);
}

TEST(Parameters, TheHeadHasTheModelsOwnKeysAndNotThoseOfALayer) {
  for (bool norm : {true, false}) {
    ModelConfig c = tiny_model_config();
    c.inner_norm = norm;
    c.precision = Precision::bf16;
    c.layers = {layer_entry(3, [&](LayerEntry& e) { e.inner_norm = !norm, e.precision = Precision::f32; })};
    const auto specs = parameter_specs(c);
    EXPECT_EQ(norm, std::any_of(specs.begin(), specs.end(), [](auto& s) { return s.name == "lm_head.norm.weight"; }));
    ParamStore params(specs, DType::f32);
    const LM lm(params, c);
    EXPECT_EQ(lm.parts().head.norm.defined(), norm);
    EXPECT_EQ(lm.parts().head.precision, Precision::bf16);
    EXPECT_EQ(projections(c).back().precision, Precision::bf16);
    EXPECT_EQ(projections(c).front().precision, Precision::f32);
  }
}

TEST(Parameters, NamesShapesAndRolesOfThePublishedStateDict) {
  ModelConfig c = tiny_model_config();
  c.num_hidden_layers = 1;
  const std::vector<std::pair<std::string, Shape>> expected = {{"model.embeddings.weight", {61, 37}},
                                                               {"model.lower_bounds", {1, 37}},
                                                               {"model.layers.0.attn_norm.weight", {37}},
                                                               {"model.layers.0.attn.i_proj.weight", {37, 37}},
                                                               {"model.layers.0.attn.i_proj.norm.weight", {37}},
                                                               {"model.layers.0.attn.f_proj.weight", {37, 37}},
                                                               {"model.layers.0.attn.f_proj.norm.weight", {37}},
                                                               {"model.layers.0.attn.g_proj.weight", {37, 37}},
                                                               {"model.layers.0.attn.g_proj.norm.weight", {37}},
                                                               {"model.layers.0.attn.g_norm.weight", {37}},
                                                               {"model.layers.0.attn.o_proj.weight", {37, 37}},
                                                               {"model.layers.0.attn.o_proj.norm.weight", {37}},
                                                               {"model.layers.0.mlp_norm.weight", {37}},
                                                               {"model.layers.0.mlp.gate_proj.weight", {106, 37}},
                                                               {"model.layers.0.mlp.gate_proj.norm.weight", {37}},
                                                               {"model.layers.0.mlp.down_proj.weight", {37, 53}},
                                                               {"model.layers.0.mlp.down_proj.norm.weight", {53}},
                                                               {"model.norm.weight", {37}},
                                                               {"lm_head.weight", {61, 37}},
                                                               {"lm_head.norm.weight", {37}}};
  const auto specs = parameter_specs(c);
  ASSERT_EQ(specs.size(), expected.size());
  for (const auto& [name, shape] : expected) {
    const auto it = std::find_if(specs.begin(), specs.end(), [&, n = name](const ParamSpec& s) { return s.name == n; });
    ASSERT_NE(it, specs.end()) << name;
    EXPECT_EQ(it->shape, shape) << name;
    EXPECT_EQ(it->role, name == "model.embeddings.weight"                   ? ParamRole::embedding
                        : name == "lm_head.weight"                          ? ParamRole::head
                        : shape.rank() == 2 && name != "model.lower_bounds" ? ParamRole::matrix
                                                                            : ParamRole::vector)
        << name;
  }
}

TEST(Parameters, InitialValuesHaveThePublishedDistributions) {
  ModelConfig c = tiny_model_config();
  c.hidden_size = 96;
  c.num_hidden_layers = 2;
  c.intermediate_size = 200;
  c.vocab_size = 400;
  c.initializer_range = 0.03;
  ParamStore params(parameter_specs(c), DType::f32), same(parameter_specs(c), DType::f32),
      other(parameter_specs(c), DType::f32);
  params.initialise(3), same.initialise(3), other.initialise(4);
  EXPECT_TRUE(same_bits(params.values(), same.values()));
  const double bound = std::pow(2, -2.5) * std::sqrt(6.0 / 192);
  for (size_t i = 0; i < params.specs().size(); ++i) {
    const ParamSpec& spec = params.specs()[i];
    SCOPED_TRACE(spec.name);
    const Tensor x = as_f64(params.view(params.values(), i));
    double sum = 0, squares = 0, most = 0;
    for (int64_t k = 0; k < x.size(); ++k) {
      const double v = x.data<double>()[k];
      sum += v, squares += v * v, most = std::max(most, std::abs(v));
    }
    const double mean = sum / double(x.size()), square = squares / double(x.size());
    if (spec.shape.rank() == 1 || spec.name == "model.lower_bounds") {
      const double value = spec.shape.rank() == 1 ? 1 : 0;
      EXPECT_EQ(mean, value);
      EXPECT_EQ(square, value);
      continue;
    }
    EXPECT_FALSE(same_bits(params.view(params.values(), i), other.view(other.values(), i)));
    const bool uniform = spec.name.find("attn.") != std::string::npos,
               down = spec.name.find("down_proj") != std::string::npos;
    const double deviation = uniform ? bound / std::sqrt(3.0) : down ? 0.03 / 2 : 0.03;
    EXPECT_NEAR(std::sqrt(square), deviation, 0.03 * deviation);
    EXPECT_NEAR(mean, 0, 5 * deviation / std::sqrt(double(x.size())));
    if (uniform) {
      EXPECT_LE(most, bound * (1 + 1e-6));
      EXPECT_GT(most, 0.99 * bound);
    } else {
      EXPECT_GT(most, 3 * deviation);
    }
  }
  EXPECT_FALSE(same_bits(params["model.layers.0.attn.i_proj.weight"].value(),
                         params["model.layers.0.attn.f_proj.weight"].value()));
  EXPECT_FALSE(same_bits(params["model.layers.0.attn.i_proj.weight"].value(),
                         params["model.layers.1.attn.i_proj.weight"].value()));
}

}  // namespace
}  // namespace mmfree
