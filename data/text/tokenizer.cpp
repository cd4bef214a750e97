#include "data/text/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <exception>
#include <iomanip>
#include <unordered_map>

#include "core/error.h"
#include "core/system/files.h"
#include "core/system/hash.h"
#include "core/system/utf8.h"
#include "data/text/text_reader.h"
#include "data/text/tokenizer_model.h"

namespace mmfree {

namespace {
constexpr int64_t kMaxModelBytes = int64_t(32) << 20;
/// Longer texts are encoded in parts: SentencePiece takes 100 bytes of memory per character, and more time for each in
/// a long text.
constexpr size_t kEncodeBytes = size_t(1) << 10;
constexpr std::string_view kSpace = "\xE2\x96\x81";        // U+2581
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
}  // namespace

struct Tokenizer::Model {
  std::string name, bytes, hash;
  TokenizerModel parsed;
  sentencepiece::SentencePieceProcessor processor;
  std::string unknown_text;   // what decode shows for the unknown piece
  bool ends_at_lines = true;  // no piece goes on from other text to a line break

  const Piece& at(int32_t id) const {
    MMFREE_CHECK(DataError, id >= 0 && size_t(id) < parsed.pieces.size(), name, ": token id ", id,
                 " is outside the vocabulary of ", parsed.pieces.size());
    return parsed.pieces[size_t(id)];
  }
};

Tokenizer Tokenizer::load(const std::string& path) { return from_bytes(read_file(path, kMaxModelBytes), path); }

void Tokenizer::require_trained(const std::string& path) {
  MMFREE_CHECK(DataError, has_mark(read_file(path, kMaxModelBytes)), path,
               ": is not a tokenizer that mmfree trained, or has changed since");
}

Tokenizer Tokenizer::from_bytes(std::string bytes, const std::string& name) {
  auto model = std::make_shared<Model>();
  model->name = name;
  model->parsed = parse_tokenizer_model(bytes, name);
  const auto status = model->processor.LoadFromSerializedProto(bytes);
  MMFREE_CHECK(DataError, status.ok(), name, ": not a usable SentencePiece model: ", status.message());
  MMFREE_CHECK(DataError, size_t(model->processor.GetPieceSize()) == model->parsed.pieces.size(), name,
               ": SentencePiece reads another number of pieces than the file holds");
  const int unknown = model->processor.unk_id();
  if (unknown >= 0) model->processor.Decode(std::vector<int>{unknown}, &model->unknown_text).IgnoreError();
  for (const Piece& piece : model->parsed.pieces)
    for (size_t at = 1; (at = piece.text.find('\n', at)) != std::string::npos; ++at)
      if (piece.text[at - 1] != '\n') model->ends_at_lines = false;
  if (model->parsed.adds_dummy_prefix && model->processor.PieceToId(kSpace) == unknown) model->ends_at_lines = false;
  model->hash = hex16(hash64(bytes));
  model->bytes = std::move(bytes);
  return Tokenizer(std::move(model));
}

const std::string& Tokenizer::serialized() const { return model_->bytes; }
const std::string& Tokenizer::hash() const { return model_->hash; }
int Tokenizer::vocab_size() const { return int(model_->parsed.pieces.size()); }
int Tokenizer::bos_id() const { return model_->processor.bos_id(); }
int Tokenizer::eos_id() const { return model_->processor.eos_id(); }
int Tokenizer::unk_id() const { return model_->processor.unk_id(); }
int Tokenizer::pad_id() const { return model_->processor.pad_id(); }
bool Tokenizer::adds_dummy_prefix() const { return model_->parsed.adds_dummy_prefix; }
const std::string& Tokenizer::piece(int32_t id) const { return model_->at(id).text; }
int Tokenizer::byte_length(int32_t id) const { return model_->at(id).text_bytes; }

namespace {

/// Length of the first part of a long text: up to a line break that follows other text.
size_t first_part(std::string_view text) {
  if (text.size() <= kEncodeBytes) return text.size();
  for (size_t at = kEncodeBytes; (at = text.find('\n', at)) != std::string_view::npos; ++at)
    if (text[at - 1] != '\n') return at;
  return text.size();
}

}  // namespace

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> all;
  std::vector<int> ids;
  bool first = true;
  do {
    const size_t n = model_->ends_at_lines ? first_part(text) : text.size();
    const auto status = model_->processor.Encode(text.substr(0, n), &ids);
    MMFREE_CHECK(DataError, status.ok(), model_->name, ": cannot encode the text: ", status.message());
    // A later part starts with '\n', so its dummy prefix stands alone.
    size_t skip = !first && !ids.empty() && piece(ids[0]) == kSpace ? 1 : 0;
    // Unknown characters side by side are one unknown piece.
    skip += !first && skip < ids.size() && ids[skip] == unk_id() && !all.empty() && all.back() == unk_id();
    all.insert(all.end(), ids.begin() + ptrdiff_t(skip), ids.end());
    text.remove_prefix(n);
    first = false;
  } while (!text.empty());
  return all;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  for (int32_t id : ids) model_->at(id);
  std::string text;
  const auto status = model_->processor.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
  MMFREE_CHECK(DataError, status.ok(), model_->name, ": cannot decode the ids: ", status.message());
  return text;
}

