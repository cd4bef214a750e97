#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "core/error.h"
#include "data/batches.h"
#include "data/h5/h5.h"
#include "data/text/tokenizer.h"
#include "tests/support/failing.h"
#include "tests/support/shard_damage.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

ShardInfo info_of(int vocab, const std::string& hash = "0123", const std::string& split = "train") {
  ShardInfo info{split, vocab, hash, 1, 2, true, std::vector<int32_t>(size_t(vocab))};
  std::iota(info.piece_bytes.begin(), info.piece_bytes.end(), 0);
  for (int32_t& b : info.piece_bytes) b %= 100;
  return info;
}

void write_shard(const std::string& path, const ShardInfo& info, int first, const std::vector<int>& documents) {
  ShardWriter writer(path, info, "test");
  for (int n : documents) {
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    std::iota(tokens.begin(), tokens.end(), first);
    first += n;
    writer.add(tokens);
  }
  writer.commit();
}

/// Tokens 0, 1, 2, ... over three shards.
std::vector<std::string> counting_corpus(const TempDir& dir, int vocab = 1000) {
  write_shard(dir / "train-0.h5", info_of(vocab), 0, {3, 4});
  write_shard(dir / "train-1.h5", info_of(vocab), 7, {1});
  write_shard(dir / "train-2.h5", info_of(vocab), 8, {40, 0, 45});
  return {dir / "train-*.h5"};
}

TEST(TokenShards, ReadAcrossShards) {
  for (int vocab : {1000, 70000}) {
    TempDir dir;
    const TokenShards shards(counting_corpus(dir, vocab));
    EXPECT_EQ(shards.total_tokens(), 93);
    EXPECT_EQ(shards.documents(), 6);
    EXPECT_EQ(shards.info(), info_of(vocab));
    for (int64_t begin = 0; begin <= 93; ++begin)
      for (int64_t n = 0; n <= 93 - begin; n += 1 + n / 5) {
        std::vector<int32_t> got(static_cast<size_t>(n), -1);
        shards.read(begin, n, got.data());
        for (int64_t i = 0; i < n; ++i) ASSERT_EQ(got[size_t(i)], begin + i);
      }
    int32_t token = 0;
    EXPECT_THROW(shards.read(93, 1, &token), ShapeError);
    EXPECT_THROW(shards.read(-1, 1, &token), ShapeError);
    EXPECT_THROW(shards.read(1, INT64_MAX, &token), ShapeError);
  }
}

TEST(TokenShards, DisagreementAndDamageAreErrors) {
  TempDir dir;
  counting_corpus(dir);
  const std::string first = dir / "train-0.h5";
  write_shard(dir / "other.h5", info_of(1000, "4567"), 0, {5});
  EXPECT_THROW(TokenShards({first, dir / "other.h5"}), DataError);
  write_shard(dir / "valid-0.h5", info_of(1000, "0123", "valid"), 0, {5});
  EXPECT_THROW(TokenShards({dir.path()}), DataError);
  EXPECT_THROW(TokenShards({dir / "nothing-*.h5"}), MissingError);
  write_shard(dir / "big.h5", info_of(50), 30, {40});
  std::vector<int32_t> out(40);
  EXPECT_NO_THROW(TokenShards({dir / "big.h5"}).read(0, 20, out.data()));
  EXPECT_THROW(TokenShards({dir / "big.h5"}).read(0, 21, out.data()), DataError);
  const std::string good = slurp(first);
  std::string bytes = good;
  const size_t tokens = bytes.find(std::string_view("\0\0\1\0\2\0\3\0\4\0\5\0\6\0", 14));
  ASSERT_NE(tokens, std::string::npos);
  bytes[tokens + 6] ^= 1;
  spit(first, bytes);
  EXPECT_THROW(TokenShards({first}, h5::Verify::everything), DataError);
  EXPECT_THROW(TokenShards({first}).read(0, 7, out.data()), DataError) << "when it is read";
  std::string header = good;
  header[50] ^= 1;
  spit(first, header);
  EXPECT_THROW(TokenShards({first}), DataError);
}

/// A shard of two chunks with a mask; its tokens, mask, starts and pieces all differ from zeros.
std::string shard_of_all_series(const TempDir& dir) {
  const std::string path = dir / "train-0.h5";
  ShardWriter writer(path, info_of(1000), "test");
  for (int i = 0; i < 4; ++i) {
    std::vector<int32_t> tokens(10000);
    for (size_t t = 0; t < tokens.size(); ++t) tokens[t] = int32_t(t % 997 + 1);
    writer.add(tokens, std::vector<uint8_t>(tokens.size(), 1));
  }
  writer.commit();
  return path;
}

