// Checkpoints: what is saved comes back to the bit, and what is damaged or does not fit is refused.
#include <gtest/gtest.h>

#include <cmath>
#include <utility>

#include "optim/adamw.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_run.h"
#include "train/run/run_folder.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

struct Saved {
  TempDir dir;
  RunConfig config = tiny_run("run");
  ParamStore params{parameter_specs(config.model), DType::f32};
  AdamW optimizer{params, config.optim};
  LoopState state{17, 15, 2, 12345, "fingerprint"};
  DecodeState carried;
  std::string path = dir / "a.h5";

  Saved() {
    randomise(params, 1);
    // Only the parameters' own elements are saved, so the padding stays zero.
    for (size_t i = 0; i < params.specs().size(); ++i)
      for (auto [flat, factor] : {std::pair{optimizer.m(), -2.0f}, {optimizer.v(), 0.5f}}) {
        Tensor to = params.view(flat, i), from = params.view(params.values(), i);
        for (int64_t k = 0; k < to.size(); ++k) to.mut<float>()[k] = factor * from.data<float>()[k];
      }
    optimizer.set_updates(15);
  }
  void save(bool with_moments = true) {
    const FlatState flat{params.values(), with_moments ? optimizer.states() : std::vector<OptimizerState>(), carried};
    save_checkpoint(path, config, params, flat, state, "some tokenizer bytes");
  }
};

TEST(Checkpoint, WhatIsNotFiniteIsNeverSaved) {
  Saved s;
  s.save();
  const std::string older = slurp(s.path);
  const size_t last = s.params.specs().size() - 1;
  for (float bad : {NAN, INFINITY, -INFINITY})
    for (const auto& [flat, name] :
         {std::pair{s.params.values(), "param/"}, {s.optimizer.m(), "adam_m/"}, {s.optimizer.v(), "adam_v/"}}) {
      Tensor t = s.params.view(flat, last);
      float& element = t.mut<float>()[t.size() - 1];
      const float before = std::exchange(element, bad);
      try {
        s.save();
        ADD_FAILURE() << bad << " in " << name << " was saved";
      } catch (const DivergedError& e) {
        EXPECT_NE(std::string(e.what()).find(name + s.params.specs()[last].name), std::string::npos) << e.what();
      }
      element = before;
    }
  EXPECT_EQ(slurp(s.path), older);
  EXPECT_EQ(s.dir.files(), 1u);
}

TEST(Checkpoint, WhatIsNotFiniteIsNotLoadedEither) {
  Saved s;
  s.save();
  const Checkpoint good(s.path);
  const std::string bad_name = s.params.specs().back().name;
  h5::Writer writer(s.dir / "bad.h5", "checkpoint");
  writer.attribute("config", to_yaml(s.config));
  for (const char* count : {"step", "updates", "skipped_in_row", "tokens"}) writer.attribute(count, int64_t(1));
  writer.attribute("data", "");
  for (const ParamSpec& spec : s.params.specs()) {
    Tensor value = s.params[spec.name].value().clone();
    if (spec.name == bad_name) value.mut<float>()[value.size() - 1] = NAN;
    writer.write("param/" + spec.name, value);
  }
  writer.commit();
  try {
    Checkpoint(s.dir / "bad.h5").load(s.params, nullptr);
    ADD_FAILURE() << "loaded";
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("'param/" + bad_name + "' holds a NaN"), std::string::npos) << e.what();
  }
}

TEST(Checkpoint, EverythingComesBack) {
  Saved s;
  s.save();
  const auto bytes = int64_t(fs::file_size(s.path));
  const int64_t expected =
      checkpoint_bytes(s.params, {s.params.values(), s.optimizer.states()}, "some tokenizer bytes");
  EXPECT_GE(expected, bytes);
  EXPECT_LT(expected, bytes + (256 << 10));
  const Checkpoint file(s.path);
  EXPECT_TRUE(compare(file.config(), s.config).empty());
  EXPECT_EQ(file.tokenizer_model(), "some tokenizer bytes");
  EXPECT_EQ(file.state().step, 17);
  EXPECT_EQ(file.state().updates, 15);
  EXPECT_EQ(file.state().skipped_in_row, 2);
  EXPECT_EQ(file.state().tokens, 12345);
  EXPECT_EQ(file.state().data, "fingerprint");
  EXPECT_TRUE(file.has_states());
  ParamStore params(parameter_specs(s.config.model), DType::f32);
  AdamW optimizer(params, s.config.optim);
  file.load(params, &optimizer);
  EXPECT_TRUE(same_bits(params.values(), s.params.values()));
  EXPECT_TRUE(same_bits(optimizer.m(), s.optimizer.m()));
  EXPECT_TRUE(same_bits(optimizer.v(), s.optimizer.v()));
  EXPECT_EQ(optimizer.updates(), 15);
}

