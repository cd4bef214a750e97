#pragma once
#include <omp.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/rng.h"
#include "data/h5/h5.h"
#include "data/prepare.h"
#include "data/text/tokenizer.h"
#include "data/token_shards.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "train/config/config.h"
#include "train/inference/model.h"

namespace mmfree {

/// Made-up text in which a character may take one to four bytes.
inline std::string tiny_text(int words, uint64_t seed) {
  static const char* syllables[] = {"ka", "lo", "mi", "tre", "su", "von", "el", "da", "qui", "é", "ß", "水", "🦉"};
  const RandomStream random(seed, 0, "text");
  uint64_t i = 0;
  const auto below = [&](int n) { return int(random.uniform(i++) * n); };
  std::string text;
  for (int w = 0; w < words; ++w) {
    if (w) text += below(9) ? " " : ".\n";
    for (int k = below(3); k >= 0; --k) text += syllables[below(int(std::size(syllables)))];
  }
  return text;
}

/// A small corpus with its tokenizer and its token shards, made once per process.
class TinyCorpus {
 public:
  static const TinyCorpus& get() {
    static const TinyCorpus corpus;
    return corpus;
  }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const std::string& tokenizer_path() const { return tokenizer_path_; }
  std::string train() const { return dir_ / "shards/train-*.h5"; }
  std::string valid() const { return dir_ / "shards/valid-*.h5"; }

 private:
  TinyCorpus() {
    std::string lines;
    for (uint64_t d = 0; d < 150; ++d) lines += nlohmann::json{{"text", tiny_text(40, d)}}.dump() + "\n";
    spit(dir_ / "corpus.jsonl", lines);
    TokenizerTraining training;
    training.inputs = {dir_ / "corpus.jsonl"};
    training.output = tokenizer_path_;
    training.vocab_size = 320;
    tokenizer_ = Tokenizer::train(training);
    PrepareOptions options;
    options.inputs = training.inputs;
    options.tokenizer = tokenizer_path_;
    options.output = dir_ / "shards";
    options.valid_fraction = 0.1;
    prepare(options);
  }
  TempDir dir_;
  std::string tokenizer_path_ = dir_ / "tok.model";
  std::optional<Tokenizer> tokenizer_;
};

/// A run of a few seconds on the tiny corpus: 12 steps of 4 x 17 tokens, a line of metrics for each.
inline RunConfig tiny_run(const std::string& run_dir) {
  const TinyCorpus& corpus = TinyCorpus::get();
  RunConfig c;
  c.model = tiny_model_config();
  c.model.vocab_size = 323;
  c.model.num_hidden_layers = 2;
  c.model.initializer_range = 0.02;
  c.data.train = {corpus.train()};
  c.data.valid = {corpus.valid()};
  c.data.tokenizer = corpus.tokenizer_path();
  c.data.seq_len = 17;
  c.optim.lr = 1e-2;
  c.optim.warmup_steps = 3;
  c.train.steps = 12;
  c.train.batch_size = 4;
  c.train.log_every = 1;
  c.train.threads = 1;
  c.train.device.kind = DeviceChoice::cpu;
  c.train.run_dir = run_dir;
  c.source = "tiny.yaml";
  return c;
}

/// A model in memory with random parameters, as load_model would give it.
inline Model tiny_model(ModelConfig config, bool with_tokenizer = true) {
  Model m;
  if (with_tokenizer) {
    config.vocab_size = 323;
    m.tokenizer = TinyCorpus::get().tokenizer();
  }
  m.config = config;
  m.seq_len = 17;
  m.params = std::make_unique<ParamStore>(parameter_specs(config), DType::f32);
  randomise(*m.params, 21);
  m.lm = std::make_unique<LM>(*m.params, config);
  m.kind = "checkpoint";
  return m;
}

/// Name and bytes of every dataset of a checkpoint that training changes.
inline std::map<std::string, std::string> learned(const std::string& checkpoint) {
  const h5::Reader file(checkpoint, "checkpoint");
  std::map<std::string, std::string> all;
  for (const std::string& name : file.names()) {
    const Tensor t = file.read_tensor(name, file.dtype(name));
    all[name] = std::string(t.raw(), size_t(t.bytes()));
  }
  return all;
}

/// The whole lines of a run's metrics but those of weights: while it goes on, the last may be half written.
inline std::vector<nlohmann::json> all_metrics(const std::string& run_dir) {
  std::vector<nlohmann::json> rows;
  std::ifstream in(run_dir + "/metrics.jsonl");
  for (std::string line; std::getline(in, line) && !in.eof();)
    if (nlohmann::json row = nlohmann::json::parse(line); !row.contains("checkpoint/weights"))
      rows.push_back(std::move(row));
  return rows;
}

/// The same without the fields that measure time and memory, or tell of ranks.
inline std::vector<nlohmann::json> timeless_metrics(const std::string& run_dir) {
  std::vector<nlohmann::json> rows = all_metrics(run_dir);
  for (nlohmann::json& row : rows)
    for (const char* key : {"time", "train/tokens_per_sec", "train/step_time_ms", "train/data_wait",
                            "train/peak_memory", "train/mfu", "train/ranks", "train/rank_slowest_ms",
                            "train/rank_fastest_ms", "train/rank_slowest", "train/rank_wait", "train/rank_bytes"})
      row.erase(key);
  return rows;
}

/// Sets the number of OpenMP threads for a scope.
class Threads {
 public:
  explicit Threads(int n) { omp_set_num_threads(n); }
  ~Threads() { omp_set_num_threads(before_); }

 private:
  int before_ = omp_get_max_threads();
};

}  // namespace mmfree