TEST(TokenShards, ZerosInPlaceOfAChunkAreFoundInEverySeries) {
  const auto read_all = [](const std::string& path) {
    const TokenShards shards({path});
    std::vector<int32_t> out(40000), targets(40000);
    shards.read(0, 40000, out.data());
    shards.ignore_unscored(0, 40000, targets.data());
    h5::Reader(path, "tokens", h5::Verify::header).read_tensor("document_starts", DType::i64);
  };
  for (const bool is_old : {false, true}) {
    SCOPED_TRACE(is_old ? "sums beside the shard" : "sums in the shard");
    const TempDir dir;
    const std::string path = shard_of_all_series(dir), beside = path + ".sums";
    if (is_old) {
      take_sums_away(path);
      EXPECT_EQ(TokenShards({path}).without_sums(), std::vector{path});
      EXPECT_EQ(h5::add_sums(path), "");
    }
    EXPECT_TRUE(TokenShards({dir.path()}).without_sums().empty());
    EXPECT_NO_THROW(read_all(path));
    const std::string good = slurp(path), good_sums = is_old ? slurp(beside) : "";
    const std::vector<int64_t> sums = h5::Reader(path, "tokens").compute_sums();
    ASSERT_EQ(sums.size(), 6u);
    const auto expect_found = [&](const std::string& what) {
      try {
        read_all(path);
        ADD_FAILURE() << "read with zeros in " << what;
      } catch (const DamagedError& e) {
        EXPECT_NE(std::string(e.what()).find(path), std::string::npos) << e.what();
      }
      spit(path, good);
    };
    std::vector<uint16_t> first(100);
    std::iota(first.begin(), first.end(), uint16_t(1));
    zero_out(path, first, kChunkBytes<uint16_t>);
    expect_found("tokens");
    zero_out(path, std::vector<uint16_t>(first.begin(), first.begin() + 99), 2);  // the second piece's, in front
    expect_found("the first piece_bytes");
    zero_out(path, std::vector<uint8_t>(100, 1), kChunkBytes<uint8_t>);
    expect_found("mask");
    zero_out(path, std::vector<int64_t>{0, 10000, 20000, 30000}, kChunkBytes<int64_t>);
    expect_found("document_starts");
    zero_out(is_old ? beside : path, sums, sums.size() * 8 + 4);
    expect_found("the table of sums");
  }
}

TEST(TokenShards, SumsBesideAShardAreThoseOfItsIntactContent) {
  const TempDir dir;
  const std::string path = shard_of_all_series(dir), beside = path + ".sums";
  take_sums_away(path);
  const std::string good = slurp(path);
  std::string bad = good;
  bad[bad.size() / 2] ^= 1;
  spit(path, bad);
  EXPECT_THROW(h5::add_sums(path), DamagedError);
  EXPECT_FALSE(std::filesystem::exists(beside));
  spit(path, good);
  {
    const Failing failing(interpose::Op::open, ".sums.mmfree-tmp-", EROFS, -1);
    EXPECT_EQ(h5::add_sums(path), beside + ": cannot create: Read-only file system");
  }
  EXPECT_EQ(h5::add_sums(path), "");
  const std::string first = slurp(beside);
  EXPECT_EQ(h5::add_sums(path), "");
  EXPECT_EQ(slurp(beside), first);
  write_shard(path, info_of(1000), 0, {5});
  EXPECT_NO_THROW(TokenShards({path})) << "it has sums of its own";
  take_sums_away(path);
  try {
    TokenShards({path});
    ADD_FAILURE() << "opened";
  } catch (const DataError& e) {
    EXPECT_EQ(e.what(), beside + ": holds the checksums of another shard than " + path + "; remove it");
  }
}

TEST(TokenShards, OpenFilesDoNotGrowWithTheCorpus) {
  TempDir dir;
  constexpr int kShards = 150;
  for (int i = 0; i < kShards; ++i) write_shard(dir / concat("train-", 1000 + i, ".h5"), info_of(1000), 3 * i, {3});
  const auto files = [] { return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}); };
  const auto before = files();
  const TokenShards shards({dir.path()});
  for (int round = 0; round < 2; ++round)
    for (int i = 0; i < kShards; ++i) {
      const int64_t shard = i * 77 % kShards;  // far from one another
      int32_t token = -1;
      shards.read(3 * shard + 1, 1, &token);
      ASSERT_EQ(token, 3 * shard + 1);
      ASSERT_LE(files(), before + 64);
    }
}

