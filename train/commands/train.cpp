#include <CLI/CLI.hpp>
#include <csignal>
#include <memory>
#include <new>
#include <optional>
#include <utility>

#include "core/gpu.h"
#include "core/system/console.h"
#include "core/system/signals.h"
#include "train/commands/commands.h"
#include "train/commands/plan.h"
#include "train/run/init_from.h"
#include "train/run/lengths.h"
#include "train/run/memory_estimate.h"
#include "train/run/trainer.h"

namespace mmfree {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  bool resume = false, quiet = false, force = false, help_config = false, dry_run = false;
};

void print_result(const RunConfig& config, const RunResult& r) {
  const std::string& why = r.finished ? r.early : r.reason;
  console::out.format("%s at step %lld of %lld%s%s\n", r.finished ? "finished" : "stopped",
                      static_cast<long long>(r.step), static_cast<long long>(config.train.steps),
                      why.empty() ? "" : ": ", why.c_str());
  if (r.tokens_per_second > 0) console::out.format("train loss     %.4f -> %.4f\n", r.first_loss, r.last_loss);
  if (r.valid)
    console::out.format("valid loss     %.4f  perplexity %.2f  bits/byte %.4f  (%lld tokens)\n", r.valid->loss(),
                        r.valid->perplexity(), r.valid->bits_per_byte(), static_cast<long long>(r.valid->tokens));
  if (r.tokens_per_second > 0)
    console::out.format("speed          %s tokens/s\n", format_count(r.tokens_per_second).c_str());
  console::out.format("checkpoint     %s\n", checkpoint_path(config.train.run_dir, r.step).c_str());
  if (r.best_step >= 0)
    console::out.format("best           %s  valid loss %.4f\n",
                        checkpoint_path(config.train.run_dir, r.best_step).c_str(), r.best_loss);
  if (!r.finished) console::out.format("continue with  the same command and --resume\n");
}

/// The numbers of ranks whose memory a dry run tells: that of this run, or without others all that its leaves allow.
std::vector<int> rank_counts(const TrainConfig& train, const Group& group) {
  if (group.size() > 1) return {group.size()};
  std::vector<int> counts = {1};
  while (2 * counts.back() <= train.leaves) counts.push_back(2 * counts.back());
  return counts;
}

/// Prints the memory that training would take, for each train.recompute and number of ranks.
void print_memory(RunConfig config, const Group& group) {
  if (group.rank() != 0) return;
  TrainConfig& t = config.train;
  if (t.leaves == 0) t.leaves = group.size();
  MMFREE_CHECK(ConfigError, t.splits_into(t.leaves) && t.leaves % group.size() == 0, config.source, ": the ",
               t.batch_size, " sequences of train.batch_size do not divide into ", t.leaves, " leaves for ",
               group.size(), " ranks");
  const bool gpu = t.device.wants_gpu();
  const Device device = gpu ? Device::cuda : Device::cpu;
  const bool f32 = t.compute == ComputeChoice::f32 || (t.compute == ComputeChoice::automatic && !gpu);
  const DType compute = f32 ? DType::f32 : DType::bf16;
  console::out.format("%s parameters, %lld x %lld tokens at a time, activations in %s on %s\n",
                      format_count(double(config.model.parameter_count())).c_str(),
                      static_cast<long long>(t.micro_batch()), static_cast<long long>(config.data.seq_len),
                      name_of(compute), gpu ? "a GPU" : "the CPU");
  const std::vector<int> counts = rank_counts(t, group);
  for (const int ranks : counts) {
    if (ranks > 1 || counts.size() > 1)
      console::out.format("each of %d ranks, train.shard=%s\n", ranks, name_of(t.shard));
    for (Recompute r : kAllRecomputes) {
      const MemoryEstimate m = estimate_memory(config, compute, r, ranks);
      console::out.format("train.recompute=%-9s  state %.2f GB, peak %.2f GB%s\n", name_of(r), double(m.state) / 1e9,
                          double(m.peak) / 1e9, r == recompute_of(t, device) ? "  <- this configuration" : "");
    }
  }
  if (gpu) console::out.print("the driver's context and scratch memory of kernels take about 0.6 GB more\n");
  if (gpu && gpu::problem().empty()) console::out.format("this GPU has %.2f GB free\n", double(gpu::info().free) / 1e9);
}

