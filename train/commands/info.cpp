#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>

#include "core/system/console.h"
#include "core/system/files.h"
#include "core/system/folder_mark.h"
#include "data/h5/h5.h"
#include "data/paths.h"
#include "data/token_shards.h"
#include "train/commands/commands.h"
#include "train/commands/info_matrices.h"
#include "train/commands/machine.h"
#include "train/formats/gguf.h"
#include "train/formats/safetensors.h"
#include "train/formats/ternary_file.h"
#include "train/inference/model.h"
#include "train/run/progress.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;

void print_shards(const std::string& path) {
  const TokenShards shards({path});
  const ShardInfo& info = shards.info();
  console::out.format("%s: token shard (%s)\n", path.c_str(), info.split.c_str());
  console::out.format("tokens      %s (%lld) in %lld documents\n", format_count(double(shards.total_tokens())).c_str(),
                      static_cast<long long>(shards.total_tokens()), static_cast<long long>(shards.documents()));
  console::out.format("vocabulary  %d, tokenizer %s, bos %d, eos %d\n", info.vocab_size, info.tokenizer_hash.c_str(),
                      info.bos_id, info.eos_id);
  console::out.format(
      "documents   framed by %s%s\n", name_of(info.framing),
      shards.sets().size() > 1 ? concat(", of ", shards.sets().size() - 1, " source sets").c_str() : "");
}

int layers_with(const ModelConfig& c, TokenKind kind) {
  int n = 0;
  for (int l = 0; l < int(c.num_hidden_layers); ++l) n += c.layer(l).token == kind;
  return n;
}

/// A line for each kind of attention, the first one first.
void print_attention(const ModelConfig& c) {
  std::vector<std::pair<std::string, int>> kinds;  // and the number of layers
  for (int l = 0; l < int(c.num_hidden_layers); ++l) {
    const LayerConfig layer = c.layer(l);
    if (layer.token != TokenKind::attention) continue;
    const std::string sees = layer.sliding_window ? concat("the last ", layer.sliding_window, " tokens") : "all tokens";
    const std::string text = concat(layer.heads, " heads of ", layer.head_dim, ", ", layer.groups,
                                    " of keys and values, over ", sees, ", rotary base ", layer.rope_theta);
    auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const auto& k) { return k.first == text; });
    if (kind == kinds.end()) kind = kinds.insert(kind, {text, 0});
    ++kind->second;
  }
  for (const auto& [text, layers] : kinds)
    console::out.format("attention   %s, in %d of %lld layers\n", text.c_str(), layers,
                        static_cast<long long>(c.num_hidden_layers));
}

/// Where a file has a hash of all of it that reading has compared, and the files of an exported folder.
void print_checksums(const Model& model) {
  if (model.kind == "ternary export")
    console::out.format("hash        %s, verified\n",
                        SafetensorsReader(model.source).metadata().at("content_hash").c_str());
  if (!fs::is_directory(model.source)) return;
  for (const auto& [name, hash] : read_mark(model.source, "hf")) {
    const fs::path file = fs::path(model.source) / name;
    if (!fs::is_regular_file(file)) continue;
    const bool same = hash_of_file(file.string()) == hash;
    console::out.format("file        %-32s %11s  hash %s%s\n", name.c_str(), format_bytes(fs::file_size(file)).c_str(),
                        hash.c_str(), same ? "" : ": CHANGED since the export");
  }
}

void print_training(const Training& t) {
  console::out.format("training    step %lld of %lld, %s tokens, %s\n", static_cast<long long>(t.step),
                      static_cast<long long>(t.steps), format_count(double(t.tokens)).c_str(),
                      t.resumable ? "optimizer state included" : "no optimizer state");
}

