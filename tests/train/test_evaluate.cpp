// Evaluation against a plain computation from logits in double, and the counting of tokens and bytes.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/tiny_run.h"
#include "train/inference/evaluate.h"

namespace mmfree {
namespace {

/// -ln p of ids[1..] in windows of seq_len inputs, each from the empty state, one window at a time.
std::vector<double> plain_nll(const LM& lm, const std::vector<int32_t>& ids, int64_t seq_len) {
  std::vector<double> nll;
  const int64_t last = int64_t(ids.size()) - 1;
  for (int64_t begin = 0; begin < last; begin += seq_len) {
    const int64_t n = std::min(seq_len, last - begin);
    const Tensor logits = as_f64(lm.logits(Tensor::from({n}, ids.data() + begin), 1));
    for (int64_t i = 0; i < n; ++i) {
      const double* x = logits.data<double>() + i * logits.dim(1);
      double most = x[0], sum = 0;
      for (int64_t v = 0; v < logits.dim(1); ++v) most = std::max(most, x[v]);
      for (int64_t v = 0; v < logits.dim(1); ++v) sum += std::exp(x[v] - most);
      nll.push_back(most + std::log(sum) - x[ids[size_t(begin + i + 1)]]);
    }
  }
  return nll;
}

TokenSource memory(const std::vector<int32_t>& ids) {
  return {int64_t(ids.size()),
          [&ids](int64_t offset, int64_t count, int32_t* out) { std::copy_n(ids.begin() + offset, count, out); },
          {},
          -1,
          false};
}

std::vector<int32_t> some_ids(int64_t n) {
  const Tensor t = random_ids(n, 61, 4);
  return {t.data<int32_t>(), t.data<int32_t>() + n};
}

TEST(Evaluate, EqualsAPlainComputationForAnyWindowAndBatch) {
  const Model m = tiny_model(tiny_model_config(), false);
  for (int64_t tokens : {2, 3, 100, 101, 1030})
    for (int64_t seq_len : {1, 7, 50, 99, 100, 512, 5000}) {
      SCOPED_TRACE(concat(tokens, " tokens in windows of ", seq_len));
      const std::vector<int32_t> ids = some_ids(tokens);
      const std::vector<double> expected = plain_nll(*m.lm, ids, seq_len);
      double sum = 0;
      for (double x : expected) sum += x;
      const Evaluation e = evaluate(*m.lm, memory(ids), {seq_len, 0, {}});
      EXPECT_EQ(e.tokens, tokens - 1);
      EXPECT_EQ(int64_t(expected.size()), tokens - 1);
      EXPECT_NEAR(e.nats, sum, 1e-6 * sum);
      EXPECT_NEAR(e.loss(), sum / double(tokens - 1), 1e-6 * sum);
      EXPECT_DOUBLE_EQ(e.perplexity(), std::exp(e.loss()));
      EXPECT_TRUE(std::isnan(e.bits_per_byte()));
      EXPECT_EQ(e.text_bytes, 0);
    }
  EXPECT_THROW(evaluate(*m.lm, memory(some_ids(1)), {7, 0, {}}), DataError);
}

TEST(Evaluate, TheLimitTakesWholeWindowsFromTheStart) {
  const Model m = tiny_model(tiny_model_config(), false);
  const std::vector<int32_t> ids = some_ids(1000);
  const std::vector<double> nll = plain_nll(*m.lm, ids, 10);
  for (const auto& [limit, scored] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 10}, {10, 10}, {19, 10}, {20, 20}, {995, 990}, {999, 990}, {5000, 999}, {0, 999}}) {
    double sum = 0;
    for (int64_t i = 0; i < scored; ++i) sum += nll[size_t(i)];
    const Evaluation e = evaluate(*m.lm, memory(ids), {10, limit, {}});
    EXPECT_EQ(e.tokens, scored) << limit;
    EXPECT_NEAR(e.nats, sum, 1e-6 * sum) << limit;
  }
}

TEST(Evaluate, ProgressIsToldAndMayStop) {
  const Model m = tiny_model(tiny_model_config(), false);
  const std::vector<int32_t> ids = some_ids(10000);
  std::vector<int64_t> told;
  evaluate(*m.lm, memory(ids), {100, 0, [&](int64_t done, int64_t total) {
                                  EXPECT_EQ(total, 9999);
                                  told.push_back(done);
                                  return true;
                                }});
  ASSERT_GT(told.size(), 1u);
  EXPECT_EQ(told.back(), 9999);
  const Evaluation e = evaluate(*m.lm, memory(ids), {100, 0, [](int64_t, int64_t) { return false; }});
  EXPECT_EQ(e.tokens, told.front());
}

