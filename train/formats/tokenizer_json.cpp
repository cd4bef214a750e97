#include "train/formats/tokenizer_json.h"

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/system/utf8.h"
#include "data/text/tokenizer_model.h"

namespace mmfree {

namespace {

using Json = nlohmann::ordered_json;
constexpr const char* kSpace = "\xE2\x96\x81";  // U+2581

/// A model that the format cannot say; what() is the reason.
struct Inexpressible : Error {
  using Error::Error;
};

bool is_one_character(std::string_view text) { return utf8_char(text) == int(text.size()); }

/// JSON text of a string.
std::string json_text(const std::string& text) { return nlohmann::json(text).dump(); }

/// Symbols of the user that need a rule. One with a space is found in no text: spaces are U+2581 by then.
bool needs_a_rule(const Piece& piece) {
  return piece.type == PieceType::user_defined && !is_one_character(piece.text) &&
         piece.text.find(' ') == std::string::npos;
}

/// That each piece acts in the format as it does in SentencePiece. @throws Inexpressible naming the first other one
void check_pieces(const TokenizerModel& model) {
  const bool has_bytes =
      std::any_of(model.pieces.begin(), model.pieces.end(), [](const Piece& p) { return p.type == PieceType::byte; });
  for (const Piece& piece : model.pieces) {
    const std::string& text = piece.text;
    const auto require = [&](bool ok, const char* why) {
      if (!ok) throw Inexpressible(concat("piece ", quote(text), " ", why));
    };
    require(piece.type != PieceType::unused, "is marked as unused, which only SentencePiece knows");
    require(!needs_a_rule(piece) || !model.adds_dummy_prefix,
            "is a user-defined symbol of several characters in a model that puts a space before each text: a text that "
            "begins with the symbol would lose that space");
    const bool ordinary = piece.type == PieceType::normal || piece.type == PieceType::user_defined;
    require(ordinary || !is_one_character(text), "is a control symbol of one character, which text may contain");
    const bool like_a_byte = text.size() == 6 && text.starts_with("<0x") && text.ends_with('>');
    require(piece.type == PieceType::byte || !has_bytes || !like_a_byte, "looks like a byte piece and is none");
  }
}

struct Merge {
  std::string_view left, right;
};

/// The merges that make one piece.
struct Step {
  const Piece* piece;
  std::vector<Merge> merges;
};

/// How often `character` follows itself to make `text`; 0 if something else stands there.
size_t run_length(std::string_view text, std::string_view character) {
  for (size_t at = 0; at < text.size(); at += character.size())
    if (text.substr(at, character.size()) != character) return 0;
  return text.size() / character.size();
}

/// The parts into which merges divide a run of `n` equal characters. `rank` of two lengths says which neighbours merge
/// first, the leftmost ones of equal rank; none if they do not merge.
std::vector<size_t> divided_run(size_t n, const std::function<std::optional<size_t>(size_t, size_t)>& rank) {
  std::vector<size_t> parts(n, 1);
  for (;;) {
    std::optional<size_t> best;
    size_t at = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const std::optional<size_t> r = rank(parts[i], parts[i + 1]);
      if (r && (!best || *r < *best)) best = r, at = i;
    }
    if (!best) return parts;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + ptrdiff_t(at) + 1);
  }
}

/// The merges of a bpe model, the first one first. Where pieces have the same score, SentencePiece merges the leftmost
/// pair, the format the first one of its list.
class Merges {
 public:
  explicit Merges(const TokenizerModel& model) {
    std::vector<const Piece*> order;
    for (const Piece& piece : model.pieces) {
      if (piece.type != PieceType::normal && piece.type != PieceType::user_defined) continue;
      pieces_.emplace(piece.text, &piece);
      if (piece.type == PieceType::normal && piece.text.find(' ') == std::string::npos) order.push_back(&piece);
    }
    std::stable_sort(order.begin(), order.end(), [](const Piece* a, const Piece* b) { return a->score > b->score; });
    for (const Piece* piece : order)
      if (Step step{piece, divisions(piece->text)}; !step.merges.empty()) steps_.push_back(std::move(step));
    size_t ties = 0;
    for (size_t from = 0, to; from < steps_.size(); from = to) {
      for (to = from + 1; to < steps_.size() && steps_[to].piece->score == steps_[from].piece->score;) ++to;
      if (to - from > 1) check_tie(from, to, ++ties);
    }
  }
  const std::vector<Step>& steps() const { return steps_; }

