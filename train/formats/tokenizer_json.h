#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "data/text/framing.h"

namespace mmfree {

/// The files by which Hugging Face's AutoTokenizer reads a tokenizer.
struct HfTokenizer {
  /// By name: tokenizer.json and tokenizer_config.json.
  std::map<std::string, std::string> files;
  /// Empty, or why that format cannot give the ids of this tokenizer. tokenizer.json then holds this sentence in a
  /// place where every reader of the format stops with it.
  std::string refusal;
};

/// `tokenizer` in the format of Hugging Face's tokenizers 0.20 and later: a text gets the ids of Tokenizer::encode,
/// with special tokens those of DocumentEncoder::prompt, and decoding without special tokens gives the text of
/// Tokenizer::decode for these ids. What SentencePiece does is said so:
///   - a space becomes U+2581, one of them stands in front of a text if the model says so; nothing else changes text;
///   - bpe: the merge of l and r to a piece l r, for each pair of pieces, in the order of the scores of l r; char:
///   none;
///   - a user-defined symbol is taken out before merges. One character needs no rule, since no merge contains it;
///   - control symbols in a text are text: `split_special_tokens` in tokenizer_config.json. (Programs that read
///     tokenizer.json alone take them for the symbols.)
/// Refused: unigram models (sums of scores in single precision decide between pieces there), word models, and bpe and
/// char models with what the rules above do not say.
/// `max_length`: the longest input in tokens, `model_max_length`.
HfTokenizer hf_tokenizer(const Tokenizer& tokenizer, Framing framing, int64_t max_length);

}  // namespace mmfree
