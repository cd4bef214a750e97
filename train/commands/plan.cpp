#include "train/commands/plan.h"

#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <map>

#include "core/gpu.h"
#include "core/system/console.h"
#include "layers/parameters.h"
#include "train/run/progress.h"
#include "train/run/rates_file.h"
#include "train/run/recompute.h"
#include "train/run/run_batches.h"
#include "train/run/run_inputs.h"

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

/// The numbers of ranks whose memory is told: that of this run, or without others all that its leaves allow.
std::vector<int> rank_counts(const TrainConfig& train, const Group& group) {
  if (group.size() > 1) return {group.size()};
  std::vector<int> counts = {1};
  while (2 * counts.back() <= train.leaves) counts.push_back(2 * counts.back());
  return counts;
}

/// Returns the work of a step of this configuration, of one of `counts` ranks each.
std::map<int, StepWork> print_memory(const RunConfig& config, const ComputeTarget& target,
                                     const std::vector<int>& counts) {
  std::map<int, StepWork> work;
  const TrainConfig& t = config.train;
  const bool gpu = target.device == Device::cuda;
  console::out.format("%s parameters, %lld x %lld tokens at a time, activations in %s on %s\n",
                      format_count(double(config.model.parameter_count())).c_str(),
                      static_cast<long long>(t.micro_batch()), static_cast<long long>(config.data.seq_len),
                      name_of(target.compute), gpu ? "a GPU" : "the CPU");
  for (const int ranks : counts) {
    if (ranks > 1 || counts.size() > 1)
      console::out.format("each of %d ranks, train.shard=%s\n", ranks, name_of(t.shard));
    for (const Recompute r : kAllRecomputes) {
      const Rehearsal m = rehearse(config, target, r, ranks);
      const bool chosen = r == recompute_of(config, target.device);
      console::out.format("train.recompute=%-9s  state %.2f GB, peak %.2f GB%s\n", name_of(r), double(m.state) / 1e9,
                          double(m.peak) / 1e9, chosen ? "  <- this configuration" : "");
      if (chosen) work[ranks] = m.work;
    }
  }
  if (!gpu && !t.recompute)
    console::out.format(
        "train.recompute=auto is selective on the CPU where that saves more than %.2f GB, here %.2f GB\n",
        double(kAutoSavesAtLeast) / 1e9, double(selective_saves(config)) / 1e9);
  if (gpu) console::out.print("the driver's context and scratch memory of kernels take about 0.6 GB more\n");
  if (gpu && gpu::problem().empty()) console::out.format("this GPU has %.2f GB free\n", double(gpu::info().free) / 1e9);
  return work;
}

/// "2.3 h".
std::string duration_text(double seconds) {
  char text[40];
  const double hours = seconds / 3600;
  if (hours >= 48)
    std::snprintf(text, sizeof text, "%.1f days", hours / 24);
  else if (hours >= 1)
    std::snprintf(text, sizeof text, "%.1f h", hours);
  else
    std::snprintf(text, sizeof text, "%.1f min", seconds / 60);
  return text;
}

void print_time(const RunConfig& config, const ComputeTarget& target, const std::map<int, StepWork>& work,
                const PlanOptions& options) {
  const TrainConfig& t = config.train;
  const bool gpu = target.device == Device::cuda, here = !gpu || gpu::problem().empty();
  if (t.threads > 0) omp_set_num_threads(int(t.threads));
  const std::string key = here ? device_key(target.device) : "";
  std::optional<OpRates> rates;
  try {
    rates = find_rates(read_rates(options.rates_file), key);
  } catch (const DataError& e) {
    console::out.format("%s\n", e.what());
  }
  if (!rates)
    return console::out.format(
        "time        not known of %s: measure once, in half a minute, with mmfree bench --rates%s\n",
        here ? key.c_str() : "a GPU", gpu ? " --device cuda, there" : "");
  for (const auto& [ranks, step] : work) {
    const double seconds = step_seconds(step, *rates), all = seconds * double(t.steps), hours = all * ranks / 3600;
    const double tokens = double(t.batch_size) * double(config.data.seq_len);
    const std::string each = work.size() > 1 || ranks > 1 ? concat(" on ", ranks, ranks == 1 ? " rank" : " ranks") : "";
    console::out.format("time        %.3g s a step%s, %s tokens/s, %s for %lld steps\n", seconds, each.c_str(),
                        format_count(tokens / seconds).c_str(), duration_text(all).c_str(),
                        static_cast<long long>(t.steps));
    console::out.format("cost        %.3g device hours", hours);
    if (options.price > 0) console::out.format(", %.2f at %.4g each", hours * options.price, options.price);
    console::out.print("\n");
  }
  console::out.format("by rates of %s, %s; without evaluations%s\n", rates->device.c_str(), rates->date.c_str(),
                      work.rbegin()->first > 1 ? " and what ranks exchange" : "");
}