 private:
  /// The divisions of a piece into two symbols that SentencePiece may hold side by side.
  std::vector<Merge> divisions(std::string_view text) const {
    std::vector<Merge> merges;
    for (size_t at = size_t(utf8_char(text)); at < text.size(); at += size_t(utf8_char(text.substr(at)))) {
      const Merge merge{text.substr(0, at), text.substr(at)};
      if (!is_symbol(merge.left) || !is_symbol(merge.right)) continue;
      for (const std::string_view part : {merge.left, merge.right})
        if (!pieces_.count(part))
          throw Inexpressible(concat("piece ", quote(text), " is made of ", quote(part), ", which is no piece"));
      merges.push_back(merge);
    }
    std::reverse(merges.begin(), merges.end());  // the longest beginning first
    return merges;
  }
  /// A character, known or not, or a piece; user-defined ones stay alone.
  bool is_symbol(std::string_view text) const {
    const auto found = pieces_.find(text);
    return found == pieces_.end() ? is_one_character(text) : found->second->type == PieceType::normal;
  }

  /// That the order among steps `from` to `to`, of one score, does not matter. It is known for runs of one character,
  /// which Llama's models have for spaces, if such a run meets no other merge before. `count`: of ties so far.
  void check_tie(size_t from, size_t to, size_t count) const {
    constexpr size_t kLongest = 64, kMostTies = 8;
    const auto require = [&](bool ok) {
      if (!ok)
        throw Inexpressible(concat("pieces ", quote(steps_[from].piece->text), " and ",
                                   quote(steps_[from + 1].piece->text),
                                   " have the same score, so neither of them comes first"));
    };
    require(count <= kMostTies);
    const std::string_view text = steps_[from].piece->text, character = text.substr(0, size_t(utf8_char(text)));
    std::map<std::pair<size_t, size_t>, size_t> ranks;
    size_t longest = 0;
    for (size_t i = 0; i < steps_.size(); ++i) {
      const bool inside = i >= from && i < to;
      const size_t length = run_length(steps_[i].piece->text, character);
      require(inside == (length > 0));
      for (const Merge& merge : steps_[i].merges) {
        const size_t left = run_length(merge.left, character), right = run_length(merge.right, character);
        require(i >= from || (left < 2 && right < 2));
        if (inside) ranks.emplace(std::pair(left, right), ranks.size());
      }
      if (inside) longest = std::max(longest, length);
    }
    require(longest <= kLongest);
    const auto listed = [&](size_t a, size_t b) -> std::optional<size_t> {
      const auto found = ranks.find({a, b});
      return found == ranks.end() ? std::nullopt : std::optional(found->second);
    };
    const auto leftmost = [&](size_t a, size_t b) -> std::optional<size_t> {
      return ranks.count({a, b}) ? std::optional<size_t>(0) : std::nullopt;
    };
    for (size_t n = 2; n <= 4 * longest; ++n) require(divided_run(n, listed) == divided_run(n, leftmost));
  }

  std::unordered_map<std::string_view, const Piece*> pieces_;
  std::vector<Step> steps_;
};

/// {"a": 0, "b": 1, ...} and [["a","b"], ...]: as text, since these are the long parts.
std::string vocabulary(const TokenizerModel& model) {
  std::string out;
  for (size_t id = 0; id < model.pieces.size(); ++id)
    out += concat(id ? "," : "", json_text(model.pieces[id].text), ":", id);
  return "{" + out + "}";
}

std::string merge_list(const TokenizerModel& model) {
  if (model.type != TokenizerType::bpe) return "[]";
  const Merges merges(model);
  std::string out;
  for (const Step& step : merges.steps())
    for (const Merge& merge : step.merges)
      out += concat(out.empty() ? "[" : ",[", json_text(std::string(merge.left)), ",",
                    json_text(std::string(merge.right)), "]");
  return "[" + out + "]";
}

class Writer {
 public:
  Writer(const Tokenizer& tokenizer, const TokenizerModel& model, Framing framing)
      : tokenizer_(tokenizer), model_(model), encoder_(tokenizer, framing) {
    for (const Piece& piece : model.pieces) has_bytes_ |= piece.type == PieceType::byte;
  }

  /// @throws Inexpressible
  std::string tokenizer_json() const {
    if (model_.type == TokenizerType::unigram)
      throw Inexpressible(
          "in a unigram model, sums of scores in single precision decide between pieces; the format has double "
          "precision, in which other pieces win");
    if (model_.type == TokenizerType::word) throw Inexpressible("it is a word model");
    check_pieces(model_);
    std::string out = "{\n";
    const auto line = [&](const char* key, const Json& value) { out += concat("\"", key, "\":", value.dump(), ",\n"); };
    line("version", "1.0");
    line("truncation", nullptr);
    line("padding", nullptr);
    line("added_tokens", added_tokens());
    line("normalizer", normalizer());
    line("pre_tokenizer", nullptr);
    line("post_processor", post_processor());
    line("decoder", decoder());
    out += "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":" + json_text(unknown()) +
           ",\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":true,\"byte_fallback\":" +
           (has_bytes_ ? "true" : "false") + ",\"ignore_merges\":false,\n";
    return out + "\"vocab\":" + vocabulary(model_) + ",\n\"merges\":" + merge_list(model_) + "}\n}\n";
  }