void print_model(const std::string& path, bool matrices) {
  const Model model = load_model(path);
  const ModelConfig& c = model.config;
  console::out.format("%s: %s%s\n", model.source.c_str(), model.kind.c_str(),
                      model.kind == "checkpoint" ? ", hash verified" : "");
  if (!fs::is_directory(model.source))
    console::out.format("size        %s\n", format_bytes(fs::file_size(model.source)).c_str());
  console::out.format("parameters  %lld, of these %lld in projection matrices\n",
                      static_cast<long long>(c.parameter_count()), static_cast<long long>(c.matrix_parameter_count()));
  console::out.format("shape       %lld layers x %lld wide, %lld inner, vocabulary %lld\n",
                      static_cast<long long>(c.num_hidden_layers), static_cast<long long>(c.hidden_size),
                      static_cast<long long>(c.intermediate()), static_cast<long long>(c.vocab_size));
  const std::string gates =
      concat(", gate order ", name_of(c.gate_order), ", lower bounds ", c.use_lower_bound ? "on" : "off");
  console::out.format("numerics    %s%s\n", name_of(c.precision),
                      layers_with(c, TokenKind::mlgru) ? gates.c_str() : "");
  console::out.format("mixers      %s, %s (%s), inner norms %s, %shead %s\n", name_of(c.token), name_of(c.channel),
                      name_of(c.activation), c.inner_norm ? "on" : "off", c.sub_norm ? "sub-norms on, " : "",
                      c.tie_word_embeddings ? "tied" : "of its own");
  if (layers_with(c, TokenKind::attention)) print_attention(c);
  if (!c.uniform() || !c.precision_rules.empty())
    console::out.format("exceptions  %zu in layers, %zu precision rules\n", c.layers.size(), c.precision_rules.size());
  if (model.tokenizer)
    console::out.format("tokenizer   %d pieces, hash %s\n", model.tokenizer->vocab_size(),
                        model.tokenizer->hash().c_str());
  else
    console::out.format("tokenizer   none\n");
  console::out.format("documents   framed by %s, in windows of %lld%s\n", name_of(model.framing),
                      static_cast<long long>(model.seq_len),
                      model.reset_state ? ", the state forgotten where one starts" : "");
  if (model.training) print_training(*model.training);
  print_checksums(model);
  if (!matrices && model.kind == "checkpoint") return;
  console::out.print("matrices\n");
  print_matrices(model);
}

bool is_gguf(const std::string& path) {
  if (!fs::is_regular_file(path)) return false;
  const Fd file = open_input(path);
  char begin[4] = {};
  read_exactly(file, path, 0, begin, std::min<int64_t>(sizeof begin, size_of_file(file, path)));
  return std::string_view(begin, 4) == "GGUF";
}

void print_gguf(const std::string& path) {
  const GgufReader file(path);
  console::out.format("%s: GGUF file of version 3\n", path.c_str());
  console::out.format("size        %s, of these %s before the tensors\n", format_bytes(uint64_t(file.size())).c_str(),
                      format_bytes(uint64_t(file.data_begin())).c_str());
  for (const GgmlType type : kAllGgmlTypes) {
    int64_t tensors = 0, values = 0, bytes = 0;
    for (const GgufTensor& t : file.tensors())
      if (t.type == type) ++tensors, values += t.shape.size(), bytes += t.bytes;
    if (tensors)
      console::out.format("%-12s%lld tensors, %lld values, %s (%g bits each)\n", name_of(type),
                          static_cast<long long>(tensors), static_cast<long long>(values),
                          format_bytes(uint64_t(bytes)).c_str(), bits_per_weight(type));
  }
  for (const auto& [key, value] : file.keys()) console::out.format("%s = %s\n", key.c_str(), value.shown().c_str());
}

void print_tokenizer(const std::string& path) {
  const Tokenizer t = Tokenizer::load(path);
  console::out.format("%s: SentencePiece tokenizer, %d pieces, hash %s\n", path.c_str(), t.vocab_size(),
                      t.hash().c_str());
}

/// Reads every byte of a file. Returns whether it was a shard without sums that has got them.
bool verify_file(const std::string& file) {
  const std::string kind = h5::kind_of(file);
  const bool is_bare = kind == "tokens" && !h5::Reader(file, kind, h5::Verify::header).has_sums();
  if (!is_bare) {
    // Of a file of no kind the reader says what is wrong with it.
    const h5::Reader verified(file, kind.empty() ? "tokens" : kind, h5::Verify::everything);
    return false;
  }
  const std::string error = h5::add_sums(file);
  if (!error.empty())
    console::out.format("%s: is intact, but has got no checksums of its chunks: %s\n", file.c_str(), error.c_str());
  return error.empty();
}

