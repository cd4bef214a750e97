#include "train/inference/evaluate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>

#include "core/ops/check.h"
#include "core/ops/head_loss.h"
#include "core/ranks/agreement.h"

namespace mmfree {
namespace {

/// Tokens per forward pass: enough to fill the kernels, little enough to keep activations small.
int64_t forward_tokens(Device device) { return device == Device::cpu ? 4096 : 32768; }

/// The stream of tokens of some documents, in memory.
struct Stream {
  std::vector<int32_t> ids;
  std::vector<uint8_t> unscored;  // of the first ids; the others are all scored
  std::vector<int64_t> starts;    // of the documents that have tokens
  std::vector<int32_t> sets;      // of the same
  SetNames names;
  int64_t scored = 0;  // all but the first token and those that a mask leaves out

  void add(const FramedDocument& document, const std::string& set) {
    const auto& mask = document.mask;
    scored += mask.empty() ? int64_t(document.tokens.size()) : std::count(mask.begin(), mask.end(), 1);
    if (ids.empty() && (mask.empty() || mask[0])) --scored;
    starts.push_back(int64_t(ids.size()));
    sets.push_back(names.number(set));
    unscored.resize(document.mask.empty() ? unscored.size() : ids.size());
    for (const uint8_t scored : document.mask) unscored.push_back(!scored);
    ids.insert(ids.end(), document.tokens.begin(), document.tokens.end());
  }
  void ignore_unscored(int64_t offset, int64_t count, int32_t* targets) const {
    const int64_t end = std::min(offset + count, int64_t(unscored.size()));
    for (int64_t i = offset; i < end; ++i)
      if (unscored[size_t(i)]) targets[i - offset] = kIgnoreTarget;
  }
  std::vector<DocumentPart> documents(int64_t offset, int64_t count) const {
    std::vector<DocumentPart> parts;
    auto d = size_t(std::upper_bound(starts.begin(), starts.end(), offset) - starts.begin()) - 1;
    for (; d < starts.size() && starts[d] < offset + count; ++d) parts.push_back({starts[d] - offset, sets[d]});
    return parts;
  }
};

/// One batch of windows, and what is to be scored of it.
struct Windows {
  int64_t first, rows, length;
  Tensor ids, targets;  // [rows · length]
  Tensor starts;        // [rows · length] u8, where documents start; undefined: not wanted
};

/// Adds the scored targets in their order.
class Sums {
 public:
  Sums(const TokenSource& source, Evaluation& sum) : source_(source), sum_(sum), sets_(source.sets.size()) {}

  void add(const Windows& w, const Tensor& nll) {
    for (int64_t r = 0; r < w.rows; ++r) {
      const int64_t begin = (w.first + r) * w.length, count = std::min(w.length, source_.tokens - 1 - begin);
      std::vector<DocumentPart> parts;
      if (source_.documents) parts = source_.documents(begin, count + 1);
      size_t part = 0;
      for (int64_t i = 0; i < count; ++i) {
        while (part + 1 < parts.size() && parts[part + 1].begin <= i + 1) ++part;
        const int64_t at = r * w.length + i;
        const int32_t target = w.targets.data<int32_t>()[at];
        if (target == kIgnoreTarget) continue;
        LossSum token{value(nll, at), 1};
        if (!parts.empty()) count_text(target, i + 1 - parts[part].begin, token);
        add_token(token, sum_);
        add_token(token, position(i));
        if (!parts.empty() && sets_.size() > 1) add_token(token, sets_[size_t(parts[part].set)]);
      }
    }
  }

  /// Names the sums per set.
  void finish() {
    for (size_t s = 0; s < sets_.size(); ++s)
      if (sets_[s].tokens > 0) sum_.sets.emplace_back(source_.sets[s], sets_[s]);
    if (sum_.sets.size() == 1 && sum_.sets[0].first.empty()) sum_.sets.clear();
  }