std::string StreamDecoder::push(int32_t id) {
  const Piece& piece = tokenizer_.model_->at(id);
  if (piece.type == PieceType::byte) {
    bytes_ += char(piece.byte);
    at_start_ = false;
    return release(/*all=*/false);
  }
  std::string out = release(/*all=*/true);
  if (piece.type == PieceType::control) return out;
  if (piece.type == PieceType::unknown) {
    out += tokenizer_.model_->unknown_text;
  } else {
    std::string_view rest = piece.text;
    if (at_start_ && tokenizer_.adds_dummy_prefix() && rest.starts_with(kSpace)) rest.remove_prefix(kSpace.size());
    for (size_t at; (at = rest.find(kSpace)) != std::string_view::npos; rest.remove_prefix(at + kSpace.size()))
      out.append(rest.substr(0, at)) += ' ';
    out += rest;
  }
  at_start_ = false;
  return out;
}

std::string StreamDecoder::flush() {
  std::string out = release(/*all=*/true);
  at_start_ = true;
  return out;
}

/// Takes the finished characters from bytes_; with `all`, also gives up on an unfinished one.
std::string StreamDecoder::release(bool all) {
  std::string out;
  size_t at = 0;
  while (at < bytes_.size()) {
    const std::string_view rest = std::string_view(bytes_).substr(at);
    const int n = utf8_char(rest);
    if (n < 0 && !all) break;
    if (n > 0)
      out += rest.substr(0, size_t(n));
    else
      out += kReplacement;
    at += size_t(std::max(n, 1));
  }
  bytes_.erase(0, at);
  return out;
}

