#pragma once
#include <unistd.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/system/files.h"
#include "data/prepare.h"
#include "data/token_shards.h"
#include "tests/support/corpus.h"
#include "tests/support/saved_run.h"
#include "tests/support/temp_dir.h"
#include "train/formats/hf_folder.h"
#include "train/formats/ternary_file.h"
#include "train/run/metrics.h"

namespace mmfree {

/// The exit status of an operation that found its own result wrong after it had claimed success.
inline constexpr int kFalseSuccess = 99;

/// Something that reads or writes files and may meet faults at any of its calls.
class FaultOperation {
 public:
  virtual ~FaultOperation() = default;
  virtual const char* name() const = 0;
  /// Whether it changes files.
  virtual bool writes() const { return true; }
  /// Makes `dir` and the last good state in it.
  virtual void prepare(const std::string& dir) = 0;
  /// Does it. Faults may begin when `begin` is called.
  virtual void run(const std::string& dir, const std::function<void()>& begin) = 0;
  /// Without faults, after `run`: @throws Error unless the state in `dir` is the old or the new one, or if `run`
  /// succeeded, the new one.
  virtual void check(const std::string& dir, bool succeeded) = 0;

 protected:
  /// Ends a process that took a wrong result for a right one.
  static void require_truth(bool right) {
    if (!right) _exit(kFalseSuccess);
  }
};

/// Save, load: a checkpoint.
class SaveOperation : public FaultOperation {
 public:
  const char* name() const override { return "save"; }
  void prepare(const std::string& dir) override { start_run(run_, dir, 10); }
  void run(const std::string& dir, const std::function<void()>& begin) override {
    run_.assume(20);
    begin();
    run_.save_now(dir, 20, 1, [] {});
  }
  void check(const std::string& dir, bool succeeded) override {
    const int64_t step = run_.restart(dir);
    MMFREE_CHECK(Error, step == 20 || (step == 10 && !succeeded), "step ", step, " is found");
  }

 private:
  SavedRun run_;
};

class LoadOperation : public FaultOperation {
 public:
  const char* name() const override { return "load"; }
  bool writes() const override { return false; }
  void prepare(const std::string& dir) override {
    start_run(run_, dir, 10);
    run_.save(dir, 20, 2, [] {});
  }
  void run(const std::string& dir, const std::function<void()>& begin) override {
    begin();
    std::vector<std::string> warnings;
    int64_t step = 0;
    newest_checkpoint(dir, into(warnings), [&](const Checkpoint& file) { step = run_.load(file); });
    // Going back is right if the reason is told.
    if (!step) throw IoError(warnings.empty() ? "no checkpoint found in silence" : warnings.back());
    require_truth(step == 20 || (step == 10 && warnings.size() == 1));
  }
  void check(const std::string& dir, bool) override {
    MMFREE_CHECK(Error, run_.restart(dir) == 20, "reading changed the run folder");
  }

 private:
  SavedRun run_;
};

/// Writing a token shard over an older one, and reading several.
class ShardOperation : public FaultOperation {
 public:
  explicit ShardOperation(bool writes) : writes_(writes) {}
  const char* name() const override { return writes_ ? "shard_write" : "shard_read"; }
  bool writes() const override { return writes_; }
  void prepare(const std::string& dir) override {
    std::filesystem::create_directories(dir);
    write(dir, 0, 1);
    write(dir, 1, 1);
  }
  void run(const std::string& dir, const std::function<void()>& begin) override {
    begin();
    if (writes_) return write(dir, 0, 2);
    const TokenShards shards({dir + "/*.h5"});
    std::vector<int32_t> ids(size_t(shards.total_tokens()));
    shards.read(0, shards.total_tokens(), ids.data());
    require_truth(ids == both(1));
  }
  void check(const std::string& dir, bool succeeded) override {
    const TokenShards shards({dir + "/*.h5"});
    std::vector<int32_t> ids(size_t(shards.total_tokens()));
    shards.read(0, shards.total_tokens(), ids.data());
    MMFREE_CHECK(Error, ids == both(2) || (ids == both(1) && !(writes_ && succeeded)), "the shards are not as written");
  }

