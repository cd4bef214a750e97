#include <gtest/gtest.h>

#include "autograd/ops.h"
#include "autograd/parameter.h"
#include "core/ops/adamw.h"
#include "layers/model_config.h"
#include "layers/parameters.h"
#include "tests/support/gradcheck.h"

using namespace mmfree;

namespace {

std::vector<ParamSpec> some_specs() {
  return {{"small", {3}, {Init::constant, 1}, ParamRole::vector},
          {"matrix", {100, 50}, {Init::uniform, 0.25}, ParamRole::matrix},
          {"block", {kParamBlock}, {Init::normal, 0.02}, ParamRole::vector},
          {"last", {2, 7}, {Init::normal, 3}, ParamRole::matrix}};
}

double root_mean_square(const Tensor& t) { return std::sqrt(sum_of_squares(t) / double(t.size())); }

double largest(const Tensor& t) {
  double most = 0;
  for (int64_t i = 0; i < t.size(); ++i) most = std::max(most, std::abs(at(t, i)));
  return most;
}

}  // namespace

TEST(ParamStore, StartsEveryParameterOnABlockAndPadsWithZeros) {
  ParamStore store(some_specs(), DType::f32);
  store.initialise(1);
  ASSERT_EQ(5 * kParamBlock, store.values().size());
  const int64_t offsets[] = {0, 1, 3, 4};
  std::vector<bool> used(size_t(store.values().size()));
  for (size_t i = 0; i < 4; ++i) {
    const Tensor view = store.view(store.values(), i);
    EXPECT_EQ(store.values().raw() + offsets[i] * kParamBlock * 4, view.raw());
    EXPECT_EQ(store.specs()[i].shape, view.shape());
    EXPECT_EQ(view.raw(), store[store.specs()[i].name].value().raw());
    for (int64_t k = 0; k < view.size(); ++k) used[size_t(offsets[i] * kParamBlock + k)] = true;
  }
  for (int64_t k = 0; k < store.values().size(); ++k) {
    if (used[size_t(k)]) continue;
    ASSERT_EQ(0, at(store.values(), k)) << k;
  }
}

TEST(ParamStore, InitialisesByTheSpecs) {
  std::vector<ParamSpec> specs{{"c", {5000}, {Init::constant, 0.3}, ParamRole::vector},
                               {"u", {20000}, {Init::uniform, 0.25}, ParamRole::vector},
                               {"n", {20000}, {Init::normal, 0.02}, ParamRole::vector}};
  ParamStore store(specs, DType::f32);
  store.initialise(7);
  for (int64_t i = 0; i < 5000; ++i) ASSERT_EQ(0.3f, store["c"].value().data<float>()[i]);
  const Tensor &u = store["u"].value(), &n = store["n"].value();
  EXPECT_LE(largest(u), 0.25);
  EXPECT_GT(largest(u), 0.249);
  EXPECT_NEAR(0.25 / std::sqrt(3.0), root_mean_square(u), 0.002);
  EXPECT_NEAR(0.02, root_mean_square(n), 0.02 * 5 / std::sqrt(2 * 20000.0));
  EXPECT_GT(largest(n), 0.02 * 3.3);
  double mean_u = 0, mean_n = 0;
  for (int64_t i = 0; i < 20000; ++i) mean_u += at(u, i) / 20000, mean_n += at(n, i) / 20000;
  EXPECT_NEAR(0, mean_u, 5 * 0.25 / std::sqrt(3 * 20000.0));
  EXPECT_NEAR(0, mean_n, 5 * 0.02 / std::sqrt(20000.0));
}

TEST(ParamStore, InitialValuesDependOnSeedAndNameAlone) {
  std::vector<ParamSpec> specs = some_specs(), reversed(specs.rbegin(), specs.rend());
  ParamStore a(specs, DType::f32), b(reversed, DType::f32), other(specs, DType::f32), wide(specs, DType::f64);
  a.initialise(1), b.initialise(1), other.initialise(2), wide.initialise(1);
  for (const ParamSpec& s : specs) {
    EXPECT_TRUE(same_bits(a[s.name].value(), b[s.name].value())) << s.name;
    EXPECT_TRUE(same_bits(a[s.name].value(), as_type(wide[s.name].value(), DType::f32))) << s.name;
    EXPECT_EQ(s.init.kind == Init::constant, same_bits(a[s.name].value(), other[s.name].value())) << s.name;
  }
  expect_same_bits_for_any_threads([&] {
    ParamStore again({{"n", {50000}, {Init::normal, 1}, ParamRole::vector}}, DType::f32);
    again.initialise(1);
    return std::vector<Tensor>{again.values().clone()};
  });
}

