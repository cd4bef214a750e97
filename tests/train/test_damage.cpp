// What is damaged and what is not: zeros in place of tokens, errors that pass, and files of newer versions.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/failing.h"
#include "tests/support/hostile_originals.h"
#include "tests/support/saved_run.h"
#include "tests/support/shard_damage.h"
#include "tests/support/training.h"
#include "train/formats/ternary_file.h"
#include "train/inference/evaluate.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;
using interpose::Op;

constexpr int64_t kSeriesChunk = 32768;

/// A shard of five chunks of random tokens, which turn to zeros on request.
class LargeShard {
 public:
  LargeShard() : path(random_shard(dir, 9000, 17)), tokens_(9000 * 17 + 1) {
    TokenShards({path}).read(0, int64_t(tokens_.size()), tokens_.data());
  }
  /// All chunks but the first.
  void harm() const {
    for (size_t at = kSeriesChunk; at < tokens_.size(); at += kSeriesChunk)
      zero_out(path, std::vector<uint16_t>(&tokens_[at], &tokens_[at + 16]), kChunkBytes<uint16_t>);
  }

  TempDir dir;
  std::string path;

 private:
  std::vector<int32_t> tokens_;
};

RunConfig run_on(const LargeShard& shard, const std::string& name) {
  RunConfig c = tiny_run(shard.dir / name);
  c.data.train = {shard.path};
  c.data.valid = {};
  c.train.steps = 60;
  c.train.save_every = 0;
  return c;
}

TEST(Damage, ZerosInPlaceOfTokensEndARunBeforeTheyAreTrainedOn) {
  for (const bool is_old : {false, true}) {
    SCOPED_TRACE(is_old ? "sums beside the shard" : "sums in the shard");
    const LargeShard shard;
    if (is_old) {
      take_sums_away(shard.path);
      EXPECT_EQ(h5::add_sums(shard.path), "");
    }
    const RunConfig good = run_on(shard, "good"), bad = run_on(shard, "bad");
    const std::string said = text_of([&] { train(good); });
    EXPECT_FALSE(contains(said, "checksums")) << said;
    const AtWrite harm("\"step\": 5,", [&] { shard.harm(); });
    const std::string error = error_of<Error>([&] { train(bad); });
    EXPECT_TRUE(contains(error, shard.path + ": dataset 'tokens' is damaged at ")) << error;
    const auto expected = timeless_metrics(good.train.run_dir), rows = timeless_metrics(bad.train.run_dir);
    ASSERT_GE(rows.size(), 5u);
    ASSERT_LT(rows.size(), 20u);
    for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i]["train/loss"], expected[i]["train/loss"]) << i;
    EXPECT_EQ(checkpoint_steps(bad.train.run_dir), (std::vector<int64_t>{int64_t(rows.size())}));
  }
}

TEST(Damage, TrainingSaysWhichShardsHaveNoSums) {
  const LargeShard shard;
  take_sums_away(shard.path);
  RunConfig c = run_on(shard, "run");
  c.train.steps = 1;
  const std::string said = text_of([&] { train(c); });
  EXPECT_TRUE(contains(said, "warning: 1 token shards have no checksums of their chunks")) << said;
  EXPECT_TRUE(contains(said, "mmfree info --verify " + shard.dir.path() + "\n")) << said;
}

TEST(Damage, ZerosInTheMiddleOfAnEvaluationAreNoted) {
  const LargeShard shard;
  const TokenShards shards({shard.path});
  const Model m = tiny_model(tiny_model_config());
  bool is_harmed = false;
  const auto harm = [&](int64_t, int64_t) {
    if (!std::exchange(is_harmed, true)) shard.harm();
    return true;
  };
  EXPECT_THROW(evaluate(*m.lm, TokenSource::shards(shards), {1024, 0, harm}), DamagedError);
}

/// A run folder with the checkpoints of steps 10 and 20.
struct TwoSaves {
  TempDir dir;
  std::string run = dir / "run", newest = checkpoint_path(run, 20);
  SavedRun saves;
  std::vector<std::string> warnings;
  TwoSaves() {
    fs::create_directories(run + "/checkpoints");
    for (const int64_t step : {10, 20}) saves.save(run, step, 2, [] {});
  }
  int64_t step() {
    int64_t loaded = 0;
    newest_checkpoint(run, into(warnings), [&](const Checkpoint& file) { loaded = saves.load(file); });
    return loaded;
  }
};

