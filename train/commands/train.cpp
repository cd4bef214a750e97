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
#include "train/run/rates_file.h"
#include "train/run/trainer.h"

namespace mmfree {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  bool resume = false, quiet = false, force = false, help_config = false, dry_run = false;
  PlanOptions plan{default_rates_file()};
};

void print_result(const RunConfig& config, const RunResult& r) {
  const std::string& why = r.finished ? r.early : r.reason;
  console::out.format("%s at step %lld of %lld%s%s\n", r.finished ? "finished" : "stopped",
                      static_cast<long long>(r.step), static_cast<long long>(r.steps), why.empty() ? "" : ": ",
                      why.c_str());
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
    if (group.rank() > 0) return;
    print_plan(config, group, o.plan);
    return print_data(config);
  }
  MMFREE_CHECK(ConfigError, !config.data.train.empty() || !config.data.sources.empty(), o.config,
               ": data.train is empty; name token shards made by `mmfree prepare`");
  // A run's results are in its folder: that nobody takes its last words does not make it fail.
  console::out.set_stuck(console::Stream::Stuck::given_up);
  Trainer trainer(config, o.quiet, o.force, std::move(source), group);
  const RunResult result = trainer.run();
  if (group.rank() == 0) print_result(config, result);
  if (!result.finished)
    throw Error(concat("stopped early (", result.reason,
                       ") with a complete checkpoint; continue with the same command and --resume"),
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
  c->add_flag("--dry-run", o->dry_run,
              "print the whole configuration with where each value came from, parameters, compute, memory, time and "
              "cost, check that data that are there fit, and stop");
  c->add_option("--price", o->plan.price, "of a device for an hour, in any currency: --dry-run tells the cost")
      ->check(CLI::Range(0.0, 1e6));
  c->add_option("--rates-file", o->plan.rates_file, "where `mmfree bench --rates` has put what --dry-run reckons with");
  c->add_flag("--help-config", o->help_config, "list every configuration key with type, default and meaning");
  c->footer(
      "Examples:\n"
      "  mmfree train configs/quickstart.yaml\n"
      "  mmfree train configs/8m.yaml data.train=shards/train-*.h5 data.valid=shards/valid-*.h5 optim.lr=2e-3\n"
      "  mmfree train configs/8m.yaml --resume            continue where the run stopped\n"
      "  mmfree train configs/8m.yaml train.resume=runs/8m/checkpoints/step-00001000.h5   from this one\n"
      "  mmfree train tune.yaml train.init_from=runs/8m    a new run that starts with these weights\n"
      "  mmfree train configs/370m.yaml train.device=cuda --dry-run    how much GPU memory, without a GPU or data\n"
      "  mmfree train configs/8m.yaml --dry-run --price 2.5    how long and at what cost, once `mmfree bench --rates` "
      "ran\n"
      "  mmfree train --help-config\n"
      "SIGTERM, SIGUSR1, SIGHUP or one Ctrl-C finish the step, save and exit with status 75; a second Ctrl-C leaves at "
      "once.");
  c->callback([o] { run(*o); });
}

}  // namespace mmfree
