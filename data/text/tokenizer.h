#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/document.h"

namespace mmfree {

/// Options of Tokenizer::train.
struct TokenizerTraining {
  std::vector<std::string> inputs;     ///< as for TextReader
  std::string output;                  ///< path of the .model file to write; empty: none
  int vocab_size = 32000;              ///< pieces, including 3 special ids and 256 bytes
  std::string type = "bpe";            ///< "bpe" or "unigram"
  double character_coverage = 0.9995;  ///< share of the characters that get pieces; the others become bytes
  int64_t limit_bytes = 0;             ///< use at most this much text, spread evenly over the files; 0: all
  TextOptions text;                    ///< as for TextReader
  /// Called with a line about the inputs, such as how many rows were skipped.
  std::function<void(const std::string& note)> on_note;
};

/// A SentencePiece model with identity normalisation: decode(encode(text)) == text for any valid UTF-8 text (one
/// exception: U+2581, SentencePiece's own mark for a space, comes back as a space) if the model has byte pieces.
/// Cheap to copy; safe for concurrent use.
class Tokenizer {
 public:
  static constexpr int kMaxPieceBytes = 512;

  /// @throws MissingError, DataError for a file that is not such a model or exceeds its limits: 32 MiB, 2^20 pieces,
  /// 512 bytes a piece, and a normaliser that changes text (its bytes could not be counted)
  static Tokenizer load(const std::string& path);
  /// `name` stands for the model in errors.
  static Tokenizer from_bytes(std::string model, const std::string& name = "tokenizer");
  /// Trains a model and writes it: byte fallback, digits split, unk 0, bos 1, eos 2, no pad, newline and tab are pieces
  /// of their own. The same inputs give the same bytes; a mark at their end proves where they come from
  /// (data/text/tokenizer_model.h). @throws UsageError if the text is too small for vocab_size
  static Tokenizer train(const TokenizerTraining& training);
  /// Checks that `train` made this file, whose mark proves it. @throws MissingError, IoError, DataError if it did not
  static void require_trained(const std::string& path);

  /// The model file's bytes.
  const std::string& serialized() const;
  /// 16 hex digits of XXH3-64 of the model's bytes.
  const std::string& hash() const;
  int vocab_size() const;
  /// -1 if the model has none.
  int bos_id() const;
  int eos_id() const;
  int unk_id() const;
  int pad_id() const;

  /// Ids of the text alone, without bos and eos. @throws DataError if SentencePiece refuses the text
  std::vector<int32_t> encode(std::string_view text) const;
  /// @throws DataError for an id outside the vocabulary
  std::string decode(std::span<const int32_t> ids) const;

  /// The piece as stored ("▁the", "<0x0A>", "</s>").
  const std::string& piece(int32_t id) const;
  /// UTF-8 bytes the piece stands for in text: its mark for a space counts 1, a byte piece 1, special pieces 0.
  int byte_length(int32_t id) const;
  /// True if encode() puts a space before the text (and decode() takes it away).
  bool adds_dummy_prefix() const;

 private:
  friend class StreamDecoder;
  struct Model;
  explicit Tokenizer(std::shared_ptr<const Model> model) : model_(std::move(model)) {}
  std::shared_ptr<const Model> model_;
};

/// Decodes ids one by one. The returned texts together are what Tokenizer::decode returns for all ids at once. Bytes of
/// an incomplete character are kept until it is complete; invalid bytes become U+FFFD.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}
  /// The text that is complete after this id. @throws DataError for an id outside the vocabulary
  std::string push(int32_t id);
  /// The text of the kept bytes. Resets the decoder.
  std::string flush();

 private:
  std::string release(bool all);

  Tokenizer tokenizer_;
  std::string bytes_;     // of byte pieces, not yet returned
  bool at_start_ = true;  // no text yet: a leading space is the dummy prefix
};

}  // namespace mmfree
