#include "train/formats/hf_folder.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "core/ops/elementwise.h"
#include "core/system/files.h"
#include "core/system/folder_mark.h"
#include "layers/parameters.h"
#include "train/formats/llama_config.h"
#include "train/formats/strict_json.h"

namespace mmfree {

namespace {

namespace fs = std::filesystem;
constexpr int64_t kMaxIndexBytes = 64 << 20;
constexpr const char* kKind = "hf";
constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

/// True for a valid file name that cannot lead out of its folder.
bool is_plain_name(const std::string& name) {
  constexpr size_t kMostBytes = 255;
  return !name.empty() && name.size() <= kMostBytes && name[0] != '.' && name.find("..") == std::string::npos &&
         std::none_of(name.begin(), name.end(),
                      [](unsigned char c) { return c == '/' || c == '\\' || c < ' ' || c == 0x7f; });
}

struct StoreType {
  std::string file_dtype;
  int64_t bytes;
};

StoreType store_type(const std::string& torch_dtype) {
  if (torch_dtype == "float32") return {"F32", 4};
  if (torch_dtype == "bfloat16") return {"BF16", 2};
  MMFREE_CHECK(UsageError, torch_dtype == "float16", "torch_dtype ", quote(torch_dtype),
               ", expected float32, bfloat16 or float16");
  return {"F16", 2};
}

/// Divides the list, in order, into shards of at most `most` bytes.
std::vector<NamedShapes> plan_shards(const NamedShapes& tensors, int64_t element, int64_t most) {
  std::vector<NamedShapes> shards(1);
  int64_t filled = 0;
  for (const auto& tensor : tensors) {
    const int64_t bytes = tensor.second.size() * element;
    if (!shards.back().empty() && bytes > most - filled) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(tensor);
    filled += bytes;
  }
  return shards;
}

std::string shard_name(size_t i, size_t count) {
  if (count == 1) return kSingle;
  char name[48];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, count);
  return name;
}

void write_tensors(const std::string& dir, const NamedShapes& tensors,
                   const std::function<Tensor(const std::string&)>& get, const HfWriteOptions& options) {
  const StoreType type = store_type(options.torch_dtype);
  const std::vector<NamedShapes> shards = plan_shards(tensors, type.bytes, options.max_shard_bytes);
  nlohmann::json weight_map = nlohmann::json::object();
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = shard_name(i, shards.size());
    SafetensorsWriter writer(dir + "/" + file);
    for (const auto& [name, shape] : shards[i]) {
      MMFREE_CHECK(DataError, !weight_map.contains(name), dir, ": tensor ", quote(name), " is given twice");
      writer.declare(name, type.file_dtype, shape);
      weight_map[name] = file;
      total += shape.size() * type.bytes;
    }
    for (const auto& [name, shape] : shards[i]) writer.write(name, get(name));
    writer.commit();
  }
  if (shards.size() > 1)
    write_file(dir + "/" + kIndex,
               nlohmann::json{{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}}.dump(2) + "\n");
}

std::string generation_config(const ModelConfig& c) {
  nlohmann::ordered_json json = {{"_from_model_config", true}};
  if (c.bos_token_id >= 0) json["bos_token_id"] = c.bos_token_id;
  if (c.eos_token_id >= 0) json["eos_token_id"] = c.eos_token_id;
  json["transformers_version"] = transformers_version(c);
  return json.dump(2) + "\n";
}

std::string model_card(const std::string& name, const ModelConfig& c, const std::string& torch_dtype) {
  const Architecture& architecture = architecture_of(c);
  const bool own = &architecture == &own_architecture(), llama = llama_form(c).has_value();
  bool attends = false;
  for (int l = 0; l < int(c.num_hidden_layers); ++l) attends |= c.layer(l).token == TokenKind::attention;
  const std::vector<ProjectionSpec> all = projections(c);
  const bool ternary =
      std::any_of(all.begin(), all.end(), [](const auto& p) { return p.precision == Precision::ternary; });
  std::string card =
      concat("---\nlibrary_name: ", llama ? "transformers" : "mmfree", "\npipeline_tag: text-generation\ntags:\n",
             attends ? "" : "- matmul-free\n", ternary ? "- 1.58-bit\n" : "", "- ", architecture.model_type,
             "\n---\n\n# ", name, "\n\nA ", attends ? "" : "MatMul-free ", "language model with ", c.parameter_count(),
             " parameters: ", c.num_hidden_layers, " layers, width ", c.hidden_size, ", inner width ", c.layer(0).inner,
             ", vocabulary ", c.vocab_size, ".\n");
  if (ternary)
    card +=
        concat("\nThe tensors are latent weights in ", torch_dtype,
               "; projections quantise them to ternary values when they run. Do not store the quantised\nweights in "
               "their place: quantising twice shrinks their scale.\n");
  if (own)
    card +=
        concat("\nThis model has settings that only mmfree knows (the `mmfree` object in `config.json`: gate order `",
               name_of(c.gate_order), "`, precision `", name_of(c.precision), "`, activation `", name_of(c.activation),
               "`);\nother programs compute different results from the same tensors.\n");
  return card;
}