 private:
  static double value(const Tensor& nll, int64_t at) {
    return nll.dtype() == DType::f64 ? nll.data<double>()[at] : double(nll.data<float>()[at]);
  }
  /// `place`: of the token in its document.
  void count_text(int32_t target, int64_t place, LossSum& token) const {
    const int32_t bytes = source_.piece_bytes[size_t(target)];
    if (bytes == 0) return;
    token.text_nats = token.nats;
    token.text_bytes = bytes - int32_t(source_.dummy_prefix && place == int64_t(source_.bos));
  }
  static void add_token(const LossSum& token, LossSum& to) {
    to.nats += token.nats, to.tokens += token.tokens;
    to.text_nats += token.text_nats, to.text_bytes += token.text_bytes;
  }
  LossSum& position(int64_t i) {
    const auto k = size_t(std::bit_width(uint64_t(i)));
    if (sum_.positions.size() <= k) sum_.positions.resize(k + 1);
    return sum_.positions[k];
  }

  const TokenSource& source_;
  Evaluation& sum_;
  std::vector<LossSum> sets_;
};

/// Reads a batch of windows; scores at most `left` targets, and counts them off.
Windows read_windows(const TokenSource& source, int64_t first, int64_t rows, const EvaluateOptions& options,
                     int64_t& left) {
  const int64_t length = std::min(options.seq_len, source.tokens - 1);
  Windows w{first, rows, length, Tensor::zeros({rows * length}, DType::i32), Tensor({rows * length}, DType::i32), {}};
  if (options.reset_state) w.starts = Tensor::zeros({rows * length}, DType::u8);
  std::vector<int32_t> tokens(size_t(length) + 1);
  for (int64_t r = 0; r < rows; ++r) {
    int32_t *ids = w.ids.mut<int32_t>() + r * length, *targets = w.targets.mut<int32_t>() + r * length;
    const int64_t begin = (first + r) * length, count = std::min(length, source.tokens - 1 - begin);
    source.read(begin, count + 1, tokens.data());
    std::copy_n(tokens.begin(), count, ids);
    std::fill_n(targets, length, kIgnoreTarget);
    std::copy_n(tokens.begin() + 1, count, targets);
    if (source.ignore_unscored) source.ignore_unscored(begin + 1, count, targets);
    if (w.starts.defined())
      for (const DocumentPart& part : source.documents(begin, count))
        if (part.begin >= 0) w.starts.mut<uint8_t>()[r * length + part.begin] = 1;
    for (int64_t i = 0; i < count; ++i)
      if (targets[i] != kIgnoreTarget && left-- <= 0) targets[i] = kIgnoreTarget;
    left = std::max<int64_t>(0, left);
  }
  return w;
}

/// −ln p of every target. A single window that is longer than a forward pass goes through in pieces.
Tensor nll_of(const LM& lm, const Windows& w) {
  const int64_t piece = forward_tokens(lm.device());
  const auto forward = [&](int64_t begin, int64_t end, DecodeState* state) {
    const auto part = [&](const Tensor& t) { return t.defined() ? t.slice(begin, end).to(lm.device()) : t; };
    return lm.nll(part(w.ids), part(w.targets), {w.rows, part(w.starts), state}).to(Device::cpu);
  };
  const int64_t all = w.rows * w.length;
  if (w.rows > 1 || w.length <= piece) return forward(0, all, nullptr);
  DecodeState state(lm.config().num_hidden_layers);
  Tensor nll;
  for (int64_t begin = 0; begin < all; begin += piece) {
    const Tensor part = forward(begin, std::min(all, begin + piece), &state);
    if (!nll.defined()) nll = Tensor({all}, part.dtype());
    nll.slice(begin, begin + part.size()).copy_from(part);
  }
  return nll;
}

/// Calls compute(rank, ranks) in every rank and gives the results of all, tensors of one dtype.
std::vector<Tensor> computed_by_ranks(Group* group, const std::function<Tensor(int, int)>& compute) {
  if (!group || group->size() == 1) return {compute(0, 1)};
  Tensor mine;
  const std::vector<int64_t> sizes = agree(*group, [&] {
    mine = compute(group->rank(), group->size());
    return mine.defined() ? mine.size() : 0;
  });
  const DType dtype = param_dtype(mine.dtype());
  const int64_t most = *std::max_element(sizes.begin(), sizes.end());
  Tensor padded = Tensor::zeros({most}, dtype), all({group->size() * most}, dtype);
  if (mine.defined()) padded.slice(0, mine.size()).copy_from(mine);
  group->all_gather(padded.raw(), size_t(padded.bytes()), all.raw_mut());
  std::vector<Tensor> results;
  for (size_t r = 0; r < sizes.size(); ++r)
    results.push_back(all.slice(int64_t(r) * most, int64_t(r) * most + sizes[r]));
  return results;
}

}  // namespace

TokenSource TokenSource::shards(const TokenShards& shards) {
  const ShardInfo& info = shards.info();
  return {shards.total_tokens(),
          [&](int64_t offset, int64_t count, int32_t* out) { shards.read(offset, count, out); },
          [&](int64_t offset, int64_t count, int32_t* targets) { shards.ignore_unscored(offset, count, targets); },
          [&](int64_t offset, int64_t count) { return shards.documents(offset, count); },
          shards.sets(),
          info.piece_bytes,
          info.dummy_prefix,
          has_bos(info.framing)};
}

TokenSource source_of_texts(const DocumentEncoder& encoder, const std::function<bool(Document*)>& next, int64_t most) {
  const auto stream = std::make_shared<Stream>();
  stream->names.number("");
  for (Document document; stream->scored < most && next(&document);)
    if (const FramedDocument framed = encoder.document(document); !framed.tokens.empty())
      stream->add(framed, document.set);
  const Tokenizer& tokenizer = encoder.tokenizer();
  TokenSource source{
      int64_t(stream->ids.size()),
      [stream](int64_t offset, int64_t count, int32_t* out) { std::copy_n(stream->ids.begin() + offset, count, out); },
      [stream](int64_t offset, int64_t count, int32_t* targets) { stream->ignore_unscored(offset, count, targets); },
      [stream](int64_t offset, int64_t count) { return stream->documents(offset, count); },
      stream->names.all(),
      {},
      tokenizer.adds_dummy_prefix(),
      has_bos(encoder.framing())};
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) source.piece_bytes.push_back(tokenizer.byte_length(id));
  return source;
}