 private:
  static std::vector<int32_t> tokens(int shard, int version) {
    std::vector<int32_t> ids(40000);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = int32_t((i * size_t(7 + version) + size_t(shard)) % 300);
    return ids;
  }
  static std::vector<int32_t> both(int first_version) {
    std::vector<int32_t> ids = tokens(0, first_version), second = tokens(1, 1);
    ids.insert(ids.end(), second.begin(), second.end());
    return ids;
  }
  static void write(const std::string& dir, int shard, int version) {
    ShardInfo info;
    info.split = "train";
    info.vocab_size = 300;
    info.tokenizer_hash = "0123456789abcdef";
    info.piece_bytes.assign(300, 3);
    ShardWriter writer(concat(dir, "/train-0000", shard, ".h5"), info, "made up");
    writer.add(tokens(shard, version));
    writer.commit();
  }
  bool writes_;
};

/// A small model whose parameters depend on a seed.
inline Model seeded_model(uint64_t seed) {
  Model model;
  model.config = tiny_model_config();
  model.config.num_hidden_layers = 1;
  model.seq_len = 17;
  model.params = std::make_unique<ParamStore>(parameter_specs(model.config), DType::f32);
  randomise(*model.params, seed);
  model.lm = std::make_unique<LM>(*model.params, model.config);
  return model;
}

class TernaryOperation : public FaultOperation {
 public:
  const char* name() const override { return "ternary"; }
  void prepare(const std::string& dir) override {
    std::filesystem::create_directories(dir);
    write(dir, 1);
  }
  void run(const std::string& dir, const std::function<void()>& begin) override {
    Model model = seeded_model(2);
    begin();
    export_ternary(dir + "/model.mmfree", model, EmbeddingStore::int8);
  }
  void check(const std::string& dir, bool succeeded) override {
    read_ternary_file(dir + "/model.mmfree");
    const std::string got = slurp(dir + "/model.mmfree");
    TempDir expected;
    write(expected.path(), 2);
    if (got == slurp(expected / "model.mmfree")) return;
    MMFREE_CHECK(Error, !succeeded, "the file is not the new one");
    write(expected.path(), 1);
    MMFREE_CHECK(Error, got == slurp(expected / "model.mmfree"), "the file is neither the old nor the new one");
  }

 private:
  static void write(const std::string& dir, uint64_t seed) {
    write_ternary_file(dir + "/model.mmfree", seeded_model(seed), EmbeddingStore::int8);
  }
};

/// An export to a folder, over an older one or not.
class HfOperation : public FaultOperation {
 public:
  explicit HfOperation(bool over_older = true) : over_older_(over_older) {}
  const char* name() const override { return over_older_ ? "hf" : "hf_new"; }
  void prepare(const std::string& dir) override {
    std::filesystem::create_directories(dir);
    if (over_older_) write(dir, seeded_model(1));
  }
  void run(const std::string& dir, const std::function<void()>& begin) override {
    const Model model = seeded_model(2);
    begin();
    write(dir, model);
  }
  void check(const std::string& dir, bool succeeded) override {
    if (!over_older_ && !succeeded && !std::filesystem::exists(model_dir(dir))) return;
    if (holds(dir, seeded_model(2))) return;
    MMFREE_CHECK(Error, !succeeded, "the folder does not hold the new model");
    MMFREE_CHECK(Error, over_older_ && holds(dir, seeded_model(1)),
                 "the folder holds neither the old nor the new model");
  }

 private:
  static std::string model_dir(const std::string& dir) { return dir + "/model"; }
  static void write(const std::string& dir, const Model& model) {
    std::vector<std::pair<std::string, Shape>> tensors;
    for (const ParamSpec& spec : model.params->specs()) tensors.emplace_back(spec.name, spec.shape);
    HfWriteOptions options;
    options.torch_dtype = "bfloat16";
    options.max_shard_bytes = 20000;
    options.tokenizer_model = "some tokenizer";
    options.overwrite = true;
    write_hf_folder(
        model_dir(dir), model.config, tensors, [&](const std::string& name) { return (*model.params)[name].value(); },
        options);
  }
  static bool holds(const std::string& dir, const Model& model) {
    const HfFolder folder(model_dir(dir));
    read_hf_config(model_dir(dir));
    for (const ParamSpec& spec : model.params->specs()) {
      const Tensor value = (*model.params)[spec.name].value();
      Tensor stored(value.shape(), DType::bf16);
      cast(value, stored);
      if (!same_bits(stored, folder.read(spec.name, DType::bf16))) return false;
    }
    return true;
  }
  bool over_older_;
};

/// Preparing a corpus over an older one.
class PrepareOperation : public FaultOperation {
 public:
  const char* name() const override { return "prepare"; }
  void prepare(const std::string& dir) override {
    std::filesystem::create_directories(dir);
    TempDir scratch;
    TokenizerTraining training;
    training.inputs = {spit(scratch / "text.txt", testing_data::babble(3000, 7))};
    training.output = tokenizer(dir);
    training.vocab_size = 300;
    Tokenizer::train(training);
    for (const char* version : {"old", "new"}) {
      std::filesystem::create_directory(text(dir, version));
      for (unsigned i = 0; i < 3; ++i)
        spit(concat(text(dir, version), "/", i, ".txt"), testing_data::babble(version[0] == 'o' ? 700 : 900, i));
      write(dir, version, expected(dir, version), false);
    }
    write(dir, "old", output(dir), false);
  }
  void run(const std::string& dir, const std::function<void()>& begin) override {
    begin();
    write(dir, "new", output(dir), true);
  }
  void check(const std::string& dir, bool succeeded) override {
    if (std::filesystem::exists(output(dir) + "/" + kPublishing)) {
      // Between the two: nobody reads it, and prepare makes it anew without being asked to overwrite.
      MMFREE_CHECK(Error, !succeeded && is_refused(output(dir)), "a mixture of shards is taken for a corpus");
      write(dir, "new", output(dir), false);
      succeeded = true;
    }
    open(output(dir));
    const auto whole = shards(expected(dir, "new"));
    const auto got = shards(output(dir));
    if (got == whole) return;
    MMFREE_CHECK(Error, !succeeded, "the corpus is not the new one");
    MMFREE_CHECK(Error, got == shards(expected(dir, "old")), "the corpus is neither the old nor the new one");
    write(dir, "new", output(dir), true);
    MMFREE_CHECK(Error, shards(output(dir)) == whole, "going on from there does not give the new corpus");
  }