TEST(Checkpoint, WithoutMomentsIsAModelOnly) {
  Saved s;
  s.save(false);
  const Checkpoint file(s.path);
  EXPECT_FALSE(file.has_states());
  file.load(s.params, nullptr);
  EXPECT_THROW(file.load(s.params, &s.optimizer), DataError);
}

/// The state of two layers for `rows` rows of a batch.
DecodeState some_state(int64_t rows, uint32_t seed) {
  DecodeState state(2);
  for (int64_t l : {0, 1}) state.layer(l).at(0) = random_tensor({rows, 37}, DType::f32, seed + uint32_t(l));
  return state;
}

TEST(Checkpoint, ACarriedStateComesBack) {
  Saved s;
  const int64_t without = checkpoint_bytes(s.params, {s.params.values(), s.optimizer.states()}, "");
  s.carried = some_state(1000, 5);
  s.save();
  const int64_t with = checkpoint_bytes(s.params, {s.params.values(), s.optimizer.states(), s.carried}, "");
  EXPECT_GE(with, without + s.carried.bytes());
  EXPECT_GE(with, int64_t(fs::file_size(s.path)));
  const Checkpoint file(s.path, h5::Verify::while_reading);
  const DecodeState loaded = some_state(1000, 9);
  file.load(s.params, &s.optimizer, loaded);
  loaded.for_each(
      [&](int64_t l, size_t i, const Tensor& t) { EXPECT_TRUE(same_bits(t, s.carried.layer(l).at(i))) << l; });
  EXPECT_NO_THROW(Checkpoint(s.path).load(s.params, nullptr)) << "a model without its state";

  const auto refused = [&](const DecodeState& state, const char* name) {
    expect_error<ConfigError>({s.path.c_str(), name, "data.carry_state", "train.batch_size"},
                              [&] { Checkpoint(s.path).load(s.params, &s.optimizer, state); });
  };
  refused(some_state(999, 1), "'state/0/0' of shape [999, 37]");
  s.carried.layer(1).tensors.clear();
  s.save();
  refused(some_state(1000, 1), "'state/1/0' of shape [1000, 37]");
  s.carried = some_state(1000, 5);
  s.carried.layer(1).at(0).mut<float>()[36999] = NAN;
  try {
    s.save();
    ADD_FAILURE() << "a NaN was saved";
  } catch (const DivergedError& e) {
    EXPECT_NE(std::string(e.what()).find("'state/1/0'"), std::string::npos) << e.what();
  }
}

TEST(Checkpoint, ACarriedStateIsNoStateOfAnOptimizer) {
  Saved s;
  s.carried = some_state(3, 5);
  s.save(false);
  EXPECT_FALSE(Checkpoint(s.path).has_states());
  s.save();
  EXPECT_TRUE(Checkpoint(s.path).has_states());
}

TEST(Checkpoint, EveryFlippedByteAndEveryTruncationIsFound) {
  Saved s;
  s.save();
  const std::string bytes = slurp(s.path);
  for (size_t i = 0; i < bytes.size(); i += 1 + bytes.size() / 97) {
    std::string bad = bytes;
    bad[i] = char(bad[i] ^ 0x10);
    spit(s.path, bad);
    EXPECT_THROW(Checkpoint{s.path}, DataError) << "byte " << i;
    spit(s.path, bytes.substr(0, i));
    EXPECT_THROW(Checkpoint{s.path}, DataError) << "cut at " << i;
  }
  spit(s.path, bytes + '\0');
  EXPECT_THROW(Checkpoint{s.path}, DataError);
  EXPECT_THROW(Checkpoint{s.dir / "none.h5"}, MissingError);
  EXPECT_THROW(Checkpoint{s.dir.path()}, Error);
}

TEST(Checkpoint, WhatTheLoopRemembersComesBack) {
  Saved s;
  s.state.norms = {0.1, 31};
  s.state.evaluations = {12, 3.3, 2, 8, EvaluationHistory::kNone};
  s.state.rollbacks = 3, s.state.left_out = 1 << 20;
  s.save();
  const LoopState got = Checkpoint(s.path).state();
  EXPECT_EQ(to_json(s.state), to_json(got));
  EXPECT_EQ(0.1, got.norms.mean);
  EXPECT_EQ(EvaluationHistory::kNone, got.evaluations.best_loss);
  LoopState state;
  for (const char* bad : {"", "[]", "{", R"({"norms": -1})", R"({"norms": 1.5})", R"({"norms": "1"})",
                          R"({"norm_mean": null})", R"({"norm_mean": -1})", R"({"evaluated": -2})",
                          R"({"left_out": 9223372036854775807})", R"({"rollbacks": 1, "rollbacks": 2})"})
    EXPECT_THROW(read_json(bad, "x.h5", state), DataError) << bad;
  state = {};
  read_json(R"({"rollbacks": 7, "of a newer version": [1]})", "x.h5", state);
  EXPECT_EQ(7, state.rollbacks);
  EXPECT_EQ(-1, state.evaluations.step) << "what is absent keeps its default";
}