TEST(Evaluate, BytesAreThoseOfTheText) {
  const Model m = tiny_model(tiny_model_config());
  std::vector<std::string> documents = {tiny_text(50, 900), "é水🦉 plain, and \xE2\x80\xA2 never seen: Ж\n\ttab",
                                        "x", "  two spaces"};
  int64_t bytes = 0;
  std::vector<int32_t> ids;
  const Tokenizer& tokenizer = *m.tokenizer;
  std::vector<bool> special;
  for (const std::string& d : documents) {
    bytes += int64_t(d.size());
    ids.push_back(tokenizer.bos_id()), special.push_back(true);
    for (int32_t id : tokenizer.encode(d)) ids.push_back(id), special.push_back(false);
  }
  const std::vector<double> nll = plain_nll(*m.lm, ids, 13);
  double text = 0, all = 0;
  for (size_t i = 0; i < nll.size(); ++i) all += nll[i], text += special[i + 1] ? 0 : nll[i];
  const Evaluation e = evaluate(*m.lm, TokenSource::texts(tokenizer, documents), {13, 0, {}});
  EXPECT_EQ(e.text_bytes, bytes);
  EXPECT_EQ(e.tokens, int64_t(ids.size()) - 1);
  EXPECT_NEAR(e.nats, all, 1e-6 * all);
  EXPECT_NEAR(e.text_nats, text, 1e-6 * text);
  EXPECT_NEAR(e.bits_per_byte(), text / std::log(2.0) / double(bytes), 1e-6);
}

TEST(Evaluate, CountsOnlyWhatTheMaskScores) {
  const Model m = tiny_model(tiny_model_config(), false);
  const std::vector<int32_t> ids = some_ids(203);
  const auto scored = [](int64_t i) { return i % 3 != 0; };
  TokenSource source = memory(ids);
  source.bos_id = 5, source.dummy_prefix = true;
  for (int32_t id = 0; id < 61; ++id) source.piece_bytes.push_back(id % 4);
  source.ignore_unscored = [&](int64_t offset, int64_t count, int32_t* targets) {
    for (int64_t i = 0; i < count; ++i)
      if (!scored(offset + i)) targets[i] = kIgnoreTarget;
  };
  const std::vector<double> nll = plain_nll(*m.lm, ids, 20);
  double nats = 0, text = 0;
  int64_t tokens = 0, bytes = 0, last = 0;
  for (size_t i = 0; i < nll.size(); ++i) {
    if (!scored(int64_t(i + 1))) continue;
    ++tokens, nats += nll[i];
    if (ids[i + 1] % 4) text += nll[i], bytes += ids[i + 1] % 4 - (ids[i] == 5);
  }
  const Evaluation e = evaluate(*m.lm, source, {20, 0, [&](int64_t done, int64_t total) {
                                                  last = done;
                                                  EXPECT_EQ(total, 202);
                                                  return true;
                                                }});
  EXPECT_EQ(last, 202) << "progress counts all tokens";
  EXPECT_EQ(e.tokens, tokens);
  EXPECT_EQ(e.text_bytes, bytes);
  EXPECT_NEAR(e.nats, nats, 1e-6 * nats);
  EXPECT_NEAR(e.text_nats, text, 1e-6 * text);
  source.ignore_unscored = [](int64_t, int64_t count, int32_t* targets) { std::fill_n(targets, count, kIgnoreTarget); };
  EXPECT_THROW(evaluate(*m.lm, source, {20, 0, {}}), DataError);
}

TEST(Evaluate, ReadsEachWindowOnce) {
  const Model m = tiny_model(tiny_model_config(), false);
  const std::vector<int32_t> ids = some_ids(203);
  TokenSource source = memory(ids);
  int64_t read = 0;
  source.read = [&, once = source.read](int64_t offset, int64_t count, int32_t* out) {
    read += count;
    once(offset, count, out);
  };
  evaluate(*m.lm, source, {20, 0, {}});
  EXPECT_EQ(read, 202 + 11) << "each window of 20 begins with the token that the one before ends with";
}

TEST(Evaluate, ShardsGiveTheNumbersOfTheirTokens) {
  const Model m = tiny_model(tiny_model_config());
  const TokenShards shards({TinyCorpus::get().valid()});
  std::vector<int32_t> ids(size_t(shards.total_tokens()));
  shards.read(0, shards.total_tokens(), ids.data());
  const std::vector<double> nll = plain_nll(*m.lm, ids, 17);
  double all = 0, text = 0;
  int64_t bytes = 0;
  std::vector<int32_t> document;
  for (size_t i = 0; i < nll.size(); ++i) {
    all += nll[i];
    if (ids[i + 1] != m.tokenizer->bos_id() && ids[i + 1] != m.tokenizer->eos_id()) text += nll[i];
  }
  for (int32_t id : ids) {
    if (id != m.tokenizer->bos_id() && id != m.tokenizer->eos_id()) {
      document.push_back(id);
    } else if (!document.empty()) {
      bytes += int64_t(m.tokenizer->decode(document).size());
      document.clear();
    }
  }
  const Evaluation e = evaluate(*m.lm, TokenSource::shards(shards), {17, 0, {}});
  EXPECT_EQ(e.tokens, shards.total_tokens() - 1);
  EXPECT_NEAR(e.nats, all, 1e-6 * all);
  EXPECT_NEAR(e.text_nats, text, 1e-6 * text);
  EXPECT_EQ(e.text_bytes, bytes);
}

TEST(Evaluate, BitsDoNotDependOnThreads) {
  const Model m = tiny_model(tiny_model_config(), false);
  const std::vector<int32_t> ids = some_ids(2000);
  std::vector<double> nats;
  for (int n : {1, 2, 3, 5}) {
    const Threads threads(n);
    nats.push_back(evaluate(*m.lm, memory(ids), {64, 0, {}}).nats);
    EXPECT_EQ(nats.back(), nats.front());
  }
}

}  // namespace
}  // namespace mmfree
