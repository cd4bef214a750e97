#include "optim/rules.h"

#include <fnmatch.h>

#include <algorithm>
#include <tuple>

#include "core/ops/adamw.h"

namespace mmfree {
namespace {

bool names(const std::string& pattern, const std::string& name) {
  return name.ends_with("." + pattern) || ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

bool matches(const OptimRule& rule, const ParamSpec& spec) {
  const auto& [roles, patterns] = std::tie(rule.roles, rule.parameters);
  const bool role = roles.empty() || std::find(roles.begin(), roles.end(), spec.role) != roles.end();
  return role && (patterns.empty() || std::any_of(patterns.begin(), patterns.end(),
                                                  [&](const std::string& p) { return names(p, spec.name); }));
}

std::string describe(const OptimRule& rule) {
  std::string text;
  for (const ParamRole role : rule.roles) text += concat(text.empty() ? "" : ", ", "role ", name_of(role));
  for (const std::string& p : rule.parameters) text += concat(text.empty() ? "" : ", ", quote(p));
  return text;
}

}  // namespace

ParamRates rates_of(const ParamSpec& spec, const OptimConfig& config) {
  const bool decays = spec.role == ParamRole::matrix || spec.role == ParamRole::head;
  ParamRates rates{1, decays ? config.weight_decay : 0};
  for (const OptimRule& rule : config.rules) {
    if (!matches(rule, spec)) continue;
    rates.lr_factor = rule.lr_factor.value_or(rates.lr_factor);
    rates.weight_decay = rule.weight_decay.value_or(rates.weight_decay);
  }
  return rates;
}

Tensor block_rates(const ParamStore& params, const OptimConfig& config) {
  const std::vector<ParamSpec>& specs = params.specs();
  for (size_t r = 0; r < config.rules.size(); ++r) {
    const OptimRule& rule = config.rules[r];
    MMFREE_CHECK(ConfigError, std::any_of(specs.begin(), specs.end(), [&](const auto& s) { return matches(rule, s); }),
                 "optim.rules[", r, "]: no parameter matches (", describe(rule), "); expected names such as ",
                 specs.front().name);
  }
  Tensor rates({params.size() / kParamBlock, 2}, DType::f64);
  double* out = rates.mut<double>();
  for (size_t i = 0; i < specs.size(); ++i) {
    const ParamRates r = rates_of(specs[i], config);
    for (int64_t block = 0; block * kParamBlock < specs[i].shape.size(); ++block, out += 2)
      out[0] = r.lr_factor, out[1] = r.weight_decay;
  }
  return rates.to(params.device());
}

}  // namespace mmfree
