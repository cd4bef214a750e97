#include "data/text/framing.h"

#include <algorithm>

#include "core/error.h"

namespace mmfree {

const char* name_of(Framing f) {
  switch (f) {
    case Framing::none:
      return "none";
    case Framing::bos:
      return "bos";
    case Framing::eos:
      return "eos";
    case Framing::both:
      return "bos+eos";
  }
  return "";
}

Framing framing_of(bool bos, bool eos) {
  return bos && eos ? Framing::both : bos ? Framing::bos : eos ? Framing::eos : Framing::none;
}

DocumentEncoder::DocumentEncoder(Tokenizer tokenizer, Framing framing)
    : tokenizer_(std::move(tokenizer)),
      framing_(framing_of(has_bos(framing) && tokenizer_.bos_id() >= 0, has_eos(framing) && tokenizer_.eos_id() >= 0)) {
}

std::vector<int32_t> DocumentEncoder::framed(const std::vector<int32_t>& ids) const {
  std::vector<int32_t> tokens;
  tokens.reserve(ids.size() + 2);
  if (has_bos(framing_)) tokens.push_back(tokenizer_.bos_id());
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  if (has_eos(framing_)) tokens.push_back(tokenizer_.eos_id());
  return tokens;
}

FramedDocument DocumentEncoder::prompted(const PromptedText& text) const {
  const std::vector<int32_t> alone = tokenizer_.encode(text.prompt),
                             whole = tokenizer_.encode(text.prompt + text.completion);
  const auto shared = std::mismatch(alone.begin(), alone.end(), whole.begin(), whole.end()).first - alone.begin();
  FramedDocument document{framed(whole), {}};
  document.mask.assign(document.tokens.size(), 1);
  std::fill_n(document.mask.begin(), size_t(shared) + has_bos(framing_), uint8_t(0));
  return document;
}

FramedDocument DocumentEncoder::checked(const TokenIds& ids) const {
  for (const int32_t id : ids.ids)
    MMFREE_CHECK(DataError, id >= 0 && id < tokenizer_.vocab_size(), "a document has token id ", id,
                 ", the tokenizer only ", tokenizer_.vocab_size(), " pieces; it was made for another one");
  return {ids.ids, ids.mask};
}

FramedDocument DocumentEncoder::document(const Document& document) const {
  if (document.bytes() == 0) return {};
  if (const auto* text = std::get_if<std::string>(&document.content)) return {framed(tokenizer_.encode(*text)), {}};
  if (const auto* text = std::get_if<PromptedText>(&document.content)) return prompted(*text);
  return checked(std::get<TokenIds>(document.content));
}

std::vector<int32_t> DocumentEncoder::opening() const {
  if (has_bos(framing_)) return {tokenizer_.bos_id()};
  if (has_eos(framing_)) return {tokenizer_.eos_id()};
  return {};
}

std::vector<int32_t> DocumentEncoder::prompt(std::string_view text) const {
  std::vector<int32_t> tokens = opening();
  const std::vector<int32_t> ids = tokenizer_.encode(text);
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  return tokens;
}

}  // namespace mmfree
