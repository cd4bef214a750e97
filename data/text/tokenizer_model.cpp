#include "data/text/tokenizer_model.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <unordered_set>

#include "core/error.h"
#include "core/system/hash.h"
#include "core/system/utf8.h"
#include "data/text/tokenizer.h"

namespace mmfree {

namespace {

constexpr size_t kMaxModelBytes = size_t(32) << 20;
constexpr size_t kMaxPieces = size_t(1) << 20;
constexpr size_t kMaxPieceBytes = Tokenizer::kMaxPieceBytes;
constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581

/// One level of a protobuf message, field by field.
class Message {
 public:
  Message(std::string_view bytes, const std::string& name) : rest_(bytes), name_(name) {}

  /// Advances to the next field; false at the end.
  bool next() {
    if (rest_.empty()) return false;
    const uint64_t key = varint();
    field_ = key >> 3;
    wire_ = int(key & 7);
    if (wire_ == 0) {
      number_ = varint();
    } else if (wire_ == 1) {
      take(8);
    } else if (wire_ == 5) {
      payload_ = take(4);
    } else {
      require(wire_ == 2, "unknown wire type");
      payload_ = take(varint());
    }
    return true;
  }
  uint64_t field() const { return field_; }
  uint64_t number() const { return require(wire_ == 0, "a number is expected"), number_; }
  std::string_view bytes() const { return require(wire_ == 2, "bytes are expected"), payload_; }
  float real() const {
    require(wire_ == 5, "a float is expected");
    float value;
    std::memcpy(&value, payload_.data(), 4);
    return value;
  }

 private:
  void require(bool ok, const char* what) const {
    MMFREE_CHECK(DataError, ok, name_, ": not a SentencePiece model (damaged protobuf: ", what, ")");
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= uint64_t(byte & 127) << shift;
      if (byte < 128) return value;
    }
    require(false, "number too long");
    return 0;
  }
  std::string_view take(uint64_t n) {
    require(n <= rest_.size(), "it ends too early");
    const std::string_view bytes = rest_.substr(0, n);
    rest_.remove_prefix(n);
    return bytes;
  }

  std::string_view rest_, payload_;
  const std::string& name_;
  uint64_t field_ = 0, number_ = 0;
  int wire_ = 0;
};

int byte_value(const std::string& text) {
  const std::string_view digits = "0123456789ABCDEF";
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const size_t high = digits.find(text[3]), low = digits.find(text[4]);
  return high == std::string::npos || low == std::string::npos ? -1 : int(high * 16 + low);
}

int text_length(const Piece& piece) {
  if (piece.type == PieceType::byte) return 1;
  if (piece.type != PieceType::normal && piece.type != PieceType::user_defined) return 0;
  int length = int(piece.text.size());
  for (size_t at = piece.text.find(kSpace); at != std::string::npos; at = piece.text.find(kSpace, at + kSpace.size()))
    length -= int(kSpace.size()) - 1;
  return length;
}

Piece parse_piece(std::string_view bytes, size_t id, const std::string& name) {
  Piece piece;
  Message m(bytes, name);
  while (m.next()) {
    if (m.field() == 1) {
      MMFREE_CHECK(DataError, m.bytes().size() <= kMaxPieceBytes, name, ": piece ", id, " has ", m.bytes().size(),
                   " bytes; at most ", kMaxPieceBytes, " are allowed");
      piece.text = m.bytes();
    } else if (m.field() == 2) {
      MMFREE_CHECK(DataError, std::isfinite(m.real()), name, ": piece ", id, " has a score that is not finite");
      piece.score = m.real();
    } else if (m.field() == 3) {
      MMFREE_CHECK(DataError, m.number() >= 1 && m.number() <= 6, name, ": piece ", id, " is of unknown type ",
                   m.number());
      piece.type = PieceType(int(m.number()));
    }
  }
  MMFREE_CHECK(DataError, !piece.text.empty() && piece.text.find('\0') == std::string::npos, name, ": piece ", id,
               " is empty or contains NUL");
  MMFREE_CHECK(DataError, find_invalid_utf8(piece.text) == std::string::npos, name, ": piece ", id, " is not UTF-8");
  if (piece.type == PieceType::byte) piece.byte = byte_value(piece.text);
  MMFREE_CHECK(DataError, piece.type != PieceType::byte || piece.byte >= 0, name, ": byte piece ", id, " is ",
               quote(piece.text), ", expected the form <0x0A>");
  piece.text_bytes = text_length(piece);
  return piece;
}

void parse_trainer(std::string_view bytes, const std::string& name, TokenizerModel* model) {
  constexpr uint64_t kType = 3, kWhitespaceAsSuffix = 24;
  Message m(bytes, name);
  while (m.next()) {
    MMFREE_CHECK(DataError, m.field() != kWhitespaceAsSuffix || m.number() == 0, name,
                 ": models with treat_whitespace_as_suffix are not supported");
    if (m.field() != kType) continue;
    MMFREE_CHECK(DataError, m.number() >= 1 && m.number() <= 4, name, ": the model is of unknown type ", m.number(),
                 ", expected unigram (1), bpe (2), word (3) or char (4)");
    model->type = TokenizerType(int(m.number()));
  }
}

void parse_normalizer(std::string_view bytes, const std::string& name, TokenizerModel* model) {
  bool removes_spaces = true, escapes_spaces = true;
  size_t table_bytes = 0;
  Message m(bytes, name);
  while (m.next()) {
    if (m.field() == 2) table_bytes += m.bytes().size();
    if (m.field() == 3) model->adds_dummy_prefix = m.number() != 0;
    if (m.field() == 4) removes_spaces = m.number() != 0;
    if (m.field() == 5) escapes_spaces = m.number() != 0;
  }
  MMFREE_CHECK(DataError, table_bytes == 0 && !removes_spaces && escapes_spaces, name,
               ": this model changes text (normalisation rules or extra spaces removed), so it cannot be decoded "
               "exactly; train one with normalization_rule_name=identity and remove_extra_whitespaces=false");
}

}  // namespace