TEST(Checkpoint, NegativeCountsAreRefused) {
  for (int64_t LoopState::*count :
       {&LoopState::step, &LoopState::updates, &LoopState::skipped_in_row, &LoopState::tokens}) {
    Saved s;
    s.state.*count = -1;
    s.save();
    EXPECT_THROW(Checkpoint{s.path}, DataError);
  }
}

TEST(Checkpoint, AConfigurationThatDoesNotFitTheTensorsIsRefused) {
  for (const auto& change : std::vector<std::function<void(ModelConfig&)>>{
           [](ModelConfig& m) { m.hidden_size = 38; }, [](ModelConfig& m) { m.num_hidden_layers = 3; },
           [](ModelConfig& m) { m.vocab_size = 324; },
           // Terabytes, by the configuration's word alone.
           [](ModelConfig& m) { m.vocab_size = 1 << 24, m.hidden_size = 1 << 17, m.num_hidden_layers = 4096; }}) {
    Saved s;
    change(s.config.model);
    s.save();
    EXPECT_THROW(load_model(s.path), DataError);
  }
}

/// A line of /proc/self/status, in KiB.
int64_t memory(const std::string& key) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(key + ":")) return std::stoll(line.substr(key.size() + 1));
  return -1;
}

TEST(Checkpoint, SavingNeedsTheSameLittleMemoryAtAnySize) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer keeps what is freed";
#endif
  for (const int64_t vocab_size : {20000, 200000}) {
    Saved s;
    s.config.model.vocab_size = vocab_size;
    const ParamStore params(parameter_specs(s.config.model), DType::f32);
    const FlatState flat{params.values().clone(),
                         {{"adam_m", params.values().clone()}, {"adam_v", params.values().clone()}}};
    const int64_t before = memory("VmRSS");
    std::ofstream("/proc/self/clear_refs") << 5;  // the peak starts anew
    save_checkpoint(s.path, s.config, params, flat, s.state, "");
    EXPECT_GT(fs::file_size(s.path), uintmax_t(vocab_size) * 37 * 4 * 3);
    EXPECT_LT(memory("VmHWM") - before, 8 << 10) << vocab_size;
  }
}

TEST(Checkpoint, AnUnwritablePathLeavesNothing) {
  Saved s;
  s.path = s.dir / "no/such/folder/a.h5";
  EXPECT_THROW(s.save(), CreateError);
  s.path = s.dir / "folder";
  fs::create_directories(s.dir / "folder/inside");
  EXPECT_THROW(s.save(), Error);
  EXPECT_TRUE(fs::is_directory(s.dir / "folder/inside"));
  EXPECT_EQ(std::distance(fs::directory_iterator(s.dir.path()), {}), 1) << "a temporary file was left behind";
}