void print_sizes(const RunConfig& config) {
  const TrainConfig& t = config.train;
  const double tokens = double(t.steps) * double(t.batch_size) * double(config.data.seq_len);
  const double flops = training_flops(config.model, config.data.seq_len);
  console::out.format("\nparameters  %s: %s\n", format_count(double(config.model.parameter_count())).c_str(),
                      per_role(config.model).c_str());
  console::out.format("tokens      %s: %lld steps of %lld x %lld\n", format_count(tokens).c_str(),
                      static_cast<long long>(t.steps), static_cast<long long>(t.batch_size),
                      static_cast<long long>(config.data.seq_len));
  console::out.format("compute     %s per token, %s in all\n\n", flops_text(flops).c_str(),
                      flops_text(flops * tokens).c_str());
}

}  // namespace

void print_data(const RunConfig& config) try {
  constexpr int64_t kMostSamples = 16;  // of the first batch; each may be in a shard of its own
  if (config.data.train.empty() && config.data.sources.empty())
    return console::out.print("data        not checked: data.train names none\n");
  const RunInputs inputs(config);
  const Batches batches(inputs.corpus, batch_options(config));
  const int64_t samples = std::min(kMostSamples, config.train.batch_size), length = config.data.seq_len;
  std::vector<int32_t> ids(size_t(samples * length)), targets(ids.size());
  std::vector<uint8_t> starts(batches.has_starts() ? ids.size() : 0);
  batches.read(0, samples, {ids.data(), targets.data(), starts.empty() ? nullptr : starts.data()});
  console::out.format("data        %s tokens in %lld documents, %lld windows of %lld",
                      format_count(double(inputs.corpus.total_tokens())).c_str(),
                      static_cast<long long>(inputs.corpus.documents()), static_cast<long long>(batches.windows()),
                      static_cast<long long>(length));
  if (inputs.valid)
    console::out.format("; %s to evaluate on", format_count(double(inputs.valid->total_tokens())).c_str());
  console::out.format("; vocabulary %d\n", inputs.corpus.info().vocab_size);
  if (batches.windows() < config.train.batch_size)
    console::out.format("            fewer than the %lld windows of a batch: each batch has some of them twice\n",
                        static_cast<long long>(config.train.batch_size));
} catch (const MissingError& e) {
  // A plan is of use before there are data: presets name those that their user has yet to make.
  console::out.format("data        not there yet: %s\n", e.what());
}

void print_plan(RunConfig config, const Group& group, const PlanOptions& options) {
  TrainConfig& t = config.train;
  console::out.print(to_yaml_with_origins(config));
  print_sizes(config);
  if (t.leaves == 0) t.leaves = group.size();
  MMFREE_CHECK(ConfigError, t.splits_into(t.leaves) && t.leaves % group.size() == 0, config.source, ": the ",
               t.batch_size, " sequences of train.batch_size do not divide into ", t.leaves, " leaves for ",
               group.size(), " ranks");
  const ComputeTarget target = rehearsal_target(t);
  print_time(config, target, print_memory(config, target, rank_counts(t, group)), options);
}

}  // namespace mmfree
