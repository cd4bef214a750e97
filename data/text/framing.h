#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/document.h"
#include "data/text/tokenizer.h"

namespace mmfree {

/// What stands before and after each document in the stream of tokens that a model is trained on.
enum class Framing : uint8_t { none, bos, eos, both };
inline constexpr Framing kAllFramings[] = {Framing::none, Framing::bos, Framing::eos, Framing::both};

/// "none", "bos", "eos", "bos+eos".
const char* name_of(Framing framing);
inline bool has_bos(Framing f) { return f == Framing::bos || f == Framing::both; }
inline bool has_eos(Framing f) { return f == Framing::eos || f == Framing::both; }
/// "auto" for nullopt.
inline const char* name_of(const std::optional<Framing>& f) { return f ? name_of(*f) : "auto"; }
Framing framing_of(bool bos, bool eos);

/// A document in the stream.
struct FramedDocument {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> mask;  ///< 1: scored as a target, 0: not; one per token, or empty: all are scored
};

/// The one way from text to the stream of tokens: training data, evaluation, scores and prompts all go through it. A
/// mark that the tokenizer lacks is left out. Cheap to copy; safe for concurrent use.
class DocumentEncoder {
 public:
  DocumentEncoder(Tokenizer tokenizer, Framing framing);
  const Tokenizer& tokenizer() const { return tokenizer_; }
  /// Without the marks that the tokenizer lacks.
  Framing framing() const { return framing_; }

  /// A whole document: bos, text, eos. Of prompt + completion, which make one text, only the completion and eos are
  /// scored; a piece that spans both counts as completion. Ids stay as they are. One without content gives no tokens.
  /// @throws DataError for an id outside the vocabulary, and as Tokenizer::encode
  FramedDocument document(const Document& document) const;
  /// What stands before the first piece of a document: bos; without it the end of the document before, eos; else
  /// nothing.
  std::vector<int32_t> opening() const;
  /// The beginning of a document: opening and text.
  std::vector<int32_t> prompt(std::string_view text) const;

 private:
  std::vector<int32_t> framed(const std::vector<int32_t>& ids) const;
  FramedDocument prompted(const PromptedText& text) const;
  FramedDocument checked(const TokenIds& ids) const;
  Tokenizer tokenizer_;
  Framing framing_;
};

}  // namespace mmfree