/// Writes the files of the tokenizer and compares what was written.
void write_tokenizer(const std::string& dir, const HfWriteOptions& options) {
  HfFiles files = options.tokenizer_files;
  if (!options.tokenizer_model.empty()) files["tokenizer.model"] = options.tokenizer_model;
  for (const auto& [name, bytes] : files) {
    write_file(dir + "/" + name, bytes);
    MMFREE_CHECK(Error, read_file(dir + "/" + name, int64_t(bytes.size())) == bytes, dir, ": ", name,
                 " differs from what was written; the folder was removed");
  }
}

/// The absolute path without a trailing slash, so that a suffix can be added to the name.
fs::path normal(const std::string& dir) {
  fs::path path = fs::absolute(dir).lexically_normal();
  return path.has_filename() ? path : path.parent_path();
}

/// That an older export wrote every file of a folder. @throws CreateError naming the first other one
void require_ours(const fs::path& folder) {
  std::vector<std::string> names = names_in(folder.string());
  std::erase(names, mark_name(kKind));
  require_marked(folder.string(), kKind, names);
}

void mark_files(const std::string& folder) {
  MarkedFiles files;
  for (const std::string& name : names_in(folder)) files.emplace(name, hash_of_file(folder + "/" + name));
  write_mark(folder, kKind, files);
}

void check_target(const fs::path& target, bool overwrite) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(target, error);
  if (!fs::exists(status)) return;
  MMFREE_CHECK(CreateError, fs::is_directory(status), target.string(), ": exists and is not a directory");
  if (fs::is_empty(target, error)) return;
  MMFREE_CHECK(CreateError, !error, target.string(), ": ", error.message());
  MMFREE_CHECK(CreateError, overwrite, target.string(), ": is not empty; choose another folder or give --overwrite");
  require_ours(target);
}

/// A tensor rounded to `type`, in f32.
Tensor stored(const Tensor& tensor, const StoreType& type) {
  Tensor out(tensor.shape(), DType::f32);
  cast(tensor, out);
  float* x = out.mut<float>();
  for (int64_t i = 0; i < out.size() && type.file_dtype != "F32"; ++i)
    x[i] = type.file_dtype == "BF16" ? float(bf16(x[i])) : float(f16(x[i]));
  return out;
}

/// Loads the folder again and compares every tensor's bits.
void check_folder(const std::string& dir, const NamedShapes& tensors,
                  const std::function<Tensor(const std::string&)>& get, const StoreType& type) {
  const HfFolder written(dir);
  read_hf_config(dir);
  for (const auto& [name, shape] : tensors) {
    const Tensor expected = stored(get(name), type), got = written.read(name, DType::f32);
    MMFREE_CHECK(Error, got.shape() == shape && std::memcmp(expected.raw(), got.raw(), size_t(got.bytes())) == 0, dir,
                 ": tensor ", quote(name), " differs from what was written; the folder was removed");
  }
}

/// Renames the folder `from` to `to`. An old folder `to` is exchanged in one step and then removed. If the file system
/// cannot exchange, the old folder is first renamed to `to`.old, or `to`.old-1, … if that exists. Clears `from` once
/// the new folder has its name. Folder and files keep the attributes of those of the same name.
void replace_directory(fs::path& from, const fs::path& to) {
  const fs::path parent = to.parent_path();
  std::error_code ignored;
  take_attributes(from, to);
  if (!fs::exists(to) || fs::is_empty(to)) {
    fs::rename(from, to);
    from.clear();
    return sync_directory(parent.string());
  }
  require_ours(to);  // once more: writing the new folder took a while
  for (const std::string& name : names_in(from.string())) take_attributes(from / name, to / name);
  fs::path old = from;
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) != 0) {
    const std::error_code reason(errno, std::generic_category());
    if (reason != std::errc::invalid_argument && reason != std::errc::function_not_supported)
      throw fs::filesystem_error("exchange", reason);
    old = to.string() + ".old";
    for (int i = 1; fs::exists(old); ++i) old = concat(to.string(), ".old-", i);  // not ours: keep it
    fs::rename(to, old);
    try {
      fs::rename(from, to);
    } catch (const fs::filesystem_error&) {
      fs::rename(old, to);
      throw;
    }
  }
  from.clear();
  sync_directory(parent.string());  // if this throws, the old folder stays: the disk may still refer to it
  fs::remove_all(old, ignored);
}

}  // namespace

