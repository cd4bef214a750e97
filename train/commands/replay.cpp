#include "train/run/replay.h"

#include <CLI/CLI.hpp>
#include <memory>

#include "core/ranks/group.h"
#include "core/system/console.h"
#include "core/system/signals.h"
#include "train/commands/commands.h"

namespace mmfree {
namespace {

struct Options {
  std::string run_dir;
  int64_t step = 0;
  std::vector<std::string> overrides;
};

void run(const Options& o) {
  const std::unique_ptr<Group> group = Group::join(detect_launch());
  group->run([&] {
    const StopSignals signals;
    const ReplayResult r = replay(o.run_dir, o.step, o.overrides, *group);
    if (group->rank() != 0) return;
    console::out.format("the same: steps %lld to %lld, made again from %s; %lld steps and %lld checkpoints compared\n",
                        static_cast<long long>(r.from + 1), static_cast<long long>(r.to), r.source.c_str(),
                        static_cast<long long>(r.steps), static_cast<long long>(r.checkpoints));
  });
}

}  // namespace

void add_replay_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("replay", "Make steps of a run again, and compare them with its metrics");
  c->add_option("run", o->run_dir, "run folder")->required();
  c->add_option("overrides", o->overrides, "key.path=value pairs laid over the run's configuration");
  c->add_option("--step", o->step, "last step to make; the first is that after the newest checkpoint before it")
      ->required()
      ->check(CLI::PositiveNumber);
  c->footer(
      "Example:\n"
      "  mmfree replay runs/370m --step 12000\n"
      "Losses, gradient norms and weights must be those of the run, to the bit: a step that differs (status 65) tells "
      "of\n"
      "faulty hardware, or of other libraries. On the same kind of device, with any number of ranks that divides the "
      "leaves.");
  c->callback([o] { run(*o); });
}

}  // namespace mmfree
