#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace mmfree {

enum class PieceType : int { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

/// How a model divides text: SentencePiece's numbers.
enum class TokenizerType : int { unigram = 1, bpe = 2, word = 3, character = 4 };

struct Piece {
  std::string text;
  PieceType type = PieceType::normal;
  float score = 0;     ///< finite
  int byte = -1;       ///< the value of a byte piece
  int text_bytes = 0;  ///< see Tokenizer::byte_length
};

/// The parts of a SentencePiece model that mmfree uses. A small protobuf parser reads and checks them before
/// SentencePiece gets the file: version 0.1.97 overflows its stack on long pieces and trusts the normaliser's tables.
struct TokenizerModel {
  std::vector<Piece> pieces;
  TokenizerType type = TokenizerType::unigram;
  bool adds_dummy_prefix = true;
};

/// @throws DataError, starting with `name`, if the model is malformed, exceeds the limits in tokenizer.h or changes
/// text
TokenizerModel parse_tokenizer_model(std::string_view bytes, const std::string& name);

/// The model with a last field that names mmfree and the XXH3-64 of the bytes before it. Its number is in the range
/// that SentencePiece leaves to extensions, so every reader passes over it.
std::string with_mark(std::string model);
/// Whether with_mark made these bytes.
bool has_mark(std::string_view model);

}  // namespace mmfree
