// The mixture of sources: exact proportions, constant-time places, stages that begin where the stage before ended.
#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "core/error.h"
#include "data/batches.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

constexpr int64_t kTurn = Mixture::kPattern;
using Stages = std::vector<Mixture::Stage>;

/// Counts the sources of samples [from, to) and checks that each source's samples are numbered without gaps.
std::vector<int64_t> count(const Mixture& mixture, size_t sources, int64_t from, int64_t to) {
  std::vector<int64_t> next = mixture.taken(from);
  EXPECT_EQ(next.size(), sources);
  const std::vector<int64_t> before = next;
  for (int64_t s = from; s < to; ++s) {
    const auto [source, index] = mixture.place(s);
    EXPECT_EQ(index, next[source]++) << "sample " << s << " of source " << source;
  }
  EXPECT_EQ(next, mixture.taken(to));
  std::vector<int64_t> counts;
  for (size_t i = 0; i < sources; ++i) counts.push_back(next[i] - before[i]);
  return counts;
}

TEST(Mixture, OneSourceTakesEverySample) {
  const Mixture mixture(Stages{{0, {0.3}}});
  for (int64_t s : {int64_t(0), int64_t(1), kTurn - 1, kTurn, 5 * kTurn + 7, INT64_MAX}) {
    EXPECT_EQ(mixture.place(s).source, 0u);
    EXPECT_EQ(mixture.place(s).index, s);
  }
}

TEST(Mixture, EachStretchHoldsTheSourcesInTheirProportions) {
  const std::vector<double> weights = {5, 0, 2.5, 1, 1.5};
  const Mixture mixture(Stages{{0, weights}});
  EXPECT_EQ(count(mixture, 5, 0, kTurn),
            (std::vector<int64_t>{kTurn / 2, 0, kTurn / 4, 1638, 2458}));  // 1638.4 and 2457.6
  for (int64_t from : {int64_t(0), int64_t(3), kTurn - 50, 3 * kTurn + 11})
    for (int64_t n : {1, 10, 64, 333}) {
      const std::vector<int64_t> counts = count(mixture, 5, from, from + n);
      for (size_t i = 0; i < 5; ++i)
        EXPECT_NEAR(double(counts[i]), double(n) * weights[i] / 10, 2.0) << from << ' ' << n;
    }
}

TEST(Mixture, ATinyWeightStillCounts) {
  const Mixture mixture(Stages{{0, {1, 1e-9, 1e-9}}});
  EXPECT_EQ(count(mixture, 3, 0, kTurn), (std::vector<int64_t>{kTurn - 2, 1, 1}));
}

TEST(Mixture, AStageGoesOnWhereTheOneBeforeEnded) {
  const Mixture mixture(Stages{{0, {1, 1}}, {1001, {0, 1}}, {2 * kTurn + 5, {3, 1}}});
  EXPECT_EQ(count(mixture, 2, 0, 1001)[0], 501);
  EXPECT_EQ(count(mixture, 2, 1001, 2 * kTurn + 5)[0], 0);
  EXPECT_EQ(count(mixture, 2, 2 * kTurn + 5, 3 * kTurn + 5), (std::vector<int64_t>{3 * kTurn / 4, kTurn / 4}));
  EXPECT_EQ(mixture.taken(2 * kTurn + 5), (std::vector<int64_t>{501, 2 * kTurn + 5 - 501}));
}

ShardInfo info_of(int vocab, Framing framing = Framing::none) {
  return {"train", vocab, "0123", 1, 2, false, std::vector<int32_t>(size_t(vocab), 1), framing};
}

/// Documents of the given lengths that count on from `first`.
std::string write_shard(const std::string& path, int first, const std::vector<int>& lengths,
                        const std::vector<std::string>& sets = {}) {
  ShardWriter writer(path, info_of(1000), "test");
  for (size_t d = 0; d < lengths.size(); ++d) {
    std::vector<int32_t> tokens(size_t(lengths[d]));
    std::iota(tokens.begin(), tokens.end(), first);
    first += lengths[d];
    writer.add(tokens, {}, sets.empty() ? "" : sets[d]);
  }
  writer.commit();
  return path;
}