 private:
  static std::string tokenizer(const std::string& dir) { return dir + "/tokenizer.model"; }
  static std::string output(const std::string& dir) { return dir + "/corpus"; }
  static std::string text(const std::string& dir, const std::string& version) { return dir + "/text-" + version; }
  static std::string expected(const std::string& dir, const std::string& version) {
    return dir + "/expected-" + version;
  }
  static void write(const std::string& dir, const std::string& version, const std::string& output, bool overwrite) {
    PrepareOptions options;
    options.inputs = {text(dir, version)};
    options.tokenizer = tokenizer(dir);
    options.output = output;
    options.shard_tokens = 2000;
    options.valid_fraction = 0.2;
    options.overwrite = overwrite;
    mmfree::prepare(options);
  }
  /// As training and evaluation do. @throws Error
  static void open(const std::string& corpus) {
    for (const char* split : {"/train-*.h5", "/valid-*.h5"}) TokenShards({corpus + split});
  }
  static bool is_refused(const std::string& corpus) {
    try {
      open(corpus);
      return false;
    } catch (const Error&) {
      return true;
    }
  }
  /// Tokens of each shard by its name.
  static std::map<std::string, std::vector<int32_t>> shards(const std::string& corpus) {
    std::map<std::string, std::vector<int32_t>> all;
    for (const std::string& name : names_in(corpus)) {
      if (!name.ends_with(".h5")) continue;
      const TokenShards shard({corpus + "/" + name});
      std::vector<int32_t>& ids = all[name];
      ids.resize(size_t(shard.total_tokens()));
      shard.read(0, shard.total_tokens(), ids.data());
    }
    return all;
  }
};

/// A resumed run's metrics: what a later step left goes, a line is added and brought to the disk.
class MetricsOperation : public FaultOperation {
 public:
  const char* name() const override { return "metrics"; }
  void prepare(const std::string& dir) override {
    std::filesystem::create_directories(dir);
    spit(file(dir), lines(3));
  }
  void run(const std::string& dir, const std::function<void()>& begin) override {
    begin();
    MetricsWriter metrics(file(dir), 2);
    metrics.write({{"step", int64_t(3)}, {"again", int64_t(1)}});
    try {
      metrics.sync();
    } catch (const IoError&) {
      metrics.sync();  // as the next save does; what a failed sync leaves in doubt is written anew
    }
  }
  void check(const std::string& dir, bool succeeded) override {
    const std::string got = slurp(file(dir));
    if (got == lines(2) + "{\"step\": 3, \"again\": 1}\n") return;
    MMFREE_CHECK(Error, !succeeded && (got == lines(3) || got == lines(2)), "metrics are lost: ", got);
  }

 private:
  static std::string file(const std::string& dir) { return dir + "/metrics.jsonl"; }
  static std::string lines(int64_t steps) {
    std::string all;
    for (int64_t step = 1; step <= steps; ++step) all += metrics_line({{"step", step}}) + "\n";
    return all;
  }
};

inline std::vector<std::unique_ptr<FaultOperation>> fault_operations() {
  std::vector<std::unique_ptr<FaultOperation>> all;
  all.push_back(std::make_unique<SaveOperation>());
  all.push_back(std::make_unique<LoadOperation>());
  all.push_back(std::make_unique<ShardOperation>(false));
  all.push_back(std::make_unique<ShardOperation>(true));
  all.push_back(std::make_unique<TernaryOperation>());
  all.push_back(std::make_unique<HfOperation>());
  all.push_back(std::make_unique<PrepareOperation>());
  all.push_back(std::make_unique<MetricsOperation>());
  return all;
}

}  // namespace mmfree
