#include "train/inference/score.h"

#include <algorithm>
#include <cmath>

#include "train/inference/generate.h"

namespace mmfree {

TokenScores score(const LM& lm, const std::vector<int32_t>& tokens) {
  TokenScores scores;
  DecodeState state(lm.config().num_hidden_layers);
  const int64_t vocab = lm.config().vocab_size, count = int64_t(tokens.size()) - 1;
  constexpr int64_t kRows = 512;
  for (int64_t begin = 0; begin < count; begin += kRows) {
    const int64_t rows = std::min(kRows, count - begin);
    const Tensor logits = host_f32(lm.logits(Tensor::from({rows}, tokens.data() + begin).to(lm.device()), {1, &state}));
    for (int64_t r = 0; r < rows; ++r) {
      const float* x = logits.data<float>() + r * vocab;
      const int64_t target = tokens[size_t(begin + r + 1)], best = most_likely(x, vocab);
      MMFREE_CHECK(DataError, target >= 0 && target < vocab, "score: token id ", target, " is outside 0..", vocab - 1);
      double sum = 0;
      for (int64_t v = 0; v < vocab; ++v) sum += std::exp(double(x[v]) - double(x[best]));
      scores.logprobs.push_back(double(x[target]) - double(x[best]) - std::log(sum));
      scores.greedy.push_back(target == best);
    }
  }
  return scores;
}

}  // namespace mmfree