TEST(ParamStore, ModelParametersStartAsPublished) {
  ModelConfig config;
  config.vocab_size = 500, config.hidden_size = 128, config.num_hidden_layers = 2;
  ParamStore store(parameter_specs(config), DType::f32);
  store.initialise(1);
  const auto rms = [&](const std::string& name) { return root_mean_square(store[name].value()); };
  EXPECT_NEAR(0.02, rms("model.embeddings.weight"), 4e-4);
  EXPECT_NEAR(0.02, rms("model.layers.1.mlp.gate_proj.weight"), 4e-4);
  EXPECT_NEAR(0.02, rms("lm_head.weight"), 4e-4);
  EXPECT_NEAR(0.02 / std::sqrt(2.0 * 2), rms("model.layers.1.mlp.down_proj.weight"), 2e-4);
  const double bound = std::pow(2, -2.5) * std::sqrt(6.0 / 256);  // Xavier uniform with gain 2^-2.5
  for (const char* p : {"i_proj", "f_proj", "g_proj", "o_proj"}) {
    const Tensor& w = store[std::string("model.layers.0.attn.") + p + ".weight"].value();
    EXPECT_LE(largest(w), bound * (1 + 1e-7));
    EXPECT_NEAR(bound / std::sqrt(3.0), root_mean_square(w), bound / 100);
  }
  EXPECT_EQ(0, largest(store["model.lower_bounds"].value()));
  for (const char* name : {"model.norm.weight", "model.layers.0.attn_norm.weight", "lm_head.norm.weight"})
    for (int64_t i = 0; i < 128; ++i) ASSERT_EQ(1, at(store[name].value(), i));
  for (const ParamSpec& s : store.specs()) {
    const ParamRole role = s.name == "model.embeddings.weight"                     ? ParamRole::embedding
                           : s.name == "lm_head.weight"                            ? ParamRole::head
                           : s.shape.rank() == 2 && s.name != "model.lower_bounds" ? ParamRole::matrix
                                                                                   : ParamRole::vector;
    EXPECT_EQ(role, s.role) << s.name;
  }
}

TEST(ParamStore, GradientsLiveInTheFlatBuffer) {
  ParamStore store(
      {{"a", {1, 3}, {Init::constant, 1}, ParamRole::vector}, {"b", {1, 3}, {Init::constant, 1}, ParamRole::vector}},
      DType::f64);
  store.initialise(1);
  const Tensor c = full({1, 3}, DType::f64, 2);
  const auto backward = [&](bool also_b) {
    Tape tape;
    tape.backward(weighted_sum({add(store["a"], also_b ? store["b"] : store["a"])}, {c}));
  };
  const auto gradient = [&](size_t i) { return at(store.view(store.grads(), i), 2); };
  store.begin_gradients();
  const char* address = store.grads().raw();
  backward(true);
  EXPECT_EQ(store.view(store.grads(), 0).raw(), store["a"].grad().raw());
  EXPECT_EQ(2, gradient(0));
  EXPECT_EQ(2, gradient(1));
  backward(true);
  EXPECT_EQ(4, gradient(0));
  EXPECT_EQ(2, at(c, 0));
  store.begin_gradients();
  EXPECT_FALSE(store["a"].grad().defined());
  backward(false);
  store.finish_gradients();
  EXPECT_EQ(4, gradient(0)) << "a + a";
  EXPECT_EQ(0, gradient(1)) << "left over from the step before";
  EXPECT_EQ(address, store.grads().raw());
  for (int64_t i = 3; i < kParamBlock; ++i) ASSERT_EQ(0, at(store.grads(), i));
}

TEST(ParamStore, RejectsUnknownAndRepeatedNames) {
  const ParamStore store(some_specs(), DType::f32);
  EXPECT_TRUE(store.has("small"));
  EXPECT_FALSE(store.has("none"));
  expect_error<Error>({"'none'"}, [&] { store["none"]; });
  std::vector<ParamSpec> twice = some_specs();
  twice.push_back(twice[1]);
  expect_error<Error>({"'matrix'", "twice"}, [&] { ParamStore(twice, DType::f32); });
  expect_error<ShapeError>({"flat buffer"}, [&] { store.view(Tensor({5}, DType::f32), 0); });
}
