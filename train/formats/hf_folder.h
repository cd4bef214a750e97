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
#include "train/formats/architecture.h"
#include "train/formats/safetensors.h"

namespace mmfree {

/// Reads `dir`/config.json of model_type `hgrn_bit`, or `mmfree`, which has the same keys and is for models that
/// hgrn_bit cannot describe. A missing key has the default of the published code. Unknown keys are ignored.
/// `intermediate_size` null becomes 0 (see ModelConfig::hidden_ratio). Of a list of token ids the first is taken; null
/// becomes -1. Keys that hgrn_bit does not have (the layer keys, `layers`, `precision_rules`) are read from the object
/// "mmfree", if present.
/// @throws MissingError; DataError naming file and key for anything malformed, out of range, or not implemented:
/// another model_type, use_short_conv, expand_ratio other than 1, another hidden_act.
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

/// The architecture that a model is written as: hgrn_bit if that can describe what it computes, else our own, so that
/// no other program loads it by mistake.
const Architecture& architecture_of(const ModelConfig& config);

/// Writes `dir`/config.json with all keys of the published models and the object "mmfree".
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
/// shards with an index), tokenizer.model and the other files of the tokenizer, README.md, and a mark of kind "hf"
/// (core/system/folder_mark.h). `tensors` gives names and shapes in file order. `get` is called for each in that order,
/// once to write the tensor and once to compare it with the file, so one tensor at a time is in memory. Everything is
/// written to a temporary folder, read again and compared, and renamed to `dir` at the end. So an interrupted export
/// never looks complete, and an old folder stays until the new one is checked. The two folders are exchanged in one
/// step if the file system supports that.
/// @throws CreateError if `dir` is not empty (with `overwrite`: if its mark does not prove each of its files),
/// UsageError, ShapeError, IoError; Error if what was written does not read back to the bit
void write_hf_folder(const std::string& dir, const ModelConfig& config, const NamedShapes& tensors,
                     const std::function<Tensor(const std::string&)>& get, const HfWriteOptions& options = {});

}  // namespace mmfree