double LossSum::loss() const { return nats / double(tokens); }
double LossSum::perplexity() const { return std::exp(loss()); }
double LossSum::bits_per_byte() const {
  return text_bytes ? text_nats / (std::log(2.0) * double(text_bytes)) : std::nan("");
}

std::pair<int64_t, int64_t> position_range(size_t k) { return {k == 0 ? 0 : int64_t(1) << (k - 1), int64_t(1) << k}; }

Evaluation evaluate(const LM& lm, const TokenSource& source, const EvaluateOptions& options) {
  MMFREE_CHECK(DataError, source.tokens >= 2, "evaluate: ", source.tokens,
               " tokens are too few to score; at least 2 are needed");
  const int64_t scorable = source.tokens - 1, t = std::min(options.seq_len, scorable);
  const int64_t windows = (scorable + t - 1) / t, limit = options.limit > 0 ? options.limit : scorable;
  int64_t batch = std::max<int64_t>(1, forward_tokens(lm.device()) / t);
  if (options.batch > 0) batch = std::min(batch, options.batch);
  Evaluation sum;
  Sums sums(source, sum);
  int64_t left = limit;
  for (int64_t next = 0; next < windows && left > 0;) {
    std::vector<Windows> round;  // one batch for each rank: all read all of them, and each computes its own
    const std::vector<Tensor> nlls = computed_by_ranks(options.group, [&](int rank, int ranks) {
      for (; int(round.size()) < ranks && next < windows && left > 0; next += batch)
        round.push_back(read_windows(source, next, std::min(batch, windows - next), options, left));
      return rank < int(round.size()) ? nll_of(lm, round[size_t(rank)]) : Tensor();
    });
    for (size_t i = 0; i < round.size(); ++i) sums.add(round[i], nlls[i]);
    const Windows& last = round.back();
    const int64_t all = std::min(limit, scorable),
                  done = std::max(limit - left, (last.first + last.rows) * t * all / scorable);
    if (options.on_progress && !options.on_progress(std::min(done, all), all)) return sum;
  }
  MMFREE_CHECK(DataError, sum.tokens > 0, "evaluate: the mask scores none of the ", source.tokens, " tokens");
  sums.finish();
  return sum;
}

}  // namespace mmfree
