#include "data/split.h"

#include "core/system/hash.h"

namespace mmfree {
namespace {

/// How far before the split a line break may be; a longer way would move too much text to the other split.
constexpr size_t kLineBytes = 1000;

/// Offset of a text's held-out tail: after a line break if one is near, else at the start of a character.
size_t tail_of(const std::string& text, double fraction) {
  auto at = size_t(double(text.size()) * (1 - fraction));
  const size_t line = text.rfind('\n', at);
  if (line != std::string::npos && line > 0 && at - line <= kLineBytes) return line + 1;
  while (at > 0 && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

}  // namespace

std::string content_key(const Document& document) {
  if (const auto* text = std::get_if<std::string>(&document.content)) return *text;
  if (const auto* text = std::get_if<PromptedText>(&document.content)) return text->prompt + '\0' + text->completion;
  const auto& ids = std::get<TokenIds>(document.content);
  std::string key(reinterpret_cast<const char*>(ids.ids.data()), ids.ids.size() * sizeof(int32_t));
  return key.append(ids.mask.begin(), ids.mask.end());
}

void Splitting::divide(Document document, std::vector<SplitDocument>* parts) const {
  const auto* text = std::get_if<std::string>(&document.content);
  if (!tails || !text) {
    const bool valid = double(hash64(content_key(document)) >> 11) < valid_fraction * 0x1p53;
    parts->push_back({std::move(document), valid});
    return;
  }
  const size_t at = tail_of(*text, valid_fraction);
  if (at > 0) parts->push_back({{text->substr(0, at), document.set}, false});
  if (at < text->size()) parts->push_back({{text->substr(at), document.set}, true});
}

}  // namespace mmfree