namespace {

/// Gives the trainer line after line, long ones in parts: the trainer drops a line above its limit silently.
class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(const TokenizerTraining& training)
      : inputs_(training.inputs, training.text), files_(inputs_.files()), options_(training.text) {
    if (training.limit_bytes > 0) limit_ = std::max<int64_t>(1, training.limit_bytes / int64_t(files_.size()));
    Next();
  }
  bool done() const override { return done_; }
  const std::string& value() const override { return sentence_; }
  sentencepiece::util::Status status() const override { return {}; }
  void Next() override {
    try {
      done_ = !advance();
    } catch (...) {
      error_ = std::current_exception();
      done_ = true;
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

  const SkippedRows& skipped() const { return skipped_; }
  const std::vector<std::string>& passed_over() const { return inputs_.passed_over(); }

  static constexpr size_t kMaxBytes = 4096;

 private:
  bool advance() {
    do {
      while (at_ >= document_.size())
        if (!next_document()) return false;
      const size_t end = std::min(document_.find('\n', at_), document_.size());
      size_t n = end - at_;
      if (n > kMaxBytes) n = cut(at_);
      sentence_ = document_.substr(at_, n);
      at_ += n + (at_ + n == end ? 1 : 0);
    } while (sentence_.empty());
    return true;
  }

  /// Length of a part of at most kMaxBytes: up to the last space, or else to a character's border. All text is UTF-8.
  size_t cut(size_t from) const {
    const size_t space = document_.rfind(' ', from + kMaxBytes);
    if (space != std::string::npos && space > from) return space - from;
    size_t n = kMaxBytes;
    while ((static_cast<unsigned char>(document_[from + n]) & 0xC0) == 0x80) --n;
    return n;
  }

  bool next_document() {
    at_ = 0;
    while (file_ < files_.size()) {
      if (!reader_) reader_ = std::make_unique<TextReader>(std::vector{files_[file_]}, options_);
      const bool within = limit_ == 0 || used_ < limit_;
      if (Document document; within && reader_->next(&document)) {
        take_text(document);
        if (limit_) document_.resize(std::min(document_.size(), size_t(limit_ - used_)));
        const size_t bad = find_invalid_utf8(document_);  // only the character that the limit cut
        if (bad != std::string::npos) document_.resize(bad);
        used_ += std::max<int64_t>(1, int64_t(document_.size()));
        return true;
      }
      for (const auto& [cause, rows] : reader_->skipped()) skipped_[cause] += rows;
      reader_.reset();
      ++file_;
      used_ = 0;
    }
    return false;
  }

  void take_text(Document& document) {
    if (auto* text = std::get_if<std::string>(&document.content)) {
      document_ = std::move(*text);
    } else {
      const auto* pair = std::get_if<PromptedText>(&document.content);
      MMFREE_CHECK(DataError, pair, files_[file_], ": holds rows of token ids; a vocabulary is made of text");
      document_ = pair->prompt + pair->completion;
    }
  }

  TextReader inputs_;
  const std::vector<std::string>& files_;
  TextOptions options_;
  SkippedRows skipped_;
  bool done_ = false;
  int64_t limit_ = 0, used_ = 0;
  size_t file_ = 0, at_ = 0;
  std::unique_ptr<TextReader> reader_;
  std::string document_, sentence_;
  std::exception_ptr error_;
};

}  // namespace

Tokenizer Tokenizer::train(const TokenizerTraining& t) {
  MMFREE_CHECK(UsageError, t.type == "bpe" || t.type == "unigram", "tokenizer: type '", t.type,
               "', expected bpe or unigram");
  MMFREE_CHECK(UsageError, t.vocab_size > 261 && t.vocab_size <= (1 << 20), "tokenizer: vocab size ", t.vocab_size,
               ", expected 262 (special ids, bytes, newline and tab, and a letter) to 1048576");
  MMFREE_CHECK(UsageError, t.character_coverage > 0 && t.character_coverage <= 1, "tokenizer: character coverage ",
               t.character_coverage, ", expected a share above 0 and up to 1");
  Sentences sentences(t);
  sentences.rethrow();
  const auto note = [&](const char* what, const std::string& text) {
    if (t.on_note && !text.empty()) t.on_note(what + text);
  };
  note("", passed_over_text(sentences.passed_over()));
  MMFREE_CHECK(DataError, !sentences.done(), "tokenizer: the inputs hold no text",
               sentences.skipped().empty() ? "" : "; skipped " + skipped_text(sentences.skipped()));
  // The result depends on the number of threads (each sums its share), so it is a constant.
  const std::unordered_map<std::string, std::string> options = {
      {"model_type", t.type},
      {"vocab_size", std::to_string(t.vocab_size)},
      {"character_coverage", concat(std::setprecision(9), t.character_coverage)},  // a float in SentencePiece
      {"num_threads", "8"},
      {"max_sentence_length", std::to_string(Sentences::kMaxBytes)},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "true"},
      {"allow_whitespace_only_pieces", "true"},
      {"split_digits", "true"},
      {"byte_fallback", "true"},
      {"user_defined_symbols", "\n,\t"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "-1"},
      {"minloglevel", "2"},
  };
  std::string bytes;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &sentences, &bytes);
  sentences.rethrow();
  note("skipped ", skipped_text(sentences.skipped()));
  // SentencePiece's message begins with a place in its source, and the condition in brackets.
  const std::string why = status.message();
  MMFREE_CHECK(UsageError, status.ok(), "tokenizer: no vocabulary of ", t.vocab_size,
               " pieces can be made of this text: ", why.substr(why.find("] ") == why.npos ? 0 : why.find("] ") + 2));
  Tokenizer made = from_bytes(with_mark(std::move(bytes)), t.output);
  if (!t.output.empty()) write_file(t.output, made.serialized());
  return made;
}

}  // namespace mmfree
