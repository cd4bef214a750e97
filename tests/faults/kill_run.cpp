// Cuts training runs anywhere and resumes them: the metrics (times aside) and the final weights must equal, to the bit,
// those of a run that was never cut.
//   kill_run COUNT SEED [FIRST]     cases FIRST .. COUNT - 1, each cut one to four times by SIGKILL, SIGTERM, SIGUSR1,
//                                   SIGINT or a file named `stop`, under changing thread counts
#include <cstdio>
#include <random>
#include <thread>

#include "tests/support/program.h"
#include "tests/support/tiny_run.h"
#include "train/run/run_folder.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct Outcome {
  std::vector<nlohmann::json> metrics;
  std::map<std::string, std::string> weights;
  bool operator==(const Outcome&) const = default;
};

struct Counts {
  int64_t kills = 0, asked = 0, finished = 0;
};

/// Evaluates and saves often, so that cuts hit these too.
RunConfig busy_run() {
  RunConfig c = tiny_run("run");
  c.train.steps = 60;
  c.train.eval_every = 4;
  c.train.save_every = 3;
  c.train.keep_last = 2;
  return c;
}

class Cases {
 public:
  Cases() {
    spit(dir_ / "run.yaml", to_yaml(busy_run()));
    const auto begin = Clock::now();
    require(0, start(dir_ / "whole", 1)->wait(), 0, "the run that is never cut");
    seconds_ = std::chrono::duration<double>(Clock::now() - begin).count();
    whole_ = outcome(dir_ / "whole");
  }

  void run(int64_t number, uint64_t seed) {
    std::mt19937_64 random(seed * 1000003 + uint64_t(number));
    const std::string run_dir = dir_ / "cut";
    fs::remove_all(run_dir);
    for (int64_t cuts = 1 + int64_t(random() % 4); cuts > 0; --cuts) cut(number, run_dir, random);
    const auto last = start(run_dir, 1 + int(random() % 3));
    require(number, last->wait(), 0, last->err());
    if (outcome(run_dir) == whole_) return;
    throw std::runtime_error(concat("case ", number, ": the resumed run differs from the one that was never cut"));
  }
  const Counts& counts() const { return counts_; }

 private:
  std::unique_ptr<Program> start(const std::string& run_dir, int threads) const {
    return std::make_unique<Program>(std::vector<std::string>{"train", dir_ / "run.yaml", "train.run_dir=" + run_dir,
                                                              concat("train.threads=", threads), "--resume", "-q"});
  }

  /// One cut: when the metrics have a random number of lines, some of which this process may have found there, and a
  /// little later, so that starts, steps, evaluations, saves and ends are all hit.
  void cut(int64_t number, const std::string& run_dir, std::mt19937_64& random) {
    fs::remove(run_dir + "/run.json");
    const auto program = start(run_dir, 1 + int(random() % 3));
    const auto lines = random() % (whole_.metrics.size() + 1);
    while (lines > 0 && program->running() && all_metrics(run_dir).size() < lines)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const double line_seconds = seconds_ / double(whole_.metrics.size() + 1);
    const double share = double(random() >> 11) * 0x1p-53;
    std::this_thread::sleep_for(std::chrono::duration<double>(2 * share * line_seconds));
    const int ways[] = {SIGKILL, SIGKILL, SIGKILL, SIGTERM, SIGUSR1, SIGINT, 0};
    const int way = ways[random() % std::size(ways)];
    if (way)
      program->signal(way);
    else if (fs::exists(run_dir))
      spit(run_dir + "/stop", "");
    const int status = program->wait();
    fs::remove(run_dir + "/stop");
    if (status == 0) {
      ++counts_.finished;
    } else if (way == SIGKILL) {
      require(number, status, 1000 + SIGKILL, program->err());
      ++counts_.kills;
    } else if (status == 1000 + way && !fs::exists(run_dir + "/run.json")) {
      ++counts_.kills;  // before the program had begun to listen
    } else {
      require(number, status, 75, program->err());
      const auto saved = checkpoint_steps(run_dir);
      if (saved.empty()) throw std::runtime_error(concat("case ", number, ": status 75 without a checkpoint"));
      ++counts_.asked;
    }
  }

  static Outcome outcome(const std::string& run_dir) {
    return {timeless_metrics(run_dir), learned(checkpoint_path(run_dir, busy_run().train.steps))};
  }
  static void require(int64_t number, int status, int expected, const std::string& said) {
    if (status != expected)
      throw std::runtime_error(concat("case ", number, ": status ", status, ", expected ", expected, "\n", said));
  }

  TempDir dir_;
  double seconds_ = 0;
  Outcome whole_;
  Counts counts_;
};

int run(int64_t count, uint64_t seed, int64_t first) {
  Cases cases;
  const auto begin = Clock::now();
  for (int64_t number = first; number < count; ++number) {
    try {
      cases.run(number, seed);
    } catch (const std::exception& e) {
      std::fprintf(stderr, "%s\nagain: kill_run %lld %llu %lld\n", e.what(), static_cast<long long>(number + 1),
                   static_cast<unsigned long long>(seed), static_cast<long long>(number));
      return 1;
    }
    const double passed = std::chrono::duration<double>(Clock::now() - begin).count();
    if ((number + 1 - first) % 10 == 0)
      std::fprintf(stderr, "%lld of %lld runs, %.0f s left\n", static_cast<long long>(number + 1),
                   static_cast<long long>(count), passed / double(number + 1 - first) * double(count - number - 1));
  }
  const Counts& c = cases.counts();
  std::printf(
      "kill_run: %lld runs equal to the one never cut; %lld cut by SIGKILL, %lld asked to stop, %lld had ended\n",
      static_cast<long long>(count - first), static_cast<long long>(c.kills), static_cast<long long>(c.asked),
      static_cast<long long>(c.finished));
  return 0;
}

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: kill_run COUNT SEED [FIRST]\n");
    return 2;
  }
  return mmfree::run(std::atoll(argv[1]), std::strtoull(argv[2], nullptr, 10), argc > 3 ? std::atoll(argv[3]) : 0);
}
