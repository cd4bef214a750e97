#include "train/inference/generate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/rng.h"

namespace mmfree {

int32_t most_likely(const float* logits, int64_t vocab) {
  int64_t best = 0;
  bool good = true;
  for (int64_t v = 0; v < vocab; ++v) {
    good &= logits[v] <= std::numeric_limits<float>::max();  // −∞ is a token that never comes
    if (logits[v] > logits[best]) best = v;
  }
  MMFREE_CHECK(DivergedError, good && std::isfinite(logits[best]),
               "the model's logits hold a NaN or an infinity: its weights are too large; use an older checkpoint");
  return int32_t(best);
}

int32_t sample(const float* logits, int64_t vocab, const GenerateOptions& options, double u) {
  const int32_t best = most_likely(logits, vocab);
  if (options.temperature <= 0) return best;
  std::vector<int32_t> order(static_cast<size_t>(vocab));
  std::iota(order.begin(), order.end(), 0);
  const auto better = [logits](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  size_t kept = options.top_k > 0 ? size_t(std::min(options.top_k, vocab)) : order.size();
  std::partial_sort(order.begin(), order.begin() + int64_t(kept), order.end(), better);
  std::vector<double> p(kept);
  double total = 0;
  for (size_t i = 0; i < kept; ++i)
    total += p[i] = std::exp((double(logits[order[i]]) - double(logits[order[0]])) / options.temperature);
  if (options.top_p < 1) {
    double reached = 0;
    size_t n = 0;
    while (n < kept && reached < options.top_p * total) reached += p[n++];
    kept = std::max<size_t>(n, 1);
    total = reached;
  }
  double rest = u * total;
  for (size_t i = 0; i + 1 < kept; ++i)
    if ((rest -= p[i]) < 0) return order[i];
  return order[kept - 1];
}

std::vector<int32_t> generate(const LM& lm, const std::vector<int32_t>& prompt, const GenerateOptions& options,
                              const std::function<bool(int32_t)>& on_token) {
  MMFREE_CHECK(UsageError, !prompt.empty(), "generate: the prompt has no tokens");
  const RandomStream random(options.seed, 0, "sample");
  DecodeState state(lm.config().num_hidden_layers);
  std::vector<int32_t> text;
  const auto next = [&](const int32_t* tokens, int64_t count) {
    return host_f32(lm.next_logits(Tensor::from({count}, tokens).to(lm.device()), 1, state));
  };
  Tensor logits = next(prompt.data(), int64_t(prompt.size()));
  while (int64_t(text.size()) < options.max_tokens) {
    const int32_t token = sample(logits.data<float>(), lm.config().vocab_size, options, random.uniform(text.size()));
    if (std::find(options.stop.begin(), options.stop.end(), token) != options.stop.end()) break;
    text.push_back(token);
    if (on_token && !on_token(token)) break;
    if (int64_t(text.size()) < options.max_tokens) logits = next(&token, 1);
  }
  return text;
}

}  // namespace mmfree