TEST(Checkpoint, DamageFoundWhileLoadingTurnsToTheOlderOne) {
  Saved older, newer;
  const std::string run = older.dir / "run";
  fs::create_directories(run + "/checkpoints");
  randomise(newer.params, 2);
  newer.state.step = 18;
  older.path = checkpoint_path(run, 17), older.save();
  newer.path = checkpoint_path(run, 18), newer.save();
  const std::string good = slurp(newer.path);
  const auto position = [&](const std::string& bytes) {
    const size_t at = good.find(bytes);
    EXPECT_NE(at, std::string::npos);
    return at;
  };
  const auto first_bytes = [&](const Tensor& flat, size_t i) {
    return std::string(newer.params.view(flat, i).raw(), 16);
  };
  const Tensor table = newer.params.view(newer.params.values(), 0);
  std::string zeros = good;  // in place of a whole chunk and its checksum: to HDF5 these match
  zeros.replace(position(first_bytes(newer.params.values(), 0)), size_t(table.bytes()) + 4, size_t(table.bytes()) + 4,
                '\0');
  std::vector<std::string> damaged = {zeros, good.substr(0, good.size() - 1)};
  for (const size_t at :
       {position(first_bytes(newer.params.values(), 0)), position(first_bytes(newer.optimizer.m(), 1)),
        position("some tokenizer bytes"), good.size() - 1}) {
    damaged.push_back(good);
    damaged.back()[at] ^= 1;
  }
  for (size_t at = 0; at < good.size(); at += 1 + good.size() / 97) {
    damaged.push_back(good);
    damaged.back()[at] ^= 0x10;
  }
  const auto step_loaded = [&](bool with_states, std::vector<std::string>& warnings) {
    ParamStore params(parameter_specs(older.config.model), DType::f32);
    AdamW optimizer(params, older.config.optim);
    const auto file = newest_checkpoint(
        run, into(warnings), [&](const Checkpoint& c) { c.load(params, with_states ? &optimizer : nullptr); });
    Saved& expected = file && file->state().step == 18 ? newer : older;
    EXPECT_TRUE(same_bits(params.values(), expected.params.values()));
    EXPECT_TRUE(!with_states || same_bits(optimizer.m(), expected.optimizer.m()));
    EXPECT_TRUE(!with_states || same_bits(optimizer.v(), expected.optimizer.v()));
    return file ? file->state().step : 0;
  };
  for (const bool with_states : {true, false}) {
    std::vector<std::string> warnings;
    spit(newer.path, good);
    EXPECT_EQ(step_loaded(with_states, warnings), 18);
    EXPECT_TRUE(warnings.empty());
    for (size_t i = 0; i < damaged.size(); ++i) {
      spit(newer.path, damaged[i]);
      warnings.clear();
      EXPECT_EQ(step_loaded(with_states, warnings), 17) << i;
      ASSERT_EQ(warnings.size(), 1u) << i;
      EXPECT_TRUE(warnings[0].starts_with("passing over a damaged checkpoint: " + newer.path)) << warnings[0];
    }
  }
}

TEST(Checkpoint, AnErrorThatIsNoDamageDoesNotTurnToTheOlderOne) {
  Saved s;
  const std::string run = s.dir / "run";
  fs::create_directories(run + "/checkpoints");
  for (const int64_t step : {17, 18}) s.path = checkpoint_path(run, step), s.save();
  std::vector<std::string> warnings;
  EXPECT_THROW(newest_checkpoint(run, into(warnings), [](const Checkpoint&) { throw ConfigError("does not fit"); }),
               ConfigError);
  EXPECT_TRUE(warnings.empty());
}

TEST(Checkpoints, AreFoundByNameAndTheNewestIntactOneIsTaken) {
  Saved s;
  const std::string run = s.dir / "run";
  std::vector<std::string> warnings;
  EXPECT_TRUE(checkpoint_steps(run).empty());
  spit(s.dir / "checkpoints", "a file where the folder of checkpoints is expected");
  EXPECT_THROW(checkpoint_steps(s.dir.path()), IoError);
  EXPECT_FALSE(newest_checkpoint(run, into(warnings)));
  fs::create_directories(run + "/checkpoints");
  for (int64_t step : {5, 100, 20}) s.path = checkpoint_path(run, step), s.save();
  EXPECT_EQ(checkpoint_path("r", 1000), "r/checkpoints/step-00001000.h5");
  for (const char* name :
       {"step-7.h5", "step-00000009.h5.mmfree-tmp-1-1", "step-.h5", "best.h5", "step--0000001.h5", "step-0000000x.h5"})
    spit(run + "/checkpoints/" + name, "");
  EXPECT_EQ(checkpoint_steps(run), (std::vector<int64_t>{5, 20, 100}));
  EXPECT_EQ(newest_checkpoint(run, into(warnings))->path(), checkpoint_path(run, 100));
  EXPECT_TRUE(warnings.empty());

  spit(checkpoint_path(run, 100), "");
  EXPECT_EQ(newest_checkpoint(run, into(warnings))->path(), checkpoint_path(run, 20));
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("step-00000100.h5"), std::string::npos);

  s.path = checkpoint_path(run, 30), s.save();
  retain_checkpoints(run, 30, {2});
  EXPECT_EQ(checkpoint_steps(run), (std::vector<int64_t>{20, 30, 100}));
  EXPECT_THROW(retain_checkpoints(run, 100, {1}), DataError) << "it is damaged";
  EXPECT_EQ(checkpoint_steps(run), (std::vector<int64_t>{20, 30, 100}));
  s.path = checkpoint_path(run, 100);
  EXPECT_THROW(s.save(), CreateError) << "what is no checkpoint is not replaced";
  fs::remove(s.path);
  s.save();
  const std::string shard = checkpoint_path(run, 10);
  h5::Writer(shard, "tokens").commit();
  retain_checkpoints(run, 100, {1});
  EXPECT_TRUE(fs::remove(shard)) << "only checkpoints are removed";
  EXPECT_EQ(checkpoint_steps(run), (std::vector<int64_t>{100}));
  EXPECT_TRUE(fs::exists(run + "/checkpoints/best.h5"));
}

}  // namespace
}  // namespace mmfree
