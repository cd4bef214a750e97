#include "data/text/document.h"

namespace mmfree {

int64_t Document::bytes() const {
  if (const auto* text = std::get_if<std::string>(&content)) return int64_t(text->size());
  if (const auto* pair = std::get_if<PromptedText>(&content))
    return int64_t(pair->prompt.size() + pair->completion.size());
  return int64_t(std::get<TokenIds>(content).ids.size() * sizeof(int32_t));
}

}  // namespace mmfree
