// Evaluation against a plain computation from logits in double, and the counting of tokens and bytes.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/support/compare.h"
#include "tests/support/paths.h"
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
          [&ids](int64_t offset, int64_t count, int32_t* out) { std::copy_n(ids.begin() + offset, count, out); }};
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

TEST(Evaluate, ScoresExactlyAsManyTokensAsAsked) {
  const Model m = tiny_model(tiny_model_config(), false);
  const std::vector<int32_t> ids = some_ids(1000);
  const std::vector<double> nll = plain_nll(*m.lm, ids, 10);
  TokenSource source = memory(ids);
  for (const bool masked : {false, true}) {
    const auto scores = [&](int64_t token) { return !masked || token % 3 != 0; };
    if (masked)
      source.ignore_unscored = [&](int64_t offset, int64_t count, int32_t* targets) {
        for (int64_t i = 0; i < count; ++i)
          if (!scores(offset + i)) targets[i] = kIgnoreTarget;
      };
    for (const int64_t limit : {1, 9, 10, 19, 20, 640, 666, 995, 998, 999, 1000, 5000, 0}) {
      double sum = 0;
      int64_t scored = 0;
      for (int64_t i = 0; i < 999 && (limit == 0 || scored < limit); ++i)
        if (scores(i + 1)) sum += nll[size_t(i)], ++scored;
      const Evaluation e = evaluate(*m.lm, source, {10, limit});
      EXPECT_EQ(e.tokens, scored) << limit;
      EXPECT_NEAR(e.nats, sum, 1e-6 * sum) << limit;
    }
  }
}

TEST(Evaluate, BitsDoNotDependOnTheBatch) {
  for (const Precision precision : {Precision::ternary, Precision::f32}) {
    ModelConfig c = tiny_model_config();
    c.precision = precision;
    const Model m = tiny_model(c, false);
    const std::vector<int32_t> ids = some_ids(2000);
    const Evaluation all = evaluate(*m.lm, memory(ids), {64});
    for (const int64_t batch : {1, 2, 3, 7, 100}) {
      const Evaluation e = evaluate(*m.lm, memory(ids), {64, 0, {}, false, batch});
      EXPECT_EQ(e.nats, all.nats) << batch << ' ' << name_of(precision);
    }
  }
}

TEST(Evaluate, AWindowLongerThanAForwardPassKeepsItsState) {
  const Model m = tiny_model(tiny_model_config(), false);
  const std::vector<int32_t> ids = some_ids(9001);
  const Tensor whole = m.lm->nll(Tensor::from({9000}, ids.data()), Tensor::from({9000}, ids.data() + 1), 1);
  double sum = 0;
  for (int64_t i = 0; i < 9000; ++i) sum += double(whole.data<float>()[i]);
  EXPECT_EQ(evaluate(*m.lm, memory(ids), {9000}).nats, sum);
}

TEST(Evaluate, WithResetsADocumentDoesNotSeeTheOneBefore) {
  const Model m = tiny_model(tiny_model_config(), false);
  const std::vector<int32_t> ids = some_ids(201);
  const std::vector<int64_t> starts = {0, 5, 20, 21, 90, 150, 201};
  TokenSource source = memory(ids);
  source.sets = {""};
  source.piece_bytes.assign(61, 1);
  source.documents = [&](int64_t offset, int64_t count) {
    std::vector<DocumentPart> parts;
    for (size_t d = 0; d + 1 < starts.size(); ++d)
      if (starts[d + 1] > offset && starts[d] < offset + count) parts.push_back({starts[d] - offset, 0});
    return parts;
  };
  double alone = 0;  // windows of 200 tokens hold all documents, each from the empty state
  for (size_t d = 0; d + 1 < starts.size(); ++d) {
    const int64_t n = std::min(starts[d + 1], int64_t(200)) - starts[d];
    const Tensor nll =
        m.lm->nll(Tensor::from({n}, ids.data() + starts[d]), Tensor::from({n}, ids.data() + starts[d] + 1), 1);
    for (int64_t i = 0; i < n; ++i) alone += double(nll.data<float>()[i]);
  }
  EXPECT_NEAR(evaluate(*m.lm, source, {200, 0, {}, true}).nats, alone, 1e-9 * alone);
  EXPECT_NE(evaluate(*m.lm, source, {200}).nats, evaluate(*m.lm, source, {200, 0, {}, true}).nats);
}