TEST(Damage, AnErrorThatPassesIsTriedAgain) {
  TwoSaves s;
  for (const Op op : {Op::open, Op::pread})
    for (const int error : {EIO, ESTALE, ENOMEM, EACCES}) {
      const Failing failing(op, "step-00000020.h5", error, 1);
      EXPECT_EQ(s.step(), 20) << error_text(error);
      EXPECT_EQ(failing.failed(), 1);
    }
  EXPECT_TRUE(s.warnings.empty());
}

TEST(Damage, AnErrorThatStaysIsNoDamage) {
  TwoSaves s;
  for (const auto& [op, error] : {std::pair{Op::open, ESTALE}, {Op::open, EACCES}, {Op::pread, EIO}}) {
    const Failing failing(op, "step-00000020.h5", error, -1);
    const std::string said = error_of<Error>([&] { s.step(); });
    EXPECT_TRUE(contains(said, s.newest) && contains(said, error_text(error))) << said;
  }
  EXPECT_TRUE(s.warnings.empty());
}

TEST(Damage, ResumeRenamesNothingThatIsNotDamaged) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.save_every = 6;
  c.train.keep_last = 2;
  train(c);
  c.train.resume = {ResumeFrom::newest_if_any};
  c.train.steps = 13;
  const std::string newest = checkpoint_path(dir / "run", 12), good = slurp(newest);
  const auto refuses = [&](const std::string& cause) {
    const std::string said = error_of<Error>([&] { train(c); });
    EXPECT_TRUE(contains(said, newest) && contains(said, cause)) << said;
    EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{6, 12}));
  };
  {
    const Failing failing(Op::pread, "step-00000012.h5", EIO, -1);
    refuses("Input/output error");
  }
  spit(newest, of_the_next_version(good));
  refuses("file format version 2, this program reads 1; use a newer mmfree");
  fs::remove(newest);
  h5::Writer(newest, "tokens").commit();
  refuses("a 'tokens' file where a 'checkpoint' file is expected");
  fs::remove(newest);
  fs::create_directory(newest);
  refuses("not a regular file");
  fs::remove(newest);
  spit(newest, good);
  const Failing failing(Op::open, "step-00000012.h5", ESTALE, 2);
  const std::string said = text_of([&] { EXPECT_EQ(train(c).step, 13); });
  EXPECT_TRUE(contains(said, "resuming from " + newest)) << said;
  EXPECT_EQ(failing.failed(), 2);
}

TEST(Damage, InfoNamesANewerVersion) {
  TwoSaves s;
  spit(s.newest, of_the_next_version(slurp(s.newest)));
  EXPECT_THROW(h5::kind_of(s.newest), VersionError);
}

TEST(Damage, ATernaryFileOfANewerVersionIsNoDamagedOne) {
  const TempDir dir;
  const std::string path = dir / "m.mmfree";
  write_ternary_file(path, hostile::small_random_model(1), EmbeddingStore::f32);
  const std::string good = slurp(path), version = "\"version\":\"1\"";
  std::string newer = good, damaged = good;
  ASSERT_NE(good.find(version), std::string::npos);
  newer[good.find(version) + version.size() - 2] = '2';
  damaged.back() ^= 1;
  spit(path, newer);
  EXPECT_TRUE(contains(error_of<VersionError>([&] { read_ternary_file(path); }), "use a newer mmfree"));
  spit(path, damaged);
  EXPECT_TRUE(contains(error_of<DamagedError>([&] { read_ternary_file(path); }), "does not match its hash"));
}

TEST(Damage, AnImportTriesAgainWhatMayPass) {
  const TempDir dir;
  hostile::write_folder(dir / "hf", 1, int64_t(1) << 30);
  for (const char* file : {"config.json", ".safetensors"}) {
    const Failing failing(Op::open, file, ENOMEM, 2);
    EXPECT_NO_THROW(load_model(dir / "hf"));
    EXPECT_EQ(failing.failed(), 2);
  }
  const Failing failing(Op::pread, ".safetensors", ENOMEM, -1);
  const std::string said = error_of<IoError>([&] { load_model(dir / "hf"); });
  EXPECT_TRUE(contains(said, ".safetensors: read at byte 0 failed: Cannot allocate memory")) << said;
}

}  // namespace
}  // namespace mmfree