/// Compares every file of an exported Hugging Face folder with its mark.
void verify_export(const std::string& folder) {
  const MarkedFiles marked = read_mark(folder, "hf");
  MMFREE_CHECK(MissingError, !marked.empty(), folder,
               ": holds no hashes to compare with: another program or an older mmfree wrote it");
  uint64_t bytes = 0;
  for (const auto& [name, hash] : marked) {
    const std::string file = (fs::path(folder) / name).string();
    MMFREE_CHECK(DamagedError, hash_of_file(file) == hash, file,
                 ": is not as it was exported: damaged, or changed since; export it again");
    bytes += fs::file_size(file);
  }
  console::out.format("%s: verified, %zu files match their hashes (%s)\n", folder.c_str(), marked.size(),
                      format_bytes(bytes).c_str());
}

/// Reads every byte of a shard, checkpoint or export, or of all in a folder of them or in a run folder.
void verify(const std::string& path) {
  MMFREE_CHECK(MissingError, fs::exists(path), path, ": does not exist");
  if (fs::is_regular_file(path) && h5::kind_of(path).empty() && !path.ends_with(".h5")) {
    if (is_gguf(path))
      verify_gguf(path);
    else
      read_ternary_file(path);
    console::out.format("%s: verified, the export matches its hash (%s)\n", path.c_str(),
                        format_bytes(fs::file_size(path)).c_str());
    return;
  }
  if (fs::exists(fs::path(path) / "config.json")) return verify_export(path);
  const fs::path checkpoints = fs::path(path) / "checkpoints";
  const std::vector<std::string> files =
      expand_paths({fs::is_directory(checkpoints) ? checkpoints.string() : path}, {".h5"});
  uint64_t bytes = 0;
  int64_t added = 0;
  for (const std::string& file : files) {
    added += verify_file(file);
    bytes += fs::file_size(file);
  }
  const bool one = files.size() == 1;
  console::out.format("%s: verified, %zu %s (%s)\n", path.c_str(), files.size(),
                      one ? "file matches its hash" : "files match their hashes", format_bytes(bytes).c_str());
  if (added)
    console::out.format("checksums of chunks, which training compares as it reads, added for %lld of them\n",
                        static_cast<long long>(added));
}

void run(const std::string& path, bool matrices) {
  MMFREE_CHECK(MissingError, fs::exists(path), path, ": does not exist");
  if (fs::is_regular_file(path) && h5::kind_of(path) == "tokens") return print_shards(path);
  if (is_gguf(path)) return print_gguf(path), print_gguf_matrices(path);
  if (fs::path(path).extension() == ".model") return print_tokenizer(path);
  print_model(path, matrices);
}

}  // namespace

void add_info_command(CLI::App& app) {
  auto path = std::make_shared<std::string>();
  CLI::App* c = app.add_subcommand(
      "info",
      "Say what a file is: checkpoint, run folder, export, shard or tokenizer; or what this machine computes with");
  const CLI::Option* file = c->add_option("file", *path, "file or folder; none: what would be computed with here");
  auto all = std::make_shared<bool>(false);
  c->add_flag("--verify", *all,
              "read every byte of a shard, a checkpoint, an export or a folder of them, and compare the hashes");
  auto matrices = std::make_shared<bool>(false);
  c->add_flag("--matrices", *matrices, "density and scale of every matrix of a checkpoint too, not of exports alone");
  c->footer(
      "Examples:\n  mmfree info\n  mmfree info runs/quickstart\n  mmfree info shards/train-00000.h5\n"
      "  mmfree info shards --verify");
  c->callback([path, all, matrices, file] {
    const bool named = file->count() > 0;
    MMFREE_CHECK(UsageError, named || !*all, "info: --verify needs a file or folder; --help tells more");
    !named ? print_machine() : *all ? verify(*path) : run(*path, *matrices);
  });
}

}  // namespace mmfree
