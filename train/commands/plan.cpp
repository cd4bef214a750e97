#include "train/commands/plan.h"

#include <cstdio>
#include <iterator>
#include <map>

#include "core/system/console.h"
#include "layers/parameters.h"
#include "train/run/progress.h"

namespace mmfree {
namespace {

std::string per_role(const ModelConfig& model) {
  std::map<ParamRole, int64_t> counts;
  for (const ParamSpec& spec : parameter_specs(model)) counts[spec.role] += spec.shape.size();
  std::string text;
  for (const auto& [role, count] : counts)
    text += concat(text.empty() ? "" : ", ", format_count(double(count)), " ", name_of(role));
  return text;
}

/// "6.34 MFLOP".
std::string flops_text(double flops) {
  const char* units[] = {"", "k", "M", "G", "T", "P", "E", "Z", "Y"};
  size_t unit = 0;
  for (; unit + 1 < std::size(units) && flops >= 999.5; ++unit) flops /= 1000;
  char text[40];
  std::snprintf(text, sizeof text, "%.3g %sFLOP", flops, units[unit]);
  return text;
}

}  // namespace

void print_plan(const RunConfig& config) {
  const TrainConfig& t = config.train;
  const double tokens = double(t.steps) * double(t.batch_size) * double(config.data.seq_len);
  const double flops = training_flops(config.model, config.data.seq_len);
  console::out.print(to_yaml_with_origins(config));
  console::out.format("\nparameters  %s: %s\n", format_count(double(config.model.parameter_count())).c_str(),
                      per_role(config.model).c_str());
  console::out.format("tokens      %s: %lld steps of %lld x %lld\n", format_count(tokens).c_str(),
                      static_cast<long long>(t.steps), static_cast<long long>(t.batch_size),
                      static_cast<long long>(config.data.seq_len));
  console::out.format("compute     %s per token, %s in all\n\n", flops_text(flops).c_str(),
                      flops_text(flops * tokens).c_str());
}

}  // namespace mmfree
