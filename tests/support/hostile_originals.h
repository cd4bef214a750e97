#pragma once
#include <string>
#include <vector>

#include "optim/adamw.h"
#include "tests/support/corpus.h"
#include "tests/support/hostile.h"
#include "tests/support/llama_models.h"
#include "tests/support/tiny_run.h"
#include "train/formats/hf_folder.h"

/// Files as mmfree itself writes them, small, one for each reader that is attacked.
namespace mmfree {

namespace hostile {

inline ModelConfig small_model() {
  ModelConfig c = tiny_model_config();
  c.vocab_size = 5, c.hidden_size = 3, c.intermediate_size = 2, c.num_hidden_layers = 2;
  c.bos_token_id = c.eos_token_id = -1;
  c.precision_rules = {{{1}, {"i_proj"}, Precision::bf16}};
  return c;
}

inline void write_shard(const std::string& path, int generation) {
  ShardWriter writer(path, shard_info(TinyCorpus::get().tokenizer(), "train"), "made up");
  for (uint64_t d = 0; d < 4; ++d)
    writer.add(TinyCorpus::get().tokenizer().encode(tiny_text(30, d + 10 * uint64_t(generation))));
  writer.commit();
}

inline void write_small_checkpoint(const std::string& path, int generation) {
  RunConfig config;
  config.model = small_model();
  ParamStore params(parameter_specs(config.model), DType::f32);
  randomise(params, uint64_t(generation));
  AdamW optimizer(params, config.optim);
  const FlatState flat{params.values(), optimizer.states()};
  save_checkpoint(path, config, params, flat, {12 + generation, 12, 0, 816, "0123456789abcdef"},
                  TinyCorpus::get().tokenizer().serialized());
}

inline void write_safetensors(const std::string& path, int generation) {
  SafetensorsWriter writer(path, {{"format", "pt"}, {"generation", std::to_string(generation)}});
  const char* dtypes[] = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"};
  for (const std::string dtype : dtypes) writer.declare("t." + dtype, dtype, {3, 2});
  writer.declare("empty", "F32", {0, 4});
  const float reals[] = {1, -2, 0.5f, 3, -0.25f, float(generation)};
  const uint8_t integers[] = {0, 1, 2, 3, 4, uint8_t(generation)};
  for (const std::string dtype : dtypes)
    writer.write("t." + dtype,
                 dtype[0] == 'F' || dtype == "BF16" ? Tensor::from({3, 2}, reals) : Tensor::from({3, 2}, integers));
  writer.write("empty", Tensor({0, 4}, DType::f32));
  writer.commit();
}

/// A value of each kind of key, a tensor of each type.
inline void write_gguf(const std::string& path, int generation) {
  GgufWriter writer(path, {{"general.architecture", GgufValue::text("none")},
                           {"a.u32", GgufValue::u32(uint32_t(generation))},
                           {"a.f32", GgufValue::f32(0.5f)},
                           {"a.bool", GgufValue::boolean(true)},
                           {"a.texts", GgufValue::array(std::vector<std::string>{"x", "", "\n"})},
                           {"a.numbers", GgufValue::array(std::vector<int32_t>{1, -2, generation})}});
  Tensor values({1, 256}, DType::f32);
  for (int64_t i = 0; i < 256; ++i) values.mut<float>()[i] = float((i * 7 + generation) % 3 - 1);
  for (const GgmlType type : kAllGgmlTypes) writer.declare(name_of(type), type, values.shape());
  for (const GgmlType type : kAllGgmlTypes) writer.write(name_of(type), packed("test", type, values));
  writer.commit();
}

inline ModelConfig small_llama() {
  ModelConfig c = tiny_llama();
  make_bitnet(c, true);
  c.num_hidden_layers = 1;
  return c;
}

inline Model small_random_model(int generation, const ModelConfig& config = small_model()) {
  Model m = tiny_model(config, false);
  randomise(*m.params, uint64_t(generation));
  m.lm = std::make_unique<LM>(*m.params, m.config);
  return m;
}

inline void write_folder(const std::string& dir, int generation, int64_t shard_bytes,
                         const ModelConfig& config = small_model()) {
  const Model m = small_random_model(generation, config);
  std::vector<std::pair<std::string, Shape>> tensors;
  for (const ParamSpec& spec : m.params->specs()) tensors.emplace_back(spec.name, spec.shape);
  HfWriteOptions options;
  options.max_shard_bytes = shard_bytes;
  options.overwrite = true;
  write_hf_folder(
      dir, m.config, tensors, [&](const std::string& name) { return (*m.params)[name].value(); }, options);
}

inline std::string some_yaml(int generation) {
  RunConfig c;
  c.model = small_model();
  c.data.train = {"a/train-*.h5", "b"};
  c.optim.lr = 0.001 * (generation + 1);
  c.train.max_time = 5400;
  return "# A comment\n" + to_yaml(c);
}

inline std::string some_lines(int generation) {
  std::string lines;
  for (uint64_t d = 0; d < 8; ++d)
    lines +=
        nlohmann::json{{"text", tiny_text(20, d + 10 * uint64_t(generation))}, {"meta", {{"id", d}}}}.dump() + "\n";
  return lines + "\n";
}

/// Rows of every form.
inline std::string some_elements(int generation) {
  nlohmann::json rows = nlohmann::json::array();
  for (uint64_t d = 0; d < 3; ++d) {
    const std::string text = tiny_text(8, d + 10 * uint64_t(generation));
    rows.push_back({{"text", text}, {"meta", {{"redpajama_set_name", "RedPajamaC4"}}}});
    rows.push_back({{"prompt", text}, {"completion", text}});
    rows.push_back({{"ids", {1, d, 7}}, {"mask", {0, 1, generation % 2}}});
  }
  return rows.dump(1);
}

}  // namespace hostile

/// Prepares `dir` so that a file of this reader can stand in it, and returns the bytes of a good one. Two generations
/// are two files of the same kind that could be mistaken for each other.
inline std::string hostile_original(const HostileReader& reader, const std::string& dir, int generation) {
  using namespace hostile;
  const std::string path = dir + "/" + reader.file, &name = reader.name;
  if (name == "shard") write_shard(path, generation);
  if (name == "checkpoint") write_small_checkpoint(path, generation);
  if (name == "safetensors") write_safetensors(path, generation);
  if (name == "gguf") write_gguf(path, generation);
  if (name == "ternary") write_ternary_file(path, small_random_model(generation), EmbeddingStore::int8);
  if (name == "hf_config") write_folder(dir, generation, int64_t(1) << 30);
  if (name == "hf_llama") write_folder(dir, generation, int64_t(1) << 30, small_llama());
  if (name == "hf_index") write_folder(dir, generation, 300);
  if (name == "yaml") spit(path, some_yaml(generation));
  if (name == "json")
    spit(path, nlohmann::json{{"a", {1, -2, 0.5, "x\n\u00e9"}}, {"g", generation}, {"o", {{"p", nullptr}}}}.dump(1));
  if (name == "tokenizer") {
    TokenizerTraining training;
    training.inputs = {spit(dir + "/corpus.jsonl", some_lines(0) + some_lines(1) + some_lines(2) + some_lines(3))};
    training.output = path;
    training.vocab_size = 290;
    training.type = generation ? "unigram" : "bpe";
    Tokenizer::train(training);
  }
  if (name == "text") spit(path, tiny_text(60, uint64_t(generation)));
  if (name == "jsonl") spit(path, some_lines(generation));
  if (name == "elements") spit(path, some_elements(generation));
  if (name == "zstd") spit(path, testing_data::compress(some_lines(generation)));
  if (name == "gzip") spit(path, testing_data::gzip(some_lines(generation)));
  return slurp(path);
}

}  // namespace mmfree
