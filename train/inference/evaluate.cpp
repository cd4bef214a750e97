#include "train/inference/evaluate.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "core/ops/head_loss.h"
#include "data/text/tokenizer.h"

namespace mmfree {
namespace {

/// Tokens per forward pass: enough to fill the kernels, little enough to keep activations small.
int64_t forward_tokens(Device device) { return device == Device::cpu ? 4096 : 32768; }

/// Adds the targets that are scored, in order.
void add_scored(const Tensor& nll, const Tensor& ids, const Tensor& targets, const TokenSource& source,
                Evaluation& sum) {
  const int32_t *id = ids.data<int32_t>(), *target = targets.data<int32_t>();
  dispatch_float(nll.dtype(), "evaluate", [&]<class T>() {
    const T* x = nll.data<T>();
    for (int64_t i = 0; i < nll.size(); ++i) {
      if (target[i] == kIgnoreTarget) continue;
      ++sum.tokens;
      sum.nats += double(x[i]);
      if (source.piece_bytes.empty()) continue;
      const int32_t bytes = source.piece_bytes[size_t(target[i])];
      if (bytes == 0) continue;
      sum.text_nats += double(x[i]);
      sum.text_bytes += bytes - int32_t(source.dummy_prefix && id[i] == source.bos_id);
    }
  });
}

}  // namespace

TokenSource TokenSource::shards(const TokenShards& shards) {
  const ShardInfo& info = shards.info();
  return {
      shards.total_tokens(),
      [&shards](int64_t offset, int64_t count, int32_t* out) { shards.read(offset, count, out); },
      info.piece_bytes,
      info.bos_id,
      info.dummy_prefix,
      [&shards](int64_t offset, int64_t count, int32_t* targets) { shards.ignore_unscored(offset, count, targets); }};
}

TokenSource TokenSource::texts(const Tokenizer& tokenizer, const std::vector<std::string>& documents) {
  auto ids = std::make_shared<std::vector<int32_t>>();
  for (const std::string& text : documents) {
    if (tokenizer.bos_id() >= 0) ids->push_back(tokenizer.bos_id());
    const std::vector<int32_t> more = tokenizer.encode(text);
    ids->insert(ids->end(), more.begin(), more.end());
  }
  TokenSource source{
      int64_t(ids->size()),
      [ids](int64_t offset, int64_t count, int32_t* out) { std::copy_n(ids->begin() + offset, count, out); },
      {},
      tokenizer.bos_id(),
      tokenizer.adds_dummy_prefix()};
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) source.piece_bytes.push_back(tokenizer.byte_length(id));
  return source;
}

double Evaluation::loss() const { return nats / double(tokens); }
double Evaluation::perplexity() const { return std::exp(loss()); }
double Evaluation::bits_per_byte() const {
  return text_bytes ? text_nats / (std::log(2.0) * double(text_bytes)) : std::nan("");
}

Evaluation evaluate(const LM& lm, const TokenSource& source, const EvaluateOptions& options) {
  MMFREE_CHECK(DataError, source.tokens >= 2, "evaluate: ", source.tokens,
               " tokens are too few to score; at least 2 are needed");
  const int64_t scorable = source.tokens - 1, t = std::min(options.seq_len, scorable);
  int64_t windows = (scorable + t - 1) / t;
  if (options.limit > 0) windows = std::min(windows, std::max<int64_t>(1, options.limit / t));
  const int64_t batch = std::max<int64_t>(1, forward_tokens(lm.device()) / t);
  Evaluation sum;
  std::vector<int32_t> tokens(size_t(t) + 1);
  for (int64_t first = 0; first < windows; first += batch) {
    const int64_t rows = std::min(batch, windows - first);
    Tensor ids = Tensor::zeros({rows * t}, DType::i32), targets({rows * t}, DType::i32);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t begin = (first + r) * t, count = std::min(t, scorable - begin);
      source.read(begin, count + 1, tokens.data());
      std::copy_n(tokens.begin(), count, ids.mut<int32_t>() + r * t);
      std::fill_n(targets.mut<int32_t>() + r * t, t, kIgnoreTarget);
      std::copy_n(tokens.begin() + 1, count, targets.mut<int32_t>() + r * t);
      if (source.ignore_unscored) source.ignore_unscored(begin + 1, count, targets.mut<int32_t>() + r * t);
    }
    const Tensor nll = lm.nll(ids.to(lm.device()), targets.to(lm.device()), rows).to(Device::cpu);
    add_scored(nll, ids, targets, source, sum);
    const int64_t done = std::min((first + rows) * t, scorable), all = std::min(windows * t, scorable);
    if (options.on_progress && !options.on_progress(done, all)) return sum;
  }
  MMFREE_CHECK(DataError, sum.tokens > 0, "evaluate: the mask scores none of the ", source.tokens, " tokens");
  return sum;
}

}  // namespace mmfree
