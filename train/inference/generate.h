#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "layers/lm.h"

namespace mmfree {

struct GenerateOptions {
  int64_t max_tokens = 200;
  double temperature = 0.8;  ///< 0: always the most likely token
  int64_t top_k = 0;         ///< keep the k most likely tokens; 0: all
  double top_p = 0.95;       ///< then keep the most likely ones that together reach this probability; 1: all
  uint64_t seed = 1;
  std::vector<int32_t> stop;  ///< ids that end the text
};

/// The id of the largest of logits [V], the lowest of several. @throws DivergedError unless it is finite and none is
/// NaN
int32_t most_likely(const float* logits, int64_t vocab);

/// Picks the next token from logits [V]; u is uniform in [0, 1). Ties in rank go to the lower id.
/// @throws DivergedError as most_likely
int32_t sample(const float* logits, int64_t vocab, const GenerateOptions& options, double u);

/// Continues `prompt` (at least one token), handing each new token to `on_token` until it returns false, a stop token
/// or max_tokens. The state carried from token to token has a constant size; the same seed gives the same text.
/// Returns the new tokens, without the stop token.
std::vector<int32_t> generate(const LM& lm, const std::vector<int32_t>& prompt, const GenerateOptions& options,
                              const std::function<bool(int32_t)>& on_token = {});

}  // namespace mmfree