void run_rank(const Options& o, Group& group) {
  // Never destroyed: a signal may arrive while the process ends.
  alignas(StopSignals) static char forever[sizeof(StopSignals)];
  new (forever) StopSignals;
  std::signal(SIGPIPE, SIG_IGN);  // training continues when nobody reads its progress
  MMFREE_CHECK(UsageError, !o.config.empty(),
               "train: no configuration given; try `mmfree train configs/quickstart.yaml` or `mmfree train --help`");
  std::optional<Model> source;  // of train.init_from, if the run starts with it
  RunConfig config = [&] {
    const LeaveAtOnce nothing_to_save;
    return load_config(o.config, o.overrides,
                       [&](const TrainConfig& train) { return inherited_model(train, o.resume, source); });
  }();
  // A run that started from another run's checkpoint and stopped before its own first starts there again.
  const bool elsewhere = config.train.resume.mode == ResumeFrom::checkpoint;
  if (o.resume && (!elsewhere || !checkpoint_steps(config.train.run_dir).empty()))
    config.train.resume = {ResumeFrom::newest_if_any};
  if (o.dry_run) {
    resolve_lengths(config);
    if (group.rank() == 0) print_plan(config);
    return print_memory(config, group);
  }
  MMFREE_CHECK(ConfigError, !config.data.train.empty() || !config.data.sources.empty(), o.config,
               ": data.train is empty; name token shards made by `mmfree prepare`");
  // A run's results are in its folder: that nobody takes its last words does not make it fail.
  console::out.set_stuck(console::Stream::Stuck::given_up);
  Trainer trainer(config, o.quiet, o.force, std::move(source), group);
  const RunResult result = trainer.run();
  if (group.rank() == 0) print_result(config, result);
  if (!result.finished)
    throw Error(concat("stopped early (", result.reason, ") with a complete checkpoint; run again with --resume"),
                Exit::stopped);
}

void run(const Options& o) {
  if (o.help_config) return console::out.print(config_reference());
  const std::unique_ptr<Group> group = Group::join(detect_launch());
  group->run([&] { run_rank(o, *group); });
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("train", "Train a model as a YAML file describes, or continue a run");
  c->add_option("config", o->config, "YAML file; see configs/ for presets");
  c->add_option(
      "overrides", o->overrides,
      "key.path=value pairs laid over the file, for example optim.lr=1e-3; '~optim.lr' gives a key its default");
  c->add_flag(
      "--resume", o->resume,
      "continue from the newest intact checkpoint of the run folder; if there is none, start, from the one that "
      "train.resume names or anew");
  c->add_flag("-q,--quiet", o->quiet, "no progress");
  c->add_flag("--force", o->force, "resume although the configuration or data changed dangerously");
  c->add_flag(
      "--dry-run", o->dry_run,
      "print the whole configuration with where each value came from, parameters, compute and memory, and stop");
  c->add_flag("--help-config", o->help_config, "list every configuration key with type, default and meaning");
  c->footer(
      "Examples:\n"
      "  mmfree train configs/quickstart.yaml\n"
      "  mmfree train configs/8m.yaml data.train=shards/train-*.h5 data.valid=shards/valid-*.h5 optim.lr=2e-3\n"
      "  mmfree train configs/8m.yaml --resume            continue where the run stopped\n"
      "  mmfree train configs/8m.yaml train.resume=runs/8m/checkpoints/step-00001000.h5   from this one\n"
      "  mmfree train tune.yaml train.init_from=runs/8m    a new run that starts with these weights\n"
      "  mmfree train configs/370m.yaml train.device=cuda --dry-run    how much GPU memory, without a GPU\n"
      "  mmfree train --help-config\n"
      "SIGTERM, SIGUSR1, SIGHUP or one Ctrl-C finish the step, save and exit with status 75; a second Ctrl-C leaves at "
      "once.");
  c->callback([o] { run(*o); });
}

}  // namespace mmfree
