#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace mmfree {

enum class PieceType : int { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

struct Piece {
  std::string text;
  PieceType type = PieceType::normal;
  int byte = -1;       ///< the value of a byte piece
  int text_bytes = 0;  ///< see Tokenizer::byte_length
};

/// What mmfree needs to know of a SentencePiece model, read by its own small protobuf parser before SentencePiece sees
/// the file: SentencePiece 0.1.97 overflows its stack on long pieces and trusts the normaliser's tables.
struct TokenizerModel {
  std::vector<Piece> pieces;
  bool adds_dummy_prefix = true;
};

/// @throws DataError, starting with `name`, if the model is malformed, exceeds the limits in tokenizer.h or changes
/// text
TokenizerModel parse_tokenizer_model(std::string_view bytes, const std::string& name);

}  // namespace mmfree