HfFolder::HfFolder(const std::string& dir) : dir_(dir) {
  const fs::path single = fs::path(dir) / kSingle, index = fs::path(dir) / kIndex;
  std::error_code error;
  if (fs::exists(single, error)) {
    shards_.push_back(std::make_unique<SafetensorsReader>(single.string()));
    for (const std::string& name : shards_[0]->names()) shard_of_[name] = 0;
    return;
  }
  MMFREE_CHECK(MissingError, fs::exists(index, error), dir, ": holds neither ", kSingle, " nor ", kIndex,
               fs::exists(fs::path(dir) / "pytorch_model.bin", error) ? "; save pytorch_model.bin as safetensors" : "");
  open_index(index.string());
}

void HfFolder::open_index(const std::string& path) {
  const nlohmann::json json = parse_json(read_file(path, kMaxIndexBytes), path);
  MMFREE_CHECK(DataError, json.is_object() && json.contains("weight_map") && json["weight_map"].is_object(), path,
               ": expected an object with an object weight_map");
  std::map<std::string, size_t> shard_of_file;
  for (const auto& [name, value] : json["weight_map"].items()) {
    MMFREE_CHECK(DataError, value.is_string(), path, ": tensor ", quote(name), ": the shard must be a string");
    const std::string file = value.get<std::string>();
    MMFREE_CHECK(DataError, is_plain_name(file), path, ": tensor ", quote(name), ": shard ", quote(file),
                 " is not a plain file name in this folder");
    const auto [place, is_new] = shard_of_file.emplace(file, shards_.size());
    if (is_new) shards_.push_back(std::make_unique<SafetensorsReader>((fs::path(dir_) / file).string()));
    const SafetensorsReader& shard = *shards_[place->second];
    MMFREE_CHECK(DataError, shard.has(name), path, ": tensor ", quote(name), " is not in its shard ", file);
    shard_of_[name] = place->second;
  }
  for (size_t i = 0; i < shards_.size(); ++i)
    for (const std::string& name : shards_[i]->names()) {
      const auto found = shard_of_.find(name);
      MMFREE_CHECK(DataError, found != shard_of_.end() && found->second == i, shards_[i]->path(), ": holds tensor ",
                   quote(name), ", which the index ",
                   found == shard_of_.end() ? "does not name" : "places in another shard");
    }
}

std::vector<std::string> HfFolder::names() const {
  std::vector<std::string> out;
  for (const auto& [name, shard] : shard_of_) out.push_back(name);
  return out;
}

const SafetensorsReader& HfFolder::shard(const std::string& name) const {
  const auto found = shard_of_.find(name);
  MMFREE_CHECK(DataError, found != shard_of_.end(), dir_, ": has no tensor ", quote(name));
  return *shards_[found->second];
}

void write_hf_folder(const std::string& dir, const ModelConfig& config, const NamedShapes& ours,
                     const std::function<Tensor(const std::string&)>& get_ours, const HfWriteOptions& options) {
  const Architecture& architecture = architecture_of(config);
  const NamedShapes tensors = foreign_tensors(architecture, ours);
  const auto get = [&](const std::string& name) { return to_foreign(architecture, name, get_ours); };
  const fs::path target = normal(dir);
  check_target(target, options.overwrite);
  const NeededDirectory parent(target.parent_path().string());
  const TemporaryFolder made(target.string());
  fs::path temporary = made.name;
  std::error_code error;
  try {
    const std::string work = temporary.string();
    write_tensors(work, tensors, get, options);
    write_file(work + "/generation_config.json", generation_config(config));
    write_file(work + "/README.md", model_card(target.filename().string(), config, options.torch_dtype));
    write_tokenizer(work, options);
    write_hf_config(work, config, options.torch_dtype, options.data);
    mark_files(work);
    check_folder(work, tensors, get, store_type(options.torch_dtype));
    replace_directory(temporary, target);
  } catch (const fs::filesystem_error& e) {
    fs::remove_all(temporary, error);
    throw IoError(concat(target.string(), ": cannot put the finished folder in place: ", e.code().message()));
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
}

}  // namespace mmfree