TEST(TokenShards, DocumentsAndTheirSetsAreFoundFromAnyToken) {
  const TempDir dir;
  write_shard(dir / "train-0.h5", 0, {3, 0, 4, 1}, {"", "x", "web", "code"});
  write_shard(dir / "train-1.h5", 8, {5});
  write_shard(dir / "train-2.h5", 13, {2, 2}, {"code", "web"});
  const TokenShards shards({dir / "train-*.h5"});
  EXPECT_EQ(shards.sets(), (std::vector<std::string>{"", "x", "web", "code"}));
  const std::vector<int64_t> starts = {0, 3, 7, 8, 13, 15, 17};
  const std::vector<int32_t> sets = {0, 2, 3, 0, 3, 2};
  for (int64_t begin = 0; begin < 17; ++begin)
    for (int64_t n = 1; n <= 17 - begin; ++n) {
      std::vector<DocumentPart> expected;
      for (size_t d = 0; d < sets.size(); ++d)
        if (starts[d + 1] > begin && starts[d] < begin + n) expected.push_back({starts[d] - begin, sets[d]});
      ASSERT_EQ(shards.documents(begin, n), expected) << begin << " +" << n;
    }
  EXPECT_TRUE(shards.documents(5, 0).empty());
}

TEST(TokenShards, ManyDocumentsNamedLate) {
  const TempDir dir;
  constexpr int kDocuments = 70000;
  ShardWriter writer(dir / "train-0.h5", info_of(1000), "test");
  for (int d = 0; d < kDocuments; ++d)
    writer.add({d % 1000, 5}, d == kDocuments - 1 ? std::vector<uint8_t>{0, 1} : std::vector<uint8_t>(),
               d == kDocuments - 2 ? "late" : "");
  writer.commit();
  const TokenShards shards({dir / "train-0.h5"});
  EXPECT_EQ(shards.documents(2 * kDocuments - 5, 5), (std::vector<DocumentPart>{{-1, 0}, {1, 1}, {3, 0}}));
  std::vector<int32_t> targets(size_t(2 * kDocuments), 9);
  shards.ignore_unscored(0, 2 * kDocuments, targets.data());
  EXPECT_EQ(std::count(targets.begin(), targets.end(), kIgnoreTarget), 1);
  EXPECT_EQ(targets[size_t(2 * kDocuments - 2)], kIgnoreTarget);
}

TEST(TokenShards, TheFramingOfAnOlderShardShowsInItsFirstDocument) {
  const TempDir dir;
  for (const auto& [document, framing] : std::vector<std::pair<std::vector<int32_t>, Framing>>{
           {{1, 7, 2}, Framing::both}, {{1, 7}, Framing::bos}, {{7, 2}, Framing::eos}, {{7, 8}, Framing::none}}) {
    h5::Writer writer(dir / "train-0.h5", "tokens");
    for (const auto& [name, value] :
         {std::pair{"vocab_size", int64_t(10)}, {"bos_id", 1}, {"eos_id", 2}, {"dummy_prefix", 0}})
      writer.attribute(name, value);
    writer.attribute("split", "train");
    writer.attribute("tokenizer_hash", "0123");
    for (const auto& [name, type] : {std::pair{"tokens", h5::SeriesType::u16},
                                     {"document_starts", h5::SeriesType::i64},
                                     {"piece_bytes", h5::SeriesType::u16}})
      writer.create_series(name, type);
    const std::vector<int64_t> starts = {0, int64_t(document.size())};
    const std::vector<int32_t> bytes(10, 1), more = {5, 5};
    writer.append("tokens", document.data(), int64_t(document.size()));
    writer.append("tokens", more.data(), 2);
    writer.append("document_starts", starts.data(), 2);
    writer.append("piece_bytes", bytes.data(), 10);
    writer.commit();
    EXPECT_EQ(TokenShards({dir / "train-0.h5"}).info().framing, framing) << name_of(framing);
  }
}

DataConfig two_sources(const TempDir& dir) {
  write_shard(dir / "a.h5", 0, {100, 21});      // 30 windows of 4
  write_shard(dir / "b.h5", 500, {13, 20, 8});  // 10 windows of 4
  DataConfig data;
  data.sources = {{"a", {dir / "a.h5"}, 3}, {"b", {dir / "b.h5"}, 1}};
  return data;
}

