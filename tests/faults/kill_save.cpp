// Kills the process inside a save: the newest checkpoint that loads is then the old or the new one, to the bit.
//   kill_save COUNT SEED [CASE]     CASE: only this one
#include <numeric>

#include "core/rng.h"
#include "tests/support/child.h"
#include "tests/support/fault_main.h"
#include "tests/support/interpose.h"
#include "tests/support/saved_run.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using interpose::Call;
using interpose::Op;
using interpose::Verdict;

constexpr int64_t kOld = 10, kNew = 20;
constexpr unsigned kSeconds = 60;

/// What a child that saves tells its parent.
struct Progress {
  volatile bool started, saved;
  volatile int64_t calls;
  volatile double seconds;  // that the whole took
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Counts file calls and kills the process before number `at`, or in the middle of it if it writes.
class Killer : public interpose::Watch {
 public:
  Killer(Shared<Progress>& progress, int64_t at, bool in_the_middle)
      : progress_(progress), at_(at), in_the_middle_(in_the_middle) {}
  Verdict before(const Call& call) override {
    if (call.op == Op::allocate) return {};
    const int64_t number = progress_->calls;
    progress_->calls = number + 1;
    if (number != at_) return {};
    const bool writes = call.op == Op::write || call.op == Op::pwrite;
    if (!writes || !in_the_middle_) kill(getpid(), SIGKILL);
    dying_ = true;
    return {.most = call.size / 2};
  }
  void after(const Call&, int64_t) override {
    if (dying_) kill(getpid(), SIGKILL);
  }

 private:
  Shared<Progress>& progress_;
  int64_t at_;
  bool in_the_middle_, dying_ = false;
};

class KillSave {
 public:
  KillSave() {
    require(in_child([&] { start_run(run_, old_, kOld); }, kSeconds));
    for (int i = 0; i < 5; ++i) {
      fresh_folder();
      require(in_child([&] { save(-1, false); }, kSeconds));
      seconds_ = std::max(seconds_, double(progress_->seconds));
      calls_ = progress_->calls;
    }
    MMFREE_CHECK(Error, calls_ > 20, "a save makes only ", calls_, " calls that are seen");
    std::printf("kill_save: a save makes %lld calls and takes up to %.1f ms\n", (long long)calls_, seconds_ * 1e3);
  }

  /// One case. Returns what is wrong, empty if nothing is.
  std::string run(uint64_t seed, int64_t number, Tally& tally) {
    const RandomStream random(seed, uint64_t(number), "kill_save");
    fresh_folder();
    const bool by_call = number % 2 == 0;
    const int64_t call = call_of(number / 2 + int64_t(seed % 1000));
    const bool in_the_middle = random.uniform(0) < 0.5;
    const double wait = random.uniform(1) * seconds_;
    const Ended ended = by_call ? in_child([&] { save(call, in_the_middle); }, kSeconds)
                                : in_child([&] { save(-1, false); }, kSeconds,
                                           [&](pid_t child) {
                                             while (!progress_->started) usleep(20);
                                             for (const double end = now() + wait; now() < end;) usleep(20);
                                             kill(child, SIGKILL);
                                           });
    const std::string where = by_call ? concat("killed at call ", call, in_the_middle ? ", half done" : "")
                                      : concat("killed after ", wait * 1e3, " ms");
    if (ended.signal != SIGKILL && !ended.ok()) return concat(where, ": ", ended.describe());
    const Ended restart = in_child([&] { found_->step = run_.restart(folder_); }, kSeconds);
    if (!restart.ok()) return concat(where, ": the next start: ", restart.describe());
    const int64_t step = found_->step;
    if (step != kNew && (progress_->saved || step != kOld))
      return concat(where, ": found step ", step, progress_->saved ? " after the save had returned" : "");
    tally.count(ended.ok()     ? "finished before"
                : step == kNew ? "killed with the new one found"
                               : "killed with the old one found");
    return {};
  }

 private:
  struct Found {
    int64_t step;
  };

  static void require(const Ended& ended) { MMFREE_CHECK(Error, ended.ok(), "without a kill: ", ended.describe()); }

  /// Which call the n-th kill at a call hits: in turn one of the last, where names change, and one of all, in steps
  /// that reach each before one comes again.
  int64_t call_of(int64_t n) const {
    constexpr int64_t kLast = 16;
    if (n % 2) return calls_ - 1 - n / 2 % kLast;
    int64_t step = calls_ * 5 / 8;
    while (std::gcd(step, calls_) != 1) ++step;
    return n / 2 * step % calls_;
  }

  void fresh_folder() {
    fs::remove_all(folder_);
    fs::copy(old_, folder_, fs::copy_options::recursive);
    *progress_ = Progress{};
    *found_ = Found{};
  }

  /// In the child.
  void save(int64_t kill_at, bool in_the_middle) {
    run_.assume(kNew);
    Killer killer(progress_, kill_at, in_the_middle);
    interpose::set_watch(&killer);
    const double begin = now();
    progress_->started = true;
    run_.save_now(folder_, kNew, 1, [&] { progress_->saved = true; });
    interpose::set_watch(nullptr);
    progress_->seconds = now() - begin;
  }

  TempDir dir_;
  std::string old_ = dir_ / "old", folder_ = dir_ / "run";
  SavedRun run_;
  Shared<Progress> progress_;
  Shared<Found> found_;
  int64_t calls_ = 0;
  double seconds_ = 0;
};

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  return mmfree::fault_main([&] { return mmfree::run_cases<mmfree::KillSave>("kill_save", argc, argv); });
}
