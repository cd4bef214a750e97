#pragma once
#include <cstdint>
#include <vector>

#include "layers/lm.h"

namespace mmfree {

/// What a model thinks of each token of a text, given those before it.
struct TokenScores {
  std::vector<double> logprobs;  ///< ln p of token i + 1, for i = 0 … tokens − 2
  std::vector<bool> greedy;      ///< whether that token was the most likely one (ties: the lowest id is)
};

/// Scores a whole sequence from the empty state, in pieces of bounded memory. Needs at least one token.
/// @throws DivergedError if a logit is NaN or too large
TokenScores score(const LM& lm, const std::vector<int32_t>& tokens);

}  // namespace mmfree