TEST(Batches, SeveralSourcesAreMixedAndEachIsVisitedInFull) {
  const TempDir dir;
  const Corpus corpus(two_sources(dir));
  const Batches batches(corpus, {4, 3, true, {{0, {3, 1}}}});
  EXPECT_EQ(batches.windows(), 40);
  std::vector<int32_t> in(40 * 4), out(in.size());
  for (int64_t epoch : {0, 1}) {
    batches.read(epoch * 40, 40, {in.data(), out.data()});
    std::map<int32_t, int> begins;
    for (size_t i = 0; i < in.size(); i += 4) ++begins[in[i]];
    EXPECT_EQ(begins.size(), 40u) << "each window once";
    EXPECT_EQ(begins.count(0) + begins.count(500) + begins.count(536), 3u);
  }
  EXPECT_DOUBLE_EQ(batches.epochs(80), 2);
  // The same samples whatever the range that is read.
  std::vector<int32_t> one(4), target(4);
  for (int64_t s = 79; s >= 40; --s) {
    batches.read(s, 1, {one.data(), target.data()});
    EXPECT_TRUE(std::equal(one.begin(), one.end(), in.begin() + (s - 40) * 4)) << s;
  }
}

TEST(Batches, TheOrderOfSamplesIsFixedForEverAndDiffersBetweenSources) {
  const TempDir dir;
  const Corpus one{TokenShards({write_shard(dir / "one.h5", 0, {121})})};  // 30 windows of 4
  const Batches alone(one, {4, 42, true});
  std::vector<int64_t> order;
  for (int64_t s = 0; s < 8; ++s) order.push_back(alone.window_of(s).number);
  EXPECT_EQ(order, (std::vector<int64_t>{5, 9, 2, 1, 0, 16, 14, 21}));
  DataConfig twins;
  twins.sources = {{"a", {dir / "one.h5"}, 1}, {"b", {dir / "one.h5"}, 1}};
  const Corpus two(twins);
  const Batches both(two, {4, 42, true, {{0, {1, 1}}}});
  std::vector<int64_t> orders[2];
  for (int64_t s = 0; s < 60; ++s) {
    const auto [source, number, goes_on] = both.window_of(s);
    orders[source].push_back(number);
  }
  EXPECT_TRUE(std::equal(order.begin(), order.end(), orders[0].begin()));
  EXPECT_NE(orders[0], orders[1]);
}

TEST(Batches, SourcesThatWerePreparedDifferentlyAreRefused) {
  const TempDir dir;
  DataConfig data = two_sources(dir);
  ShardWriter writer(dir / "c.h5", info_of(1000, Framing::bos), "test");
  writer.add({1, 2, 3, 4, 5, 6});
  writer.commit();
  data.sources.push_back({"c", {dir / "c.h5"}, 1});
  EXPECT_THROW(Corpus{data}, DataError);
}

TEST(Batches, StartsOfDocumentsAreMarked) {
  const TempDir dir;
  const Corpus corpus{TokenShards({write_shard(dir / "a.h5", 0, {3, 5, 2, 11})})};
  BatchOptions options{5, 0, false};
  options.reset_state = true;
  const Batches batches(corpus, options);
  std::vector<int32_t> in(20), out(20);
  std::vector<uint8_t> starts(20, 7);
  batches.read(0, 4, {in.data(), out.data(), starts.data()});
  std::vector<uint8_t> expected(20, 0);
  for (int at : {0, 3, 8, 10, 5, 15}) expected[size_t(at)] = 1;  // documents, and where windows begin
  EXPECT_EQ(starts, expected);
}

TEST(Batches, TracksFollowTheirWindows) {
  const TempDir dir;
  const Corpus corpus{TokenShards({write_shard(dir / "a.h5", 0, {3, 5, 2, 100})})};  // 109 targets: 21 windows of 5
  BatchOptions options{5, 9, true};
  options.tracks = 4;  // of 5 windows each
  for (const bool reset : {false, true}) {
    options.reset_state = reset;
    const Batches batches(corpus, options);
    std::vector<int32_t> in(4 * 5), out(4 * 5), last(4);
    std::vector<uint8_t> starts(4 * 5);
    for (int64_t step = 0; step < 12; ++step) {
      batches.read(step * 4, 4, {in.data(), out.data(), starts.data()});
      for (size_t row = 0; row < 4; ++row) {
        const bool begins = step % 5 == 0;
        EXPECT_EQ(in[row * 5], begins ? int32_t(row) * 25 : last[row]);
        last[row] = in[row * 5 + 4] + 1;
        for (size_t i = 0; i < 5; ++i) {
          const int32_t at = in[row * 5 + i];
          const bool document = at == 0 || at == 3 || at == 8 || at == 10;
          EXPECT_EQ(starts[row * 5 + i], (i == 0 && begins) || (reset && document)) << step << ' ' << at;
        }
      }
    }
  }
  options.tracks = 22;
  EXPECT_THROW(Batches(corpus, options), DataError);
}

}  // namespace
}  // namespace mmfree