TokenizerModel parse_tokenizer_model(std::string_view bytes, const std::string& name) {
  MMFREE_CHECK(DataError, bytes.size() <= kMaxModelBytes, name, ": ", bytes.size(), " bytes; at most ", kMaxModelBytes,
               " are allowed");
  TokenizerModel model;
  std::unordered_set<std::string> seen;
  std::string normalizer;  // protobuf joins the parts of a message that occurs twice
  Message m(bytes, name);
  while (m.next()) {
    if (m.field() == 1) {
      MMFREE_CHECK(DataError, model.pieces.size() < kMaxPieces, name, ": more than ", kMaxPieces, " pieces");
      model.pieces.push_back(parse_piece(m.bytes(), model.pieces.size(), name));
      MMFREE_CHECK(DataError, seen.insert(model.pieces.back().text).second, name, ": piece ",
                   quote(model.pieces.back().text), " occurs twice");
    } else if (m.field() == 2) {
      parse_trainer(m.bytes(), name, &model);
    } else if (m.field() == 3) {
      normalizer += m.bytes();
    } else if (m.field() == 4) {
      MMFREE_CHECK(DataError, m.bytes().empty(), name, ": models with self-test data are not supported");
    } else if (m.field() == 5) {
      Message denormalizer(m.bytes(), name);
      while (denormalizer.next())
        MMFREE_CHECK(DataError, denormalizer.field() != 2 || denormalizer.bytes().empty(), name,
                     ": models with a denormaliser are not supported");
    }
  }
  MMFREE_CHECK(DataError, !model.pieces.empty(), name, ": not a SentencePiece model (it has no pieces)");
  parse_normalizer(normalizer, name, &model);
  return model;
}

namespace {

/// Field 1000, bytes: "mmfree " and a hash of 16 digits.
constexpr std::string_view kMarkStart = "\xC2\x3E\x17mmfree ";
constexpr size_t kMarkBytes = kMarkStart.size() + 16;

std::string mark_of(std::string_view model) { return concat(kMarkStart, hex16(hash64(model))); }

}  // namespace

std::string with_mark(std::string model) { return model + mark_of(model); }

bool has_mark(std::string_view model) {
  if (model.size() < kMarkBytes) return false;
  const size_t at = model.size() - kMarkBytes;
  return model.substr(at) == mark_of(model.substr(0, at));
}

}  // namespace mmfree
