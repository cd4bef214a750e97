#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/text/framing.h"
#include "layers/lm.h"
#include "train/run/compute_target.h"

namespace mmfree {

/// How far the training of a checkpoint's model is.
struct Training {
  int64_t step = 0, steps = 0;  ///< done, and in all
  int64_t tokens = 0;           ///< target tokens trained on
  bool resumable = false;       ///< the optimizer's states are there
};

/// A model in memory with what belongs to it, as loaded from a file to be evaluated, sampled or exported.
struct Model {
  ModelConfig config;
  int64_t seq_len = 256;  ///< context length it was trained with; 2048 where the file does not say
  std::unique_ptr<ParamStore> params;
  std::unique_ptr<LM> lm;
  Framing framing = Framing::both;  ///< of the documents that it was trained on; bos+eos where the file does not say
  bool reset_state = false;         ///< it was trained to forget its recurrent state where a document starts
  std::optional<Tokenizer> tokenizer;
  std::optional<Training> training;  ///< of a checkpoint
  std::string kind;                  ///< "checkpoint", "ternary export", "Hugging Face folder"
  std::string source;                ///< the file that was read

  /// The tokenizer. @throws MissingError saying how to supply one
  const Tokenizer& need_tokenizer() const;
  /// Text as the tokens of the stream that the model was trained on. @throws MissingError as need_tokenizer
  DocumentEncoder encoder() const { return {need_tokenizer(), framing}; }
};

/// Reads a model from a checkpoint, a run folder (its newest intact checkpoint), a ternary export, or a Hugging Face
/// folder. Weights are f32. `tokenizer_path` gives the tokenizer of a file that holds none; it must fit the vocabulary.
/// @throws MissingError, DataError, IoError, ConfigError
Model load_model(const std::string& path, const std::string& tokenizer_path = "");
/// The same for inference on the CPU alone: a ternary export stays in its file (see map_ternary_file).
Model map_model(const std::string& path, const std::string& tokenizer_path = "");

/// The same model, computing on `target`.
Model move_model(Model model, const ComputeTarget& target);

}  // namespace mmfree
