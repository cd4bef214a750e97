// Rules of the optimizer: which parameters they hold for, and that the update follows them.
#include <gtest/gtest.h>

#include "layers/parameters.h"
#include "optim/adamw.h"
#include "optim/rules.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_model.h"

namespace mmfree {
namespace {

ParamRates rates(const std::vector<OptimRule>& rules, const std::string& name, ParamRole role) {
  OptimConfig c;
  c.weight_decay = 0.25;
  c.rules = rules;
  return rates_of({name, {2, 2}, {}, role}, c);
}

TEST(OptimRules, WithoutAnyMatricesAndTheHeadDecay) {
  for (const auto& [role, decay] : {std::pair{ParamRole::matrix, 0.25},
                                    {ParamRole::head, 0.25},
                                    {ParamRole::embedding, 0.0},
                                    {ParamRole::vector, 0.0}}) {
    EXPECT_EQ(decay, rates({}, "w", role).weight_decay) << name_of(role);
    EXPECT_EQ(1, rates({}, "w", role).lr_factor) << name_of(role);
  }
}

TEST(OptimRules, HoldForRolesAndNames) {
  const auto factor = [](const OptimRule& rule, const std::string& name, ParamRole role) {
    return rates({rule}, name, role).lr_factor;
  };
  const OptimRule roles{{ParamRole::head, ParamRole::vector}, {}, 3, {}};
  EXPECT_EQ(3, factor(roles, "w", ParamRole::head));
  EXPECT_EQ(3, factor(roles, "w", ParamRole::vector));
  EXPECT_EQ(1, factor(roles, "w", ParamRole::matrix));
  const std::string name = "model.layers.3.attn.i_proj.norm.weight";
  for (const auto& [pattern, matches] : {std::pair{"norm.weight", true},
                                         {"i_proj.norm.weight", true},
                                         {"orm.weight", false},
                                         {"i_proj.norm", false},
                                         {"model.layers.3.*", true},
                                         {"model.layers.[0-3].attn.*", true},
                                         {"layers.3.*", false},
                                         {name.c_str(), true},
                                         {"*", true}})
    EXPECT_EQ(matches ? 3 : 1, factor({{}, {"none", pattern}, 3, {}}, name, ParamRole::vector)) << pattern;
  EXPECT_EQ(1, factor({{ParamRole::matrix}, {"norm.weight"}, 3, {}}, name, ParamRole::vector)) << "both must match";
}

TEST(OptimRules, LaterOnesWinKeyByKey) {
  const std::vector<OptimRule> rules = {
      {{}, {}, 2, 0.5}, {{ParamRole::matrix}, {}, {}, 0.75}, {{}, {"b"}, 4, {}}, {{}, {"c"}, {}, 0}};
  const auto expect = [&](const char* name, double factor, double decay) {
    const ParamRates r = rates(rules, name, ParamRole::matrix);
    EXPECT_EQ(factor, r.lr_factor) << name;
    EXPECT_EQ(decay, r.weight_decay) << name;
  };
  expect("a", 2, 0.75);
  expect("b", 4, 0.75);
  expect("c", 2, 0);
}

TEST(OptimRules, ReachEveryBlockOfTheirParameters) {
  OptimConfig c;
  c.rules = {{{}, {"two"}, 3, 0.5}};
  const ParamStore params({{"one", {5}, {}, ParamRole::vector},
                           {"two", {kParamBlock + 1}, {}, ParamRole::vector},
                           {"three", {7, 7}, {}, ParamRole::matrix}},
                          DType::f32);
  const Tensor rates = block_rates(params, c);
  ASSERT_EQ(Shape({4, 2}), rates.shape());
  const double expected[] = {1, 0, 3, 0.5, 3, 0.5, 1, 0.1};
  for (int i = 0; i < 8; ++i) EXPECT_EQ(expected[i], rates.data<double>()[i]) << i;
}

TEST(OptimRules, OneThatHoldsForNothingIsAnError) {
  const ParamStore params(parameter_specs(tiny_model_config()), DType::f32);
  OptimConfig c;
  c.rules = {{{ParamRole::head}, {}, 2, {}}, {{ParamRole::head}, {"i_proj.weight", "x*"}, 2, {}}};
  expect_error<ConfigError>({"optim.rules[1]", "role head", "'i_proj.weight'", "'x*'", "model.embeddings.weight"},
                            [&] { block_rates(params, c); });
}

TEST(OptimRules, SetRateAndDecayOfTheUpdate) {
  OptimConfig c;
  c.lr = 0.5, c.warmup_steps = 0, c.clip_grad = 0, c.schedule = Schedule::constant, c.weight_decay = 0.1;
  c.rules = {{{}, {"frozen"}, 0, {}}, {{}, {"slow"}, 0.25, {}}, {{ParamRole::vector}, {}, {}, 0.2}};
  const std::vector<std::pair<const char*, ParamRole>> names = {{"plain", ParamRole::matrix},
                                                                {"frozen", ParamRole::matrix},
                                                                {"slow", ParamRole::matrix},
                                                                {"v", ParamRole::vector}};
  std::vector<ParamSpec> specs;
  for (const auto& [name, role] : names) specs.push_back({name, {1}, {Init::constant, 2}, role});
  ParamStore params(specs, DType::f64);
  params.initialise(1);
  AdamW optimizer(params, c);
  params.begin_gradients();
  for (size_t i = 0; i < specs.size(); ++i) *params.view(params.grads(), i).mut<double>() = 3;
  optimizer.begin_step(1, 10);
  optimizer.update();
  // The first update moves by the rate itself, against the gradient's sign; the decay comes on top.
  const double expected[] = {2 * (1 - 0.5 * 0.1) - 0.5, 2, 2 * (1 - 0.125 * 0.1) - 0.125, 2 * (1 - 0.5 * 0.2) - 0.5};
  for (size_t i = 0; i < specs.size(); ++i)
    EXPECT_NEAR(expected[i], *params.view(params.values(), i).data<double>(), 1e-7) << specs[i].name;
}

}  // namespace
}  // namespace mmfree
