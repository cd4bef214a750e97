#pragma once
#include <string>
#include <vector>

#include "core/rng.h"
#include "data/token_shards.h"
#include "tests/support/tiny_run.h"

namespace mmfree {

inline constexpr int64_t kUnsteadySteps = 52;

/// A shard of 80 batches of `rows` windows, for training in order. All but four batches repeat one short pattern, which
/// a model learns at once; batches 30, 31, 46 and 47 are random, and their gradients many times as large. With
/// `carried` each row of the batch has its own part of the shard.
inline std::string unsteady_shard(const TempDir& dir, int64_t rows, bool carried) {
  constexpr int64_t kBatches = 80, kLength = 17;
  const RandomStream random(3, 0, "unsteady");
  std::vector<int32_t> ids;
  for (int64_t i = 0; i <= rows * kBatches * kLength; ++i) {
    const int64_t window = i / kLength, batch = 1 + (carried ? window % kBatches : window / rows);
    const bool bad = batch == 30 || batch == 31 || batch == 46 || batch == 47;
    ids.push_back(bad ? 10 + int32_t(random.uniform(uint64_t(i)) * 300) : 10 + int32_t(i % kLength % 5));
  }
  const std::string path = dir / "train-unsteady.h5";
  ShardWriter shard(path, shard_info(TinyCorpus::get().tokenizer(), "train"), "test");
  shard.add(ids);
  shard.commit();
  return path;
}

/// A run on them in which two such batches in a row are a divergence. It goes back from step 31 to 28, and from step
/// 44, which then has the data of 47, to 40.
inline RunConfig unsteady_run(const TempDir& dir, const std::string& run_dir, bool carried = false) {
  RunConfig c = tiny_run(run_dir);
  c.data.train = {unsteady_shard(dir, c.train.batch_size, carried)};
  c.data.shuffle = false;
  c.data.carry_state = carried;
  c.train.steps = kUnsteadySteps;
  c.train.skip_outliers = 2;
  c.train.skip_limit = 2;
  c.train.save_every = 4;
  c.train.keep_last = 1;
  c.train.rollback = 5;
  c.train.eval_every = 8;
  c.train.eval_tokens = 300;
  return c;
}

/// The same run on the data without batches 29 to 31, which a rollback from step 31 leaves out, in the same order.
inline RunConfig without_first_bad_batches(RunConfig c, const TempDir& dir) {
  constexpr int64_t kBatch = 4 * 17;
  TokenShards all({c.data.train[0]});
  std::vector<int32_t> ids(size_t(all.total_tokens()));
  all.read(0, all.total_tokens(), ids.data());
  ids.erase(ids.begin() + 28 * kBatch, ids.begin() + 31 * kBatch);
  c.data.train = {dir / "good.h5"};
  c.train.run_dir = dir / "good";
  ShardWriter shard(c.data.train[0], all.info(), "test");
  shard.add(ids);
  shard.commit();
  return c;
}

}  // namespace mmfree
