#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "core/ranks/group.h"
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

/// A sequence of which the end, the continuation, is to be scored.
struct Request {
  std::vector<int32_t> tokens;  ///< context and continuation
  int64_t scored = 0;           ///< tokens of the continuation: at least one, and fewer than all
};

/// What a model thinks of a continuation.
struct Likelihood {
  double logprob = 0;  ///< Σ ln p of its tokens, nats
  bool greedy = true;  ///< whether each of them was the most likely one
};

struct LikelihoodOptions {
  int64_t batch_tokens = 0;  ///< at most so many tokens per forward pass, padding included; 0: as suits the device
  std::function<void(double share)> on_progress;  ///< share of the tokens that are done
  Group* group = nullptr;  ///< ranks that share the forward passes, each with the same model and requests; null: alone
};

/// Scores each continuation, every sequence from the empty state, in batches of similar lengths. Requests that differ
/// in their last token only are computed once. On the CPU a result depends on its request alone, to the bit;
/// on a GPU it does not depend on the number of ranks.
/// @throws DivergedError if a logit is NaN or too large, DataError for a token outside the vocabulary
std::vector<Likelihood> likelihoods(const LM& lm, const std::vector<Request>& requests,
                                    const LikelihoodOptions& options = {});

}  // namespace mmfree