TEST(TokenShards, AnotherFileInTheSamePlaceIsAnError) {
  TempDir dir;
  for (int i = 0; i < 70; ++i) write_shard(dir / concat("train-", 1000 + i, ".h5"), info_of(1000), 3 * i, {3});
  const TokenShards shards({dir.path()});
  std::vector<int32_t> all(3 * 70);
  EXPECT_NO_THROW(shards.read(0, 210, all.data()));
  write_shard(dir / "train-1069.h5", info_of(1000), 7, {3});
  int32_t token = 0;
  EXPECT_NO_THROW(shards.read(209, 1, &token)) << "it is open";
  EXPECT_NO_THROW(shards.read(0, 207, all.data()));
  try {
    shards.read(209, 1, &token);
    ADD_FAILURE() << "read";
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("train-1069.h5: was replaced after it was first opened"), std::string::npos)
        << e.what();
  }
}

/// Three shards: 0..6 with token 2 and 4 unscored, 7 without mask, 8..12 of which the second document is unscored.
std::vector<std::string> masked_corpus(const TempDir& dir) {
  {
    ShardWriter writer(dir / "train-0.h5", info_of(100), "test");
    writer.add({0, 1, 2}, {1, 1, 0});
    writer.add({3, 4, 5, 6}, {1, 0, 1, 1});
    EXPECT_THROW(writer.add({1, 2}, {1}), ShapeError);
    writer.commit();
  }
  write_shard(dir / "train-1.h5", info_of(100), 7, {1});
  ShardWriter writer(dir / "train-2.h5", info_of(100), "test");
  writer.add({8, 9, 10});
  writer.add({11, 12}, {0, 0});
  writer.commit();
  return {dir / "train-*.h5"};
}

TEST(TokenShards, MasksSayWhichTokensAreScored) {
  TempDir dir;
  const TokenShards shards(masked_corpus(dir));
  const std::set<int32_t> unscored = {2, 4, 11, 12};
  for (int64_t begin = 0; begin <= 13; ++begin)
    for (int64_t n = 0; n <= 13 - begin; ++n) {
      std::vector<int32_t> got(static_cast<size_t>(n));
      shards.read(begin, n, got.data());
      shards.ignore_unscored(begin, n, got.data());
      for (int64_t i = 0; i < n; ++i)
        ASSERT_EQ(got[size_t(i)], unscored.count(int32_t(begin + i)) ? kIgnoreTarget : begin + i);
    }
  int32_t token = 0;
  EXPECT_THROW(shards.ignore_unscored(13, 1, &token), ShapeError);
}

TEST(TokenShards, AMaskThatDoesNotFitItsTokensIsRefused) {
  TempDir dir;
  const auto open = [&](DType dtype, const Shape& shape, const void* mask) {
    const ShardInfo info = info_of(10);
    h5::Writer writer(dir / "a.h5", "tokens");
    for (const auto& [name, value] :
         {std::pair{"vocab_size", int64_t(10)}, {"bos_id", 1}, {"eos_id", 2}, {"dummy_prefix", 1}})
      writer.attribute(name, value);
    writer.attribute("split", "train");
    writer.attribute("tokenizer_hash", "0123");
    const int32_t ids[] = {0, 1, 2, 3, 4};
    writer.write("tokens", DType::i32, {5}, ids);
    writer.write("mask", dtype, shape, mask);
    writer.write("piece_bytes", DType::i32, {10}, info.piece_bytes.data());
    writer.create_series("document_starts", h5::SeriesType::i64);
    writer.commit();
    const TokenShards shards({dir / "a.h5"});
    std::vector<int32_t> out(5);
    shards.ignore_unscored(0, 5, out.data());
  };
  const uint8_t good[] = {0, 1, 0, 1, 1, 1}, bad[] = {0, 1, 2, 1, 1};
  const int32_t wide[] = {1, 1, 1, 1, 1};
  EXPECT_NO_THROW(open(DType::u8, {5}, good));
  EXPECT_THROW(open(DType::u8, {6}, good), DataError);
  EXPECT_THROW(open(DType::u8, {5, 1}, good), DataError);
  EXPECT_THROW(open(DType::i32, {5}, wide), DataError);
  EXPECT_THROW(open(DType::u8, {5}, bad), DataError);
}

