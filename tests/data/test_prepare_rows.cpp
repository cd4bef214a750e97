// What rows become in shards: framing, masks, ids, source sets, duplicates, and the parts of a job array.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "core/ops/head_loss.h"
#include "data/prepare.h"
#include "data/token_shards.h"
#include "tests/support/compare.h"
#include "tests/support/corpus.h"
#include "tests/support/tensors.h"

namespace mmfree {
namespace {

using testing_data::babble;
using testing_data::gzip;
using testing_data::jsonl;
using testing_data::small_tokenizer;
using Ids = std::vector<int32_t>;

struct Rows {
  TempDir dir;
  Tokenizer tokenizer = small_tokenizer(dir);
  PrepareOptions options;
  Rows() {
    options.tokenizer = dir / "bpe.model";
    options.output = dir / "out";
    options.valid_fraction = 0;
  }
  PrepareSummary prepared(const std::string& rows) {
    options.inputs = {spit(dir / "rows.jsonl", rows)};
    options.overwrite = true;
    return prepare(options);
  }
};

/// A document as it stands in the shards.
struct Stored {
  Ids tokens;
  std::vector<bool> scored;
  std::string set;
};

std::vector<Stored> stored(const std::string& shard_pattern) {
  const TokenShards shards({shard_pattern});
  const int64_t n = shards.total_tokens();
  Ids tokens(static_cast<size_t>(n));
  shards.read(0, n, tokens.data());
  Ids targets = tokens;
  shards.ignore_unscored(0, n, targets.data());
  const std::vector<DocumentPart> parts = shards.documents(0, n);
  std::vector<Stored> documents(parts.size());
  for (size_t d = 0; d < parts.size(); ++d) {
    documents[d].set = shards.sets()[size_t(parts[d].set)];
    for (int64_t i = parts[d].begin; i < (d + 1 < parts.size() ? parts[d + 1].begin : n); ++i) {
      documents[d].tokens.push_back(tokens[size_t(i)]);
      documents[d].scored.push_back(targets[size_t(i)] != kIgnoreTarget);
    }
  }
  return documents;
}

TEST(PrepareRows, TextsPromptsAndIdsEachHaveTheirForm) {
  Rows rows;
  rows.prepared(R"({"text": "ka lo mi", "meta": {"redpajama_set_name": "Web"}})"
                "\n"
                R"({"prompt": "ka lo", "completion": " mi tre", "meta": {"redpajama_set_name": "Chat"}})"
                "\n"
                R"({"ids": [7, 8, 9], "mask": [0, 1, 0]})"
                "\n"
                R"({"ids": [5]})"
                "\n");
  const auto documents = stored(rows.dir / "out/train-*.h5");
  ASSERT_EQ(documents.size(), 4u);
  const DocumentEncoder encoder(rows.tokenizer, Framing::both);
  EXPECT_EQ(documents[0].tokens, encoder.document({"ka lo mi", ""}).tokens);
  EXPECT_EQ(std::count(documents[0].scored.begin(), documents[0].scored.end(), false), 0);
  const FramedDocument pair = encoder.document({PromptedText{"ka lo", " mi tre"}, ""});
  EXPECT_EQ(documents[1].tokens, pair.tokens);
  EXPECT_EQ(documents[1].scored, std::vector<bool>(pair.mask.begin(), pair.mask.end()));
  EXPECT_EQ(documents[2].tokens, (Ids{7, 8, 9}));
  EXPECT_EQ(documents[2].scored, (std::vector<bool>{false, true, false}));
  EXPECT_EQ(documents[3].tokens, Ids{5});
  EXPECT_EQ(documents[3].scored, std::vector<bool>{true});
  EXPECT_EQ(documents[0].set, "Web");
  EXPECT_EQ(documents[1].set, "Chat");
  EXPECT_EQ(documents[2].set, "");
  expect_error<DataError>(
      {"rows.jsonl:1", "\"ids\" holds an id outside the tokenizer", "400, it has 400", "--skip-malformed"},
      [&] { rows.prepared("{\"ids\": [1, 400]}\n"); });
}

TEST(PrepareRows, ShardsSayHowTheirDocumentsAreFramed) {
  Rows rows;
  for (const bool bos : {false, true})
    for (const bool eos : {false, true}) {
      rows.options.bos = bos, rows.options.eos = eos;
      rows.prepared(jsonl({"ka lo mi", "von el"}));
      EXPECT_EQ(TokenShards({rows.dir / "out/train-*.h5"}).info().framing, framing_of(bos, eos));
      EXPECT_EQ(stored(rows.dir / "out/train-*.h5")[1].tokens,
                DocumentEncoder(rows.tokenizer, framing_of(bos, eos)).document({"von el", ""}).tokens);
    }
}

TEST(PrepareRows, OfEqualDocumentsTheFirstStaysIfAsked) {
  Rows rows;
  const std::string text = jsonl({"ka lo", "mi", "ka lo", "ka lo", "mi tre"}) +
                           "{\"ids\": [5, 6]}\n{\"ids\": [5, 6]}\n{\"ids\": [5, 6], \"mask\": [1, 0]}\n"
                           "{\"prompt\": \"ka\", \"completion\": \" lo\"}\n";
  EXPECT_EQ(rows.prepared(text).train.documents, 9);
  rows.options.drop_duplicates = true;
  const PrepareSummary summary = rows.prepared(text);
  EXPECT_EQ(summary.train.documents, 6);
  EXPECT_EQ(summary.duplicates, 3);
  const auto documents = stored(rows.dir / "out/train-*.h5");
  EXPECT_EQ(rows.tokenizer.decode(documents[2].tokens), "mi tre");
}

TEST(PrepareRows, CompressedShardsAreSmallerAndHoldTheSame) {
  Rows rows;
  std::vector<std::string> texts;
  for (unsigned i = 0; i < 400; ++i) texts.push_back(babble(400, i % 7));
  const std::string pattern = rows.dir / "out/train-*.h5", path = rows.dir / "out/train-00000.h5";
  rows.prepared(jsonl(texts));
  const auto plain = stored(pattern);
  const auto bytes = std::filesystem::file_size(path);
  rows.options.compress = true;
  rows.prepared(jsonl(texts));
  EXPECT_LT(std::filesystem::file_size(path), bytes / 2);
  const auto compressed = stored(pattern);
  ASSERT_EQ(compressed.size(), plain.size());
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_EQ(compressed[i].tokens, plain[i].tokens);
  EXPECT_NO_THROW(TokenShards({path}, h5::Verify::everything));
}

TEST(PrepareRows, PartsTogetherHoldEveryDocumentOnce) {
  Rows rows;
  std::vector<std::string> texts, files;
  for (unsigned i = 0; i < 60; ++i) texts.push_back(babble(10, i));
  for (size_t f = 0; f < 5; ++f) {
    const std::vector<std::string> some(texts.begin() + long(12 * f), texts.begin() + long(12 * f + 12));
    files.push_back(spit(rows.dir / concat("in-", f, ".jsonl.gz"), gzip(jsonl(some))));
  }
  rows.options.valid_fraction = 0.3;
  rows.options.inputs = files;
  rows.options.output = rows.dir / "whole";
  prepare(rows.options);
  const auto all_of = [](const std::string& pattern) {
    std::vector<Ids> all;
    for (const Stored& d : stored(pattern)) all.push_back(d.tokens);
    std::sort(all.begin(), all.end());
    return all;
  };
  for (const int64_t of : {2, 5, 7}) {  // by files, by files, by rows
    rows.options.output = rows.dir / concat("parts-", of);
    for (int64_t k = 1; k <= of; ++k) {
      rows.options.part = {k, of};
      EXPECT_GT(prepare(rows.options).train.documents, 0) << k;
    }
    rows.options.part = {};
    for (const char* split : {"train", "valid"})
      EXPECT_EQ(all_of(rows.options.output + "/part-*/" + split + "-*.h5"),
                all_of(rows.dir / concat("whole/", split, "-*.h5")))
          << "the split of a document does not depend on its part";
  }
  rows.options.part = {3, 2};
  EXPECT_THROW(prepare(rows.options), UsageError);
}

}  // namespace
}  // namespace mmfree