TEST(Evaluate, PositionsAndSetsAddUpToTheWhole) {
  const Model m = tiny_model(tiny_model_config(), false);
  const std::vector<int32_t> ids = some_ids(203);
  const std::vector<int64_t> starts = {0, 5, 20, 21, 90, 150};
  TokenSource source = memory(ids);
  source.sets = {"", "web", "code"};
  source.piece_bytes.assign(61, 3);
  source.dummy_prefix = source.bos = true;
  source.documents = [&](int64_t offset, int64_t count) {
    std::vector<DocumentPart> parts;
    for (size_t d = 0; d < starts.size(); ++d)
      if ((d + 1 == starts.size() || starts[d + 1] > offset) && starts[d] < offset + count)
        parts.push_back({starts[d] - offset, int32_t(d % 3)});
    return parts;
  };
  const std::vector<double> nll = plain_nll(*m.lm, ids, 20);
  std::map<size_t, std::pair<double, int64_t>> by_position, by_set;
  int64_t first_pieces = 0;
  for (size_t i = 0; i < nll.size(); ++i) {
    const size_t position = i % 20,
                 d = size_t(std::upper_bound(starts.begin(), starts.end(), int64_t(i) + 1) - starts.begin()) - 1;
    const size_t k = position == 0 ? 0 : size_t(std::log2(position)) + 1;
    by_position[k].first += nll[i], ++by_position[k].second;
    by_set[d % 3].first += nll[i], ++by_set[d % 3].second;
    first_pieces += int64_t(i) + 1 == starts[d] + 1;
  }
  const Evaluation e = evaluate(*m.lm, source, {20});
  ASSERT_EQ(e.positions.size(), 6u);  // 0, 1, 2-3, 4-7, 8-15, 16-19
  for (size_t k = 0; k < 6; ++k) {
    EXPECT_EQ(e.positions[k].tokens, by_position[k].second) << k;
    EXPECT_NEAR(e.positions[k].nats, by_position[k].first, 1e-5) << k;
    EXPECT_EQ(position_range(k), (std::pair<int64_t, int64_t>{k ? 1 << (k - 1) : 0, 1 << k}));
  }
  ASSERT_EQ(e.sets.size(), 3u);
  for (size_t s = 0; s < 3; ++s) {
    EXPECT_EQ(e.sets[s].first, source.sets[s]);
    EXPECT_EQ(e.sets[s].second.tokens, by_set[s].second);
    EXPECT_NEAR(e.sets[s].second.nats, by_set[s].first, 1e-5);
  }
  EXPECT_EQ(e.text_bytes, 3 * 202 - first_pieces);
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

TEST(Evaluate, TextGivesTheNumbersOfItsShardsForEveryFraming) {
  const Model m = tiny_model(tiny_model_config());
  const std::vector<Document> documents = {{tiny_text(50, 900), "a"},
                                           {"é水🦉 plain, and \xE2\x80\xA2 never seen: Ж\n\ttab", "b"},
                                           {"x", ""},
                                           {"", "a"},
                                           {PromptedText{"A question?", " Its answer."}, "a"},
                                           {"  two spaces", "b"}};
  for (const Framing framing : kAllFramings) {
    SCOPED_TRACE(name_of(framing));
    const DocumentEncoder encoder(*m.tokenizer, framing);
    const TempDir dir;
    ShardWriter writer(dir / "train-0.h5", shard_info(*m.tokenizer, "train", framing), "test");
    int64_t bytes = 0, scored = 0;
    for (const Document& d : documents) {
      const FramedDocument framed = encoder.document(d);
      if (framed.tokens.empty()) continue;
      writer.add(framed.tokens, framed.mask, d.set);
      const auto* prompted = std::get_if<PromptedText>(&d.content);
      bytes += prompted ? int64_t(prompted->completion.size()) : d.bytes();
      scored += prompted ? std::count(framed.mask.begin(), framed.mask.end(), 1) : int64_t(framed.tokens.size());
      // The very first token is not scored.
      if (&d == &documents[0] && !has_bos(framing))
        bytes -= m.tokenizer->byte_length(framed.tokens[0]) - m.tokenizer->adds_dummy_prefix();
    }
    writer.commit();
    const TokenShards shards({dir / "train-0.h5"});
    size_t at = 0;
    const TokenSource texts = source_of_texts(
        encoder,
        [&](Document* d) {
          if (at < documents.size()) *d = documents[at];
          return at++ < documents.size();
        },
        INT64_MAX);
    const Evaluation a = evaluate(*m.lm, TokenSource::shards(shards), {13}), b = evaluate(*m.lm, texts, {13});
    EXPECT_EQ(a.tokens, scored - 1);
    EXPECT_EQ(a.text_bytes, bytes);
    EXPECT_EQ(a.sets.size(), 3u);
    const auto same = [](const LossSum& x, const LossSum& y) {
      EXPECT_EQ(x.nats, y.nats);
      EXPECT_EQ(x.tokens, y.tokens);
      EXPECT_EQ(x.text_nats, y.text_nats);
      EXPECT_EQ(x.text_bytes, y.text_bytes);
    };
    same(a, b);
    ASSERT_EQ(a.sets.size(), b.sets.size());
    for (size_t s = 0; s < a.sets.size(); ++s) same(a.sets[s].second, b.sets[s].second);
  }
}

TEST(Evaluate, TextIsReadUntilExactlyTheLimitCanBeScored) {
  const Model m = tiny_model(tiny_model_config());
  const std::vector<Document> documents = {
      {"tre su", ""}, {PromptedText{"ka lo", " mi"}, ""}, {"qui", ""}, {PromptedText{"von", " el da"}, ""}};
  for (const Framing framing : {Framing::none, Framing::both}) {
    const auto source = [&](int64_t most, size_t& read) {
      read = 0;
      return source_of_texts(
          {*m.tokenizer, framing},
          [&](Document* d) {
            if (read == documents.size()) return false;
            *d = documents[read++];
            return true;
          },
          most);
    };
    size_t read = 0;
    const int64_t all = evaluate(*m.lm, source(INT64_MAX, read), {13}).tokens;
    size_t before = 1;
    for (int64_t limit = 1; limit <= all; ++limit) {
      EXPECT_EQ(evaluate(*m.lm, source(limit, read), {13, limit}).tokens, limit);
      EXPECT_GE(read, before);
      before = read;
    }
    EXPECT_EQ(before, documents.size());
  }
}

TEST(Evaluate, AgreesWithAnIndependentProgram) {
  const std::string folder = source_dir() + "/tests/golden/zeroshot/";
  std::ifstream lines(folder + "loss.jsonl");
  int compared = 0;
  for (std::string line; std::getline(lines, line); ++compared) {
    const auto expected = nlohmann::json::parse(line);
    const std::string name = expected["model"];
    const Model m = load_model(folder + name);
    const std::string text = slurp(source_dir() + "/data/books/" + std::string(expected["text"]));
    bool first = true;
    const int64_t limit = expected["tokens"];
    const TokenSource source = source_of_texts(
        m.encoder(),
        [&](Document* d) {
          *d = {text, ""};
          return std::exchange(first, false);
        },
        limit + 1);
    const Evaluation e = evaluate(*m.lm, source, {expected["seq_len"], limit});
    EXPECT_EQ(e.tokens, limit);
    // The README of that folder fixes the bounds.
    EXPECT_NEAR(e.loss(), double(expected["loss"]), name == "f32" ? 1e-5 : 1e-3) << name;
  }
  EXPECT_EQ(compared, 2);
}

TEST(Evaluate, CountsOnlyWhatTheMaskScores) {
  const Model m = tiny_model(tiny_model_config(), false);
  const std::vector<int32_t> ids = some_ids(203);
  const auto scored = [](int64_t i) { return i % 3 != 0; };
  TokenSource source = memory(ids);
  source.documents = [](int64_t offset, int64_t) { return std::vector<DocumentPart>{{-offset, 0}}; };
  source.sets = {""};
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
    if (ids[i + 1] % 4) text += nll[i], bytes += ids[i + 1] % 4;
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