TEST(Batches, TargetsThatAreNotScoredAreIgnored) {
  TempDir dir;
  const Corpus corpus{TokenShards(masked_corpus(dir))};
  const Batches batches(corpus, {4, 0, false});
  std::vector<int32_t> inputs(12), targets(12);
  batches.read(0, 3, {inputs.data(), targets.data()});
  const int32_t x = kIgnoreTarget;
  EXPECT_EQ(inputs, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
  EXPECT_EQ(targets, (std::vector<int32_t>{1, x, 3, x, 5, 6, 7, 8, 9, 10, x, x}));
}

TEST(TokenShards, WhatContradictsItselfIsRefused) {
  TempDir dir;
  struct Content {
    Shape tokens = {5};
    std::vector<int32_t> ids = {0, 1, 2, 3, 4}, piece_bytes = std::vector<int32_t>(10, 3);
    int64_t vocab = 10;
  };
  const auto open = [&](const Content& c) {
    h5::Writer writer(dir / "a.h5", "tokens");
    for (const auto& [name, value] :
         {std::pair{"vocab_size", c.vocab}, {"bos_id", 1}, {"eos_id", 2}, {"dummy_prefix", 1}})
      writer.attribute(name, value);
    writer.attribute("split", "train");
    writer.attribute("tokenizer_hash", "0123");
    writer.write("tokens", DType::i32, c.tokens, c.ids.data());
    writer.write("piece_bytes", DType::i32, {int64_t(c.piece_bytes.size())}, c.piece_bytes.data());
    writer.create_series("document_starts", h5::SeriesType::i64);
    writer.commit();
    const TokenShards shards({dir / "a.h5"});
    std::vector<int32_t> out(5);
    shards.read(0, 5, out.data());
    EXPECT_THROW(shards.read(0, -1, out.data()), ShapeError);
    EXPECT_THROW(shards.read(6, 0, out.data()), ShapeError);
  };
  EXPECT_NO_THROW(open({}));
  EXPECT_THROW(open({.tokens = {5, 1}}), DataError);
  EXPECT_THROW(open({.ids = {0, -1, 2, 3, 4}}), DataError);
  EXPECT_THROW(open({.vocab = 11}), DataError) << "a piece without its length";
  for (const int bytes : {-1, Tokenizer::kMaxPieceBytes + 1}) {
    Content c;
    c.piece_bytes[3] = bytes;
    EXPECT_THROW(open(c), DataError) << bytes;
  }
}

TEST(TokenShards, OneSplitAndOneVocabularyAtATime) {
  TempDir dir;
  write_shard(dir / "a.h5", info_of(100), 0, {5});
  write_shard(dir / "b.h5", info_of(100, "0123", "valid"), 0, {5});
  EXPECT_THROW(TokenShards({dir / "a.h5", dir / "b.h5"}), DataError);
  write_shard(dir / "b.h5", info_of(101), 0, {5});
  EXPECT_THROW(TokenShards({dir / "a.h5", dir / "b.h5"}), DataError);
  EXPECT_THROW(TokenShards({}), MissingError);
}

TEST(TokenShards, FingerprintFollowsTokensAndOrder) {
  TempDir dir;
  counting_corpus(dir);
  const std::string a = dir / "train-0.h5", b = dir / "train-1.h5";
  const std::string ab = TokenShards({a, b}).fingerprint();
  EXPECT_EQ(ab, TokenShards({a, b}).fingerprint());
  EXPECT_NE(ab, TokenShards({b, a}).fingerprint());
  write_shard(b, info_of(1000), 8, {1});
  EXPECT_NE(ab, TokenShards({a, b}).fingerprint());
}

TEST(Batches, AnEpochIsAPermutationAndTheNextAnother) {
  TempDir dir;
  const Corpus corpus{TokenShards(counting_corpus(dir))};
  for (int64_t length : {1, 2, 5, 7, 30, 46, 92}) {
    const Batches batches(corpus, {length, 11, true});
    ASSERT_EQ(batches.windows(), 92 / length);
    std::vector<int64_t> order[2];
    for (int64_t epoch : {0, 1}) {
      for (int64_t i = 0; i < batches.windows(); ++i)
        order[epoch].push_back(batches.window_of(epoch * batches.windows() + i).number);
      const std::set<int64_t> all(order[epoch].begin(), order[epoch].end());
      ASSERT_EQ(int64_t(all.size()), batches.windows());
      ASSERT_EQ(*all.begin(), 0);
      ASSERT_EQ(*all.rbegin(), batches.windows() - 1);
    }
    if (batches.windows() > 10) {
      EXPECT_NE(order[0], order[1]);
      EXPECT_FALSE(std::is_sorted(order[0].begin(), order[0].end()));
    }
  }
}

TEST(Batches, ShuffleIsUniformEnough) {
  TempDir dir;
  const Corpus corpus{TokenShards(counting_corpus(dir))};
  const int64_t n = Batches(corpus, {4, 0, true}).windows();  // 23
  std::vector<std::vector<int>> seen(static_cast<size_t>(n), std::vector<int>(static_cast<size_t>(n)));
  for (uint64_t seed = 0; seed < 2300; ++seed) {
    const Batches batches(corpus, {4, seed, true});
    for (int64_t i = 0; i < n; ++i) ++seen[size_t(i)][size_t(batches.window_of(i).number)];
  }
  // Each count has mean 100 and standard deviation 10.
  for (const auto& row : seen)
    for (int count : row) EXPECT_NEAR(count, 100, 55);
}

TEST(Batches, SamplesDoNotDependOnBatchSizeAndRowsOnTheRange) {
  TempDir dir;
  const Corpus corpus{TokenShards(counting_corpus(dir))};
  const int64_t length = 5, samples = 60;
  const auto sequence = [&](int64_t batch_size, int64_t rows_at_once) {
    const Batches batches(corpus, {length, 42, true});
    std::vector<int32_t> inputs, in(size_t(batch_size * length)), out(in.size());
    for (int64_t step = 0; step * batch_size < samples; ++step)
      for (int64_t row = 0; row < batch_size; row += rows_at_once) {
        const int64_t end = std::min(batch_size, row + rows_at_once);
        batches.read(step * batch_size + row, end - row, {in.data(), out.data()});
        const auto n = (end - row) * length;
        for (int64_t i = 0; i < n; ++i) EXPECT_EQ(out[size_t(i)], in[size_t(i)] + 1);
        inputs.insert(inputs.end(), in.begin(), in.begin() + n);
      }
    inputs.resize(size_t(samples * length));
    return inputs;
  };
  const auto one = sequence(1, 1);
  EXPECT_EQ(one, sequence(4, 4));
  EXPECT_EQ(one, sequence(7, 2));
  EXPECT_EQ(one, sequence(60, 13));
}

TEST(Batches, InOrderTheWindowsFollowOneAnotherAndBeginAgain) {
  TempDir dir;
  const Corpus corpus{TokenShards(counting_corpus(dir))};
  for (int64_t length : {1, 4, 23, 50, 91, 92})
    for (int64_t batch_size : {1, 3}) {
      const Batches batches(corpus, {length, 0, false});
      ASSERT_EQ(batches.windows(), 92 / length);
      std::vector<int32_t> in(size_t(batch_size * length)), out(in.size());
      int64_t sample = 0;
      for (int64_t step = 0; step < 2 * (batches.windows() / batch_size + 1); ++step) {
        batches.read(step * batch_size, batch_size, {in.data(), out.data()});
        for (int64_t row = 0; row < batch_size; ++row, ++sample)
          for (int64_t i = 0; i < length; ++i) {
            ASSERT_EQ(in[size_t(row * length + i)], sample % batches.windows() * length + i);
            ASSERT_EQ(out[size_t(row * length + i)], in[size_t(row * length + i)] + 1);
          }
      }
    }
}

TEST(Batches, Misuse) {
  TempDir dir;
  const Corpus corpus{TokenShards(counting_corpus(dir))};
  const Batches batches(corpus, {9, 0, true});  // 10 windows
  int32_t in[9], out[9];
  EXPECT_THROW(batches.read(-1, 1, {in, out}), Error);
  EXPECT_THROW(batches.read(INT64_MAX, 1, {in, out}), Error);
  EXPECT_THROW(Batches(corpus, {93, 0, true}), DataError);
  EXPECT_NO_THROW(Batches(corpus, {92, 0, true}));
  EXPECT_THROW(Batches(corpus, {0, 0, true}), ConfigError);
}

}  // namespace
}  // namespace mmfree
