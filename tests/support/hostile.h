#pragma once
#include <cmath>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/system/utf8.h"
#include "data/text/text_reader.h"
#include "data/token_shards.h"
#include "layers/parameters.h"
#include "optim/adamw.h"
#include "tests/support/h5_repair.h"
#include "tests/support/temp_dir.h"
#include "train/formats/gguf.h"
#include "train/formats/safetensors.h"
#include "train/formats/strict_json.h"
#include "train/formats/ternary_file.h"
#include "train/inference/model.h"
#include "train/run/checkpoint.h"

/// The readers of files that come from outside, as the programs that attack them see them.
namespace mmfree {

/// Something was read without an error that breaks the reader's promise.
struct Inconsistent : std::logic_error {
  using std::logic_error::logic_error;
};

struct HostileReader {
  std::string name;
  std::string file;  ///< what the file is called; some readers go by its ending
  /// Reads all there is to read and returns it as bytes. @throws Error, Inconsistent
  std::string (*load)(const std::string& path);
  /// For files with hashes: from the bytes after the first `skip` makes a file whose hashes are right.
  std::string (*repair)(const std::string& rest) = nullptr;
  size_t skip = 0;
  /// What the reader may ask for at once, whatever the file's size.
  size_t constant_bytes = size_t(16) << 20;
};

namespace hostile {

inline void expect(bool ok, const std::string& what) {
  if (!ok) throw Inconsistent(what);
}

inline std::string bytes_of(const Tensor& t) { return t.defined() ? std::string(t.raw(), size_t(t.bytes())) : ""; }

inline std::string use_tokenizer(const Tokenizer& t) {
  std::string digest = t.serialized();
  for (const std::string text : {"", "kalo mi 12\n\n\ttre\xF0\x9F\xA6\x89 \xE6\xB0\xB4 </s><0x0A>", " \xE2\x96\x81"}) {
    const std::vector<int32_t> ids = t.encode(text);
    StreamDecoder stream(t);
    for (const int32_t id : ids) {
      expect(id >= 0 && id < t.vocab_size() && t.byte_length(id) >= 0, "a token outside the vocabulary");
      digest += stream.push(id);
    }
    digest += stream.flush() + t.decode(ids);
  }
  for (const int id : {t.bos_id(), t.eos_id(), t.unk_id(), t.pad_id()})
    expect(id >= -1 && id < t.vocab_size(), "a special token outside the vocabulary");
  for (int32_t id = 0; id < t.vocab_size(); ++id) digest += StreamDecoder(t).push(id);
  return digest;
}

inline std::string load_shard(const std::string& path) {
  const TokenShards shards({path});
  const ShardInfo& info = shards.info();
  std::string digest = concat(info.split, ' ', info.vocab_size, ' ', info.tokenizer_hash, ' ', info.bos_id, ' ',
                              info.eos_id, ' ', info.dummy_prefix, ' ', shards.documents(), ' ', shards.fingerprint());
  for (const int32_t bytes : info.piece_bytes) {
    expect(bytes >= 0 && bytes <= 512, "a piece of impossible length");
    digest += concat(' ', bytes);
  }
  std::vector<int32_t> window(4096);
  for (int64_t at = 0; at < shards.total_tokens(); at += 4096) {
    const int64_t n = std::min<int64_t>(4096, shards.total_tokens() - at);
    shards.read(at, n, window.data());
    for (int64_t i = 0; i < n; ++i) expect(window[size_t(i)] < info.vocab_size, "a token outside the vocabulary");
    digest.append(reinterpret_cast<const char*>(window.data()), size_t(n) * 4);
  }
  // The checksums of chunks miss some damage, such as words of zeros that became ones; the hash does not.
  const TokenShards verified({path}, h5::Verify::everything);
  return digest;
}

inline std::string load_run_checkpoint(const std::string& path) {
  const Checkpoint file(path, h5::Verify::while_reading);
  const LoopState& s = file.state();
  expect(s.step >= 0 && s.updates >= 0 && s.skipped_in_row >= 0 && s.tokens >= 0, "a negative count");
  ParamStore params(parameter_specs(file.config().model), DType::f32);
  AdamW optimizer(params, file.config().optim);
  file.load(params, file.has_states() ? &optimizer : nullptr);
  std::string digest = concat(to_yaml(file.config()), s.step, ' ', s.updates, ' ', s.skipped_in_row, ' ', s.tokens, ' ',
                              s.data, bytes_of(params.values()));
  if (file.has_states()) digest += bytes_of(optimizer.m()) + bytes_of(optimizer.v());
  const std::string tokenizer = file.tokenizer_model();
  return digest + (tokenizer.empty() ? "" : use_tokenizer(Tokenizer::from_bytes(tokenizer, path)));
}

inline std::string digest_of(const Model& m) {
  RunConfig config;
  config.model = m.config;
  std::string digest = concat(to_yaml(config), m.seq_len, bytes_of(m.params->values()));
  for (int64_t i = 0; i < m.params->values().size(); ++i)
    expect(std::isfinite(m.params->values().data<float>()[i]), "a parameter that is not finite");
  m.lm->for_each_projection([&](const BitLinear& p) {
    const TernaryTensor& t = p.matrix->ternary;
    if (!t.codes.defined()) return;
    expect(std::isfinite(t.scale.data<float>()[0]) && t.scale.data<float>()[0] > 0, "a scale that is not positive");
    digest += bytes_of(t.codes) + bytes_of(t.scale);
  });
  return digest + (m.tokenizer ? use_tokenizer(*m.tokenizer) : "");
}

inline std::string load_ternary(const std::string& path) { return digest_of(read_ternary_file(path)); }
inline std::string load_folder(const std::string& path) {
  return digest_of(load_model(std::filesystem::path(path).parent_path().string()));
}

inline std::string load_safetensors(const std::string& path) {
  const SafetensorsReader file(path);
  std::string digest;
  for (const std::string& name : file.names()) {
    const std::string& dtype = file.dtype_name(name);
    const std::vector<char> raw = file.bytes(name);
    digest += concat(name, ' ', dtype, ' ', file.shape(name), ' ') + std::string(raw.begin(), raw.end());
    const bool real = dtype[0] == 'F' || dtype[0] == 'B';
    const Tensor wide = file.read(name, real && dtype != "BOOL" ? DType::f64 : DType::i64);
    expect(wide.size() == file.shape(name).size(), "a tensor of another shape than promised");
  }
  for (const auto& [key, value] : file.metadata()) digest += concat(key, '=', value, '\n');
  return digest;
}

inline std::string load_gguf(const std::string& path) {
  const GgufReader file(path);
  std::string digest;
  for (const auto& [key, value] : file.keys()) {
    expect(value.shown().size() < 1000, "a value too long to print");
    digest += key + value.serialized();
  }
  for (const GgufTensor& t : file.tensors()) {
    const std::vector<uint8_t> raw = file.bytes(t.name);
    const Tensor values = file.read(t.name);
    expect(values.shape() == t.shape && int64_t(raw.size()) == t.bytes, "a tensor of another shape than promised");
    for (int64_t i = 0; i < values.size(); ++i) expect(std::isfinite(values.data<float>()[i]), "a value not finite");
    digest += concat(t.name, ' ', name_of(t.type), ' ', t.shape, ' ') + std::string(raw.begin(), raw.end());
  }
  return digest;
}

inline std::string load_yaml(const std::string& path) {
  const std::string yaml = to_yaml(load_config(path));
  expect(to_yaml(load_config_text(yaml, path)) == yaml, "a configuration that does not survive being written");
  return yaml;
}

inline std::string load_json(const std::string& path) {
  const nlohmann::json json = parse_json(read_file(path, int64_t(1) << 30), path);
  expect(parse_json(json.dump(), path) == json, "JSON that does not survive being written");
  return json.dump();
}

inline std::string load_tokenizer(const std::string& path) { return use_tokenizer(Tokenizer::load(path)); }

inline std::string load_text(const std::string& path) {
  std::string digest;
  Document d;
  for (TextReader reader({path}); reader.next(&d); digest += d.set + '\0') {
    expect(d.bytes() <= TextReader::kMaxDocumentBytes, "a document above the limit");
    std::string text = d.set;
    if (const auto* whole = std::get_if<std::string>(&d.content)) text += *whole;
    if (const auto* pair = std::get_if<PromptedText>(&d.content)) text += pair->prompt + pair->completion;
    if (const auto* tokens = std::get_if<TokenIds>(&d.content)) {
      expect(tokens->mask.empty() || tokens->mask.size() == tokens->ids.size(), "a mask of another length");
      for (const int32_t id : tokens->ids) expect(id >= 0, "a negative id"), digest += concat(id, ' ');
      for (const uint8_t m : tokens->mask) expect(m <= 1, "a mask of neither 0 nor 1"), digest += char('0' + m);
    }
    expect(find_invalid_utf8(text) == std::string::npos, "a document that is not UTF-8");
    digest += text;
  }
  return digest;
}

inline std::string repair_shard(const std::string& rest) { return h5_file_of(repair_h5_checksums(rest), "tokens"); }
inline std::string repair_checkpoint(const std::string& rest) {
  return h5_file_of(repair_h5_checksums(rest), "checkpoint");
}

/// Puts the hash that fits into the metadata, if the file is one that has such a hash.
inline std::string repair_ternary(const std::string& bytes) {
  const TempDir dir;
  try {
    const SafetensorsReader file(spit(dir / "x", bytes));
    const std::string was = file.metadata().at("content_hash");
    std::string text = file.metadata().at("config"), out = bytes;
    for (const std::string& name : file.names()) {
      const std::vector<char> raw = file.bytes(name);
      text += concat('\n', name, ' ', file.dtype_name(name), ' ', file.shape(name), ' ',
                     hex16(hash64({raw.data(), raw.size()})));
    }
    if (was.size() == 16 && bytes.find(was) != std::string::npos) out.replace(bytes.find(was), 16, hex16(hash64(text)));
    return out;
  } catch (const std::exception&) {
    return bytes;
  }
}

}  // namespace hostile

inline const std::vector<HostileReader>& hostile_readers() {
  using namespace hostile;
  constexpr size_t kWindow = (size_t(2) << 30) + (size_t(64) << 20);  // zstd's
  constexpr size_t kLine = size_t(192) << 20;                         // a line may have 128 MiB
  static const std::vector<HostileReader> all = {
      {"shard", "train-00000.h5", load_shard, repair_shard, 4096},
      {"checkpoint", "step-00000012.h5", load_run_checkpoint, repair_checkpoint, 4096},
      {"safetensors", "x.safetensors", load_safetensors},
      {"gguf", "x.gguf", load_gguf},
      {"ternary", "x.ternary", load_ternary, repair_ternary},
      {"hf_config", "config.json", load_folder},
      {"hf_llama", "config.json", load_folder},
      {"hf_index", "model.safetensors.index.json", load_folder},
      {"yaml", "x.yaml", load_yaml},
      {"json", "x.json", load_json},
      {"tokenizer", "x.model", load_tokenizer},
      {"text", "x.txt", load_text},
      {"jsonl", "x.jsonl", load_text},
      {"elements", "x.json", load_text},
      {"zstd", "x.jsonl.zst", load_text, nullptr, 0, kWindow},
      {"gzip", "x.jsonl.gz", load_text, nullptr, 0, kLine},
  };
  return all;
}

/// The reader of this name. @throws UsageError naming those there are
inline const HostileReader& hostile_reader(const std::string& name) {
  std::string known;
  for (const HostileReader& reader : hostile_readers()) {
    if (reader.name == name) return reader;
    known += " " + reader.name;
  }
  throw UsageError("no reader " + quote(name) + "; there are" + known);
}

/// Whether a reader's refusal is what its user needs: a status that blames the input, and lines that each name a file
/// under `dir` and hold no control characters; one line, but for configurations, which list all that is wrong.
inline std::string fault_in_refusal(const Error& e, const std::string& dir) {
  const std::string message = e.what();
  if (e.status() != Exit::bad_data && e.status() != Exit::missing_input && e.status() != Exit::bad_config)
    return concat("status ", int(e.status()), ": ", quote(message));
  if (message.find('\n') != std::string::npos && e.status() != Exit::bad_config) return "several lines: " + message;
  if (message.size() > (e.status() == Exit::bad_config ? 100'000 : 2000)) return "a message too long to read";
  for (size_t at = 0, end; at < message.size(); at = end + 1) {
    end = std::min(message.find('\n', at), message.size());
    const std::string line = message.substr(at, end - at);
    if (line.find(dir) == std::string::npos && !line.starts_with("command line")) return "names no file: " + line;
    for (const char c : line)
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) return "control character in: " + quote(line);
  }
  return "";
}

}  // namespace mmfree