  std::string config_json(int64_t max_length) const {
    Json json = {{"tokenizer_class", "PreTrainedTokenizerFast"}};
    const auto token = [&](const char* key, int id) {
      if (id >= 0) json[key] = tokenizer_.piece(id);
    };
    token("bos_token", tokenizer_.bos_id());
    token("eos_token", tokenizer_.eos_id());
    if (has_bytes_) token("unk_token", tokenizer_.unk_id());  // special tokens are left out of what is decoded
    token("pad_token", tokenizer_.pad_id());
    const std::vector<int32_t> opening = encoder_.opening();
    const bool by_bos = !opening.empty() && opening[0] == tokenizer_.bos_id();
    if (by_bos || opening.empty()) {  // these keys replace the rule in tokenizer.json, and cannot say "eos in front"
      json["add_bos_token"] = by_bos;
      json["add_eos_token"] = false;
    }
    json["split_special_tokens"] = true;
    json["clean_up_tokenization_spaces"] = false;
    json["model_max_length"] = max_length;
    json["model_input_names"] = {"input_ids", "attention_mask"};
    return json.dump(2) + "\n";
  }

  /// Every reader of the format stops at a version that it does not know, and prints it.
  std::string refusing_json(const std::string& why) const {
    const Json json = {{"version", why},
                       {"truncation", nullptr},
                       {"padding", nullptr},
                       {"added_tokens", Json::array()},
                       {"normalizer", nullptr},
                       {"pre_tokenizer", nullptr},
                       {"post_processor", nullptr},
                       {"decoder", nullptr},
                       {"model", {{"type", "BPE"}, {"vocab", Json::object()}, {"merges", Json::array()}}}};
    return json.dump(2) + "\n";
  }

 private:
  std::string unknown() const { return tokenizer_.piece(tokenizer_.unk_id()); }

  Json added_tokens() const {
    Json list = Json::array();
    for (size_t id = 0; id < model_.pieces.size(); ++id) {
      const Piece& piece = model_.pieces[id];
      const bool special = piece.type == PieceType::control || (piece.type == PieceType::unknown && has_bytes_);
      if (!special && !needs_a_rule(piece)) continue;
      list.push_back({{"id", id},
                      {"content", piece.text},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", !special},
                      {"special", special}});
    }
    return list;
  }

  Json normalizer() const {
    Json steps = Json::array();
    if (model_.adds_dummy_prefix) steps.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
    steps.push_back(replace(" ", kSpace));
    return {{"type", "Sequence"}, {"normalizers", steps}};
  }

  Json decoder() const {
    Json steps = Json::array();
    if (!has_bytes_) {
      const std::string shown = tokenizer_.decode(std::vector<int32_t>{tokenizer_.unk_id()});
      if (find_invalid_utf8(shown) != std::string::npos)
        throw Inexpressible("what it decodes an unknown piece to is not UTF-8");
      steps.push_back(replace(unknown(), shown));
    }
    steps.push_back(replace(kSpace, " "));
    if (has_bytes_) steps.push_back({{"type", "ByteFallback"}});
    steps.push_back({{"type", "Fuse"}});
    if (model_.adds_dummy_prefix) steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    return {{"type", "Sequence"}, {"decoders", steps}};
  }

  /// What stands before a text, and before the second text of a pair.
  Json post_processor() const {
    const std::vector<int32_t> opening = encoder_.opening();
    if (opening.empty()) return nullptr;
    const std::string& token = tokenizer_.piece(opening[0]);
    const auto mark = [&](int type) { return Json{{"SpecialToken", {{"id", token}, {"type_id", type}}}}; };
    const auto text = [](const char* id, int type) { return Json{{"Sequence", {{"id", id}, {"type_id", type}}}}; };
    return {{"type", "TemplateProcessing"},
            {"single", {mark(0), text("A", 0)}},
            {"pair", {mark(0), text("A", 0), mark(1), text("B", 1)}},
            {"special_tokens", {{token, {{"id", token}, {"ids", {opening[0]}}, {"tokens", {token}}}}}}};
  }

  static Json replace(const std::string& from, const std::string& to) {
    return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
  }

  const Tokenizer& tokenizer_;
  const TokenizerModel& model_;
  DocumentEncoder encoder_;
  bool has_bytes_ = false;
};

}  // namespace

HfTokenizer hf_tokenizer(const Tokenizer& tokenizer, Framing framing, int64_t max_length) {
  const TokenizerModel model = parse_tokenizer_model(tokenizer.serialized(), "tokenizer");
  const Writer writer(tokenizer, model, framing);
  HfTokenizer out;
  try {
    out.files["tokenizer.json"] = writer.tokenizer_json();
  } catch (const Inexpressible& e) {
    out.refusal = concat("the format of tokenizer.json cannot give this tokenizer's ids: ", e.what(),
                         "; read tokenizer.model with the sentencepiece package");
    out.files["tokenizer.json"] = writer.refusing_json(out.refusal);
  }
  out.files["tokenizer_config.json"] = writer.config_json(max_length);
  return out;
}

}  // namespace mmfree
