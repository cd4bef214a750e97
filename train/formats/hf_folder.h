#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "data/text/framing.h"
#include "layers/model_config.h"
#include "train/formats/architecture.h"
#include "train/formats/safetensors.h"

namespace mmfree {

/// A model as config.json describes it.
struct HfModel {
  ModelConfig config;
  const Architecture* architecture;  ///< of the folder's tensors
};

/// Reads `dir`/config.json of one of these model types:
///   hgrn_bit               the published MatMul-free LM
///   mmfree                 the same keys, for models that no other class computes
///   llama, mistral, bitnet transformers' classes, quantised online or not (train/formats/llama_config.h)
/// A missing key has the default of the published code, transformers' for its classes. Unknown keys are ignored. Of a
/// list of token ids the first is taken; null becomes -1. What these formats cannot say (the layer keys, `layers`,
/// `precision_rules`) is read from the object "mmfree", if present. It must not contradict the keys of transformers.
/// For hgrn_bit and mmfree `intermediate_size` null becomes 0 (see ModelConfig::hidden_ratio).
/// @throws MissingError; DataError naming file and key for anything malformed, out of range, or not implemented
HfModel read_hf_model(const std::string& dir);
ModelConfig read_hf_config(const std::string& dir);

/// What a model takes from the data that it was trained on.
struct HfData {
  Framing framing = Framing::both;  ///< of the documents
  bool reset_state = false;         ///< whether the recurrent state was forgotten where a document started
  int pad_token_id = -1;            ///< of the tokenizer; -1: none
  bool operator==(const HfData&) const = default;
};
/// Of the model in `dir`; the defaults where its config.json does not say. @throws MissingError, DataError
HfData read_hf_data(const std::string& dir);

/// The architecture that a model is written as: hgrn_bit, llama, mistral or bitnet if its class computes exactly this
/// model, else our own, so that no other program loads it by mistake.
const Architecture& architecture_of(const ModelConfig& config);

/// The version of transformers whose files ours follow.
const char* transformers_version(const ModelConfig& config);

/// Writes `dir`/config.json with all keys of architecture_of(config) and the object "mmfree".
/// `torch_dtype`: float32, bfloat16 or float16. @throws UsageError, CreateError, IoError
void write_hf_config(const std::string& dir, const ModelConfig& config, const std::string& torch_dtype,
                     const HfData& data = {});

/// The tensors of a Hugging Face folder: `model.safetensors`, else the shards of `model.safetensors.index.json`.
/// @throws MissingError; DataError if the index names a file that is not a plain name in the folder, names a tensor
/// that is not in its shard, or a shard holds a tensor that the index does not place there.
class HfFolder {
 public:
  explicit HfFolder(const std::string& dir);
  /// Sorted.
  std::vector<std::string> names() const;
  bool has(const std::string& name) const { return shard_of_.count(name) > 0; }
  /// As SafetensorsReader's. @throws DataError if there is no such tensor.
  Shape shape(const std::string& name) const { return shard(name).shape(name); }
  const std::string& dtype_name(const std::string& name) const { return shard(name).dtype_name(name); }
  Tensor read(const std::string& name, DType as) const { return shard(name).read(name, as); }

 private:
  const SafetensorsReader& shard(const std::string& name) const;
  void open_index(const std::string& path);

  std::string dir_;
  std::vector<std::unique_ptr<SafetensorsReader>> shards_;
  std::map<std::string, size_t> shard_of_;
};

/// Contents by file name.
using HfFiles = std::map<std::string, std::string>;

/// How `write_hf_folder` stores a model.
struct HfWriteOptions {
  std::string torch_dtype = "float32";      ///< float32, bfloat16 or float16
  int64_t max_shard_bytes = 5'000'000'000;  ///< a larger tensor gets a shard of its own
  std::string tokenizer_model = {};         ///< bytes of tokenizer.model; empty: none
  HfFiles tokenizer_files = {};             ///< beside it: HfTokenizer::files
  HfData data = {};                         ///< kept beside the model
  bool overwrite = false;                   ///< replace a folder of which an older export wrote every file
};

/// Writes a folder that `HfFolder` and Hugging Face read: config.json, generation_config.json, model.safetensors (or
/// shards with an index), tokenizer.model and the tokenizer's other files, README.md, and a mark of kind "hf"
/// (core/system/folder_mark.h). `tensors` gives our names and shapes in order; the files hold them as
/// architecture_of(config) does. `get` gives one of ours and is called in that order, once for each tensor of the files
/// to write it and once to compare it, so one tensor at a time is in memory. Everything is written to a temporary
/// folder, read again and compared, and renamed to `dir` at the end. So an interrupted export never looks complete, and
/// an old folder stays until the new one is checked. The two folders are exchanged in one step if the file system
/// supports that.
/// @throws CreateError if `dir` is not empty (with `overwrite`: if its mark does not prove each of its files),
/// UsageError, ShapeError, IoError; Error if what was written does not read back to the bit
void write_hf_folder(const std::string& dir, const ModelConfig& config, const NamedShapes& tensors,
                     const std::function<Tensor(const std::string&)>& get, const HfWriteOptions& options = {});

}  // namespace mmfree
