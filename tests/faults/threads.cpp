// threads ROUNDS SEED: what training does beside the steps, all at once, to be watched by ThreadSanitizer (preset
// tsan).
//
// A feed reads batches ahead, checkpoints are saved in the background, and the main thread takes the batches, which
// must be those of their steps, and writes metrics and progress. Each round ends at a random step, with the feed's
// thread in any state. Every second round goes as with an HDF5 that is not thread-safe.
#include <fcntl.h>

#include <cstdio>

#include "data/batches.h"
#include "data/feed.h"
#include "data/h5/session.h"
#include "layers/parameters.h"
#include "tests/support/compare.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "train/run/background_save.h"
#include "train/run/metrics.h"
#include "train/run/progress.h"
#include "train/run/run_folder.h"

namespace mmfree {
namespace {

constexpr int64_t kRows = 3, kLength = 17, kVocabulary = 61, kMostSteps = 60;

void write_shard(const std::string& path, uint64_t seed) {
  ShardInfo info{"train", int(kVocabulary), "no tokenizer", -1, -1, false, std::vector<int32_t>(kVocabulary, 1)};
  ShardWriter shard(path, info, "random ids");
  const Tensor ids = random_ids(5000, kVocabulary, seed);
  shard.add({ids.data<int32_t>(), ids.data<int32_t>() + ids.size()});
  shard.commit();
}

/// A run folder with what a run keeps open.
class Round {
 public:
  Round(const std::string& shards, const std::string& dir, uint64_t seed)
      : shards_(TokenShards({shards})),
        again_(TokenShards({shards})),
        batches_(shards_, options(seed)),
        expected_(again_, options(seed)),
        params_(parameter_specs(tiny_model_config()), DType::f32),
        dir_(dir),
        random_(seed, 0, "round") {
    config_.model = tiny_model_config();
    config_.train.run_dir = dir;
    std::filesystem::create_directories(dir + "/checkpoints");
    params_.initialise(seed);
  }

  /// The number of batches that were not those of their step.
  int64_t run() {
    const int64_t first = int64_t(random_.uniform(0) * 100), steps = 1 + int64_t(random_.uniform(1) * kMostSteps);
    BatchFeed feed(batches_, first * kRows, kMostSteps, kRows, kLength, false);
    MetricsWriter metrics(dir_ + "/metrics.jsonl");
    const Fd nowhere(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    console::Stream sink(nowhere.get(), console::Stream::Stuck::waits);
    Progress progress(false, sink);
    int64_t wrong = 0;
    for (int64_t step = first; step < first + steps; ++step) {
      BatchFeed::Slot* slot = feed.next();
      wrong += !is_batch_of(step, slot->data());
      feed.release(slot);
      params_.values().mut<float>()[step] += 1;  // training changes the state while its copy is saved
      metrics.write({{"step", step}, {"train/loss", feed.waited()}});
      ProgressState shown;
      shown.step = step, shown.steps = kMostSteps;
      progress.update(shown);
      if (random_.uniform(uint64_t(step + 2)) < 0.2) save(step, metrics);
    }
    saving_.wait();
    return wrong;
  }

 private:
  BatchOptions options(uint64_t seed) const { return {kLength, seed, true}; }

  bool is_batch_of(int64_t step, const int32_t* data) const {
    std::vector<int32_t> all(size_t(2 * kRows * kLength));
    expected_.read(step * kRows, kRows, {all.data(), all.data() + kRows * kLength});
    return std::equal(all.begin(), all.end(), data);
  }

  void save(int64_t step, MetricsWriter& metrics) {
    if (step % 2 || !saving_.poll()) saving_.wait();
    metrics.sync();
    saving_.start({params_.values(), {{"adam_m", params_.values()}, {"adam_v", params_.values()}}},
                  [this, step](const FlatState& flat) {
                    LoopState state;
                    state.step = step;
                    save_checkpoint(checkpoint_path(dir_, step), config_, params_, flat, state, "");
                    retain_checkpoints(dir_, step, {2});
                  });
  }

  Corpus shards_, again_;
  Batches batches_, expected_;
  ParamStore params_;
  std::string dir_;
  RandomStream random_;
  RunConfig config_;
  BackgroundSave saving_;
};

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  using namespace mmfree;
  if (argc != 3) return std::fprintf(stderr, "usage: threads ROUNDS SEED\n"), 2;
  const int64_t rounds = std::atoll(argv[1]);
  const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
  const TempDir dir;
  write_shard(dir / "train-0.h5", 1);
  write_shard(dir / "train-1.h5", 2);
  const bool needs_lock = h5::needs_lock();
  int64_t wrong = 0;
  for (int64_t r = 0; r < rounds; ++r) {
    h5::needs_lock() = needs_lock || r % 2;
    const int64_t bad = Round(dir / "train-*.h5", dir / "run", seed + uint64_t(r)).run();
    if (bad)
      std::printf("FAILED round %lld: %lld batches were not those of their steps\n  again: threads 1 %llu\n",
                  (long long)r, (long long)bad, (unsigned long long)(seed + uint64_t(r)));
    wrong += bad;
    if (r % 10 == 0) std::printf("round %lld of %lld\n", (long long)r, (long long)rounds), std::fflush(stdout);
  }
  std::printf("threads: %lld rounds, %lld wrong batches\n", (long long)rounds, (long long)wrong);
  return wrong ? 1 : 0;
}
