#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>

#include "core/error.h"
#include "core/system/files.h"
#include "core/system/folder_lock.h"
#include "data/prepare.h"
#include "data/token_shards.h"
#include "tests/support/corpus.h"
#include "tests/support/failing.h"
#include "tests/support/failing_rename.h"
#include "tests/support/h5_repair.h"
#include "tests/support/no_locks.h"

namespace mmfree {
namespace {

using testing_data::babble;
using testing_data::compress;
using testing_data::jsonl;
using testing_data::small_tokenizer;

/// Texts of the documents in the shards of one split, bos and eos checked and removed.
std::vector<std::string> documents_of(const Tokenizer& t, const std::string& directory, const std::string& split) {
  const TokenShards shards({directory + "/" + split + "-*.h5"});
  std::vector<int32_t> tokens(size_t(shards.total_tokens()));
  shards.read(0, shards.total_tokens(), tokens.data());
  std::vector<std::string> out;
  std::vector<int32_t> document;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] == t.eos_id()) {
      EXPECT_EQ(document.at(0), t.bos_id());
      out.push_back(t.decode(document));
      document.clear();
    } else {
      document.push_back(tokens[i]);
    }
  }
  EXPECT_TRUE(document.empty());
  EXPECT_EQ(int64_t(out.size()), shards.documents());
  EXPECT_EQ(shards.info(), shard_info(t, split));
  return out;
}

/// Names and bytes of what a directory holds.
std::map<std::string, std::string> content(const std::string& directory) {
  std::map<std::string, std::string> all;
  if (!std::filesystem::exists(directory)) return all;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    all[entry.path().filename().string()] = entry.is_directory() ? "" : slurp(entry.path().string());
  return all;
}

struct Corpus {
  TempDir dir;
  Tokenizer tokenizer = small_tokenizer(dir);
  PrepareOptions options;
  Corpus() {
    options.tokenizer = dir / "bpe.model";
    options.output = dir / "out/deep";
  }
};

TEST(Prepare, EveryDocumentIsInOneSplitInOrder) {
  Corpus s;
  std::vector<std::string> texts;
  for (unsigned i = 0; i < 200; ++i) texts.push_back(babble(int(i % 50) + 1, i));
  const std::vector<std::string> first(texts.begin(), texts.begin() + 120), rest(texts.begin() + 120, texts.end());
  spit(s.dir / "in-1.jsonl", jsonl(first));
  spit(s.dir / "in-2.jsonl.zst", compress(jsonl(rest) + "{broken\n" + jsonl({""})));
  s.options.inputs = {s.dir / "in-*"};
  s.options.valid_fraction = 0.2;
  s.options.shard_tokens = 500;
  s.options.text.skip_malformed = true;
  int64_t reported = 0;
  s.options.on_progress = [&](const PrepareProgress& p) { reported = p.tokens; };
  const PrepareSummary summary = prepare(s.options);

  const auto train = documents_of(s.tokenizer, s.options.output, "train");
  const auto valid = documents_of(s.tokenizer, s.options.output, "valid");
  EXPECT_EQ(train.size() + valid.size(), texts.size());
  EXPECT_NEAR(double(valid.size()), 40, 20);
  size_t in_train = 0, in_valid = 0;
  for (const std::string& t : texts) {
    const bool a = in_train < train.size() && train[in_train] == t;
    const bool b = in_valid < valid.size() && valid[in_valid] == t;
    ASSERT_NE(a, b);
    ++(a ? in_train : in_valid);
  }
  EXPECT_GT(summary.train.shards, 5);
  EXPECT_EQ(summary.train.documents, int64_t(train.size()));
  EXPECT_EQ(summary.skipped, (SkippedRows{{"not JSON", 1}}));
  EXPECT_FALSE(summary.held_out_tails);
  EXPECT_EQ(reported, summary.train.tokens + summary.valid.tokens);
  EXPECT_FALSE(std::filesystem::exists(s.options.output + "/.preparing"));
}

TEST(Prepare, FewDocumentsLoseTheirTails) {
  Corpus s;
  const std::string book = babble(5000, 3), no_lines = std::string(2999, 'k') + "é" + std::string(1000, 'k');
  s.options.inputs = {spit(s.dir / "b1.txt", book), spit(s.dir / "b2.txt", no_lines)};
  s.options.valid_fraction = 0.25;
  const PrepareSummary summary = prepare(s.options);
  EXPECT_TRUE(summary.held_out_tails);
  const auto train = documents_of(s.tokenizer, s.options.output, "train");
  const auto valid = documents_of(s.tokenizer, s.options.output, "valid");
  ASSERT_EQ(train.size(), 2u);
  ASSERT_EQ(valid.size(), 2u);
  EXPECT_EQ(train[0] + valid[0], book);
  EXPECT_EQ(train[1] + valid[1], no_lines);
  EXPECT_EQ(train[0].back(), '\n');
  EXPECT_NEAR(double(valid[0].size()) / double(book.size()), 0.25, 0.02);
  EXPECT_EQ(train[1].size(), 2999u);  // byte 3000 is inside é
  EXPECT_EQ(summary.valid.bytes, int64_t(valid[0].size() + valid[1].size()));
}

TEST(Prepare, ATailBeginsAtALineOnlyIfOneIsNear) {
  Corpus s;
  const std::string far = std::string(100, 'k') + "\n" + std::string(4000, 'k'), one = "k";
  s.options.inputs = {spit(s.dir / "b1.txt", far), spit(s.dir / "b2.txt", one), spit(s.dir / "b3.txt", "k\n")};
  s.options.valid_fraction = 0.25;
  prepare(s.options);
  const auto train = documents_of(s.tokenizer, s.options.output, "train");
  const auto valid = documents_of(s.tokenizer, s.options.output, "valid");
  ASSERT_EQ(train.size(), 2u) << "there is no empty document";
  ASSERT_EQ(valid.size(), 2u) << "there is no empty document";
  EXPECT_EQ(train[0].size(), size_t(double(far.size()) * 0.75));
  EXPECT_EQ(train[0] + valid.at(0), far);
  EXPECT_EQ(valid.at(1), one);
}

TEST(Prepare, FewDocumentsAreFewerThanTwentyOfThoseTaken) {
  Corpus s;
  const auto tails = [&](size_t documents, int64_t limit) {
    std::vector<std::string> texts;
    for (size_t i = 0; i < documents; ++i) texts.push_back(babble(20, unsigned(i)));
    s.options.inputs = {spit(s.dir / "a.jsonl", "{broken\n" + jsonl(texts))};
    s.options.text.skip_malformed = s.options.overwrite = true;
    s.options.valid_fraction = 0.3;
    s.options.limit_bytes = limit;
    return prepare(s.options).held_out_tails;
  };
  EXPECT_TRUE(tails(19, 0));
  EXPECT_FALSE(tails(20, 0));
  EXPECT_TRUE(tails(40, 1000)) << "the limit takes fewer";
}

TEST(Prepare, WhatAKilledRunLeftBehindIsNotPublished) {
  Corpus s;
  s.options.inputs = {spit(s.dir / "a.txt", babble(1000, 1))};
  s.options.shard_tokens = 100;
  prepare(s.options);
  const std::string out = s.options.output;
  std::filesystem::create_directory(out + "/.preparing");
  for (const char* name : {"train-00000.h5", "train-00900.h5", "valid-00900.h5", "train-00900.h5.mmfree-tmp-1-0"})
    std::filesystem::copy_file(out + "/train-00000.h5", out + "/.preparing/" + name);
  s.options.shard_tokens = 1 << 20;
  s.options.overwrite = true;
  prepare(s.options);
  std::vector<std::string> names;
  for (const auto& [name, bytes] : content(out)) names.push_back(name);
  EXPECT_EQ(names, (std::vector<std::string>{".mmfree-shards", "train-00000.h5", "valid-00000.h5"}));
}

TEST(Prepare, OptionsThatMakeNoSenseAreRefused) {
  Corpus s;
  s.options.inputs = {spit(s.dir / "a.txt", babble(100, 1))};
  for (const auto& spoil : std::vector<std::function<void(PrepareOptions&)>>{
           [](PrepareOptions& o) { o.limit_bytes = -1; }, [](PrepareOptions& o) { o.shard_tokens = 0; },
           [](PrepareOptions& o) { o.valid_fraction = -0.1; }, [](PrepareOptions& o) { o.valid_fraction = NAN; }}) {
    PrepareOptions bad = s.options;
    spoil(bad);
    EXPECT_THROW(prepare(bad), UsageError);
  }
  EXPECT_FALSE(std::filesystem::exists(s.dir / "out"));
}

TEST(Prepare, OptionsBosEosLimitAndNoSplit) {
  Corpus s;
  s.options.inputs = {spit(s.dir / "a.jsonl", jsonl(std::vector<std::string>(30, "kalo mi")))};
  s.options.valid_fraction = 0;
  s.options.bos = s.options.eos = false;
  s.options.limit_bytes = 20;
  const PrepareSummary summary = prepare(s.options);
  EXPECT_EQ(summary.train.documents, 3);
  EXPECT_EQ(summary.train.bytes, 21);
  EXPECT_EQ(summary.train.tokens, 3 * int64_t(s.tokenizer.encode("kalo mi").size()));
  EXPECT_EQ(summary.valid.shards, 0);
  s.options.overwrite = true;
  s.options.shard_tokens = summary.train.tokens / 3;
  EXPECT_EQ(prepare(s.options).train.shards, 3) << "a document that reaches the size is the last";
  for (const auto& [limit, documents] : {std::pair{21, 3}, {22, 4}, {1, 1}}) {
    s.options.limit_bytes = limit;
    EXPECT_EQ(prepare(s.options).train.documents, documents) << limit;
  }
}

TEST(Prepare, ATokenizerWithoutBosGetsNone) {
  Corpus s;
  std::string model = slurp(s.options.tokenizer);
  const std::string bos("\x03<s>\x15\0\0\0\0\x18\x03", 11);  // a piece, its score and its type: control
  ASSERT_NE(model.find(bos), std::string::npos);
  model[model.find(bos) + bos.size() - 1] = 1;
  s.options.tokenizer = spit(s.dir / "no_bos.model", model);
  const Tokenizer tokenizer = Tokenizer::load(s.options.tokenizer);
  ASSERT_EQ(tokenizer.bos_id(), -1);
  s.options.inputs = {spit(s.dir / "a.txt", "kalo mi")};
  s.options.valid_fraction = 0;
  EXPECT_EQ(prepare(s.options).train.tokens, int64_t(tokenizer.encode("kalo mi").size()) + 1);
}

TEST(Prepare, RefusesWithoutTouchingWhatIsThere) {
  Corpus s;
  s.options.inputs = {spit(s.dir / "a.txt", babble(1000, 1))};
  s.options.shard_tokens = 100;
  s.options.valid_fraction = 0;
  prepare(s.options);
  const std::string first = s.options.output + "/train-00000.h5", old = slurp(first);
  spit(s.dir / "a.txt", babble(1000, 2));
  s.options.shard_tokens = 1 << 20;
  EXPECT_THROW(prepare(s.options), CreateError);
  s.options.overwrite = true;
  auto failing = s.options;
  failing.inputs.push_back(spit(s.dir / "b.jsonl", "{broken"));
  EXPECT_THROW(prepare(failing), DataError);
  EXPECT_EQ(slurp(first), old);
  EXPECT_EQ(prepare(s.options).train.shards, 1);
  EXPECT_NE(slurp(first), old);
  EXPECT_FALSE(std::filesystem::exists(s.options.output + "/train-00001.h5"));  // none of the old shards stays

  s.options.output = s.dir / "empty";
  s.options.inputs = {spit(s.dir / "e.txt", "")};
  EXPECT_THROW(prepare(s.options), DataError);
  s.options.inputs = {spit(s.dir / "many.jsonl", jsonl(std::vector<std::string>(30, "the same text")))};
  for (double fraction : {1e-12, 1 - 1e-12}) {
    s.options.valid_fraction = fraction;
    EXPECT_THROW(prepare(s.options), DataError);
  }
  s.options.valid_fraction = 1;
  EXPECT_THROW(prepare(s.options), UsageError);
  EXPECT_FALSE(std::filesystem::exists(s.options.output));
}

/// A corpus of several shards, and starts of its preparation that may be cut.
struct CutCorpus : Corpus {
  int64_t kept = -1;  ///< shards that the last start found, -1 if it found none
  CutCorpus() {
    std::vector<std::string> texts;
    for (unsigned i = 0; i < 25; ++i) texts.push_back(babble(20, i));
    options.inputs = {spit(dir / "a.jsonl", jsonl(texts))};
    options.shard_tokens = 100;
    options.valid_fraction = 0.3;
    options.on_resume = [this](int64_t shards, int64_t) { kept = shards; };
  }
  /// Cut at the n-th time that it could be. Returns false if it comes to its end before.
  bool is_cut(int n) {
    std::atomic<int> calls{0};
    kept = -1;
    options.check_stop = [&calls, n] {
      if (++calls == n) throw std::runtime_error("stop");
    };
    try {
      prepare(options);
      return false;
    } catch (const std::runtime_error& e) {
      EXPECT_STREQ(e.what(), "stop");
      return true;
    }
  }
  /// The shards that a start that is never cut makes in a place of its own.
  std::map<std::string, std::string> whole() {
    PrepareOptions uncut = options;
    uncut.output = dir / "whole";
    uncut.check_stop = {};
    std::filesystem::remove_all(uncut.output);
    prepare(uncut);
    return content(uncut.output);
  }
};

TEST(Prepare, CutAnywhereItGoesOnToTheSameShards) {
  CutCorpus s;
  const auto whole = s.whole();
  ASSERT_GT(whole.size(), 5u);
  int cuts = 1, goes_on = 0;
  for (; s.is_cut(cuts); ++cuts) {
    SCOPED_TRACE(cuts);
    const bool nothing = !std::filesystem::exists(s.dir / "out");
    if (!nothing) {
      EXPECT_EQ(content(s.options.output), (std::map<std::string, std::string>{{".preparing", ""}}));
    }
    EXPECT_FALSE(s.is_cut(1 << 20));
    EXPECT_EQ(s.kept < 0, nothing);
    goes_on += s.kept > 0;
    EXPECT_EQ(content(s.options.output), whole);
    std::filesystem::remove_all(s.dir / "out");
  }
  EXPECT_GT(cuts, 25);
  EXPECT_GT(goes_on, 10);
  EXPECT_EQ(content(s.options.output), whole);
}

TEST(Prepare, CutAgainAndAgainItComesToTheEnd) {
  CutCorpus s;
  const auto whole = s.whole();
  int cuts = 0;
  while (s.is_cut(70)) ASSERT_LT(++cuts, 10);
  EXPECT_GT(cuts, 0);
  EXPECT_EQ(content(s.options.output), whole);
}

TEST(Prepare, CutItKeepsTheOldShards) {
  CutCorpus s;
  prepare(s.options);
  auto old = content(s.options.output);
  old[".preparing"] = "";
  spit(s.dir / "a.jsonl", jsonl({babble(2000, 99), babble(500, 98)}));
  s.options.overwrite = true;
  const auto whole = s.whole();
  for (int cuts = 1; s.is_cut(cuts); ++cuts) {
    auto now = content(s.options.output);
    now[".preparing"] = "";
    EXPECT_EQ(now, old) << cuts;
  }
  EXPECT_EQ(content(s.options.output), whole);
}

TEST(Prepare, GoesOnOnlyFromWholeShardsOfTheSamePlan) {
  CutCorpus s;
  ASSERT_TRUE(s.is_cut(75));
  const std::string waiting = s.options.output + "/.preparing";
  const std::string backup = s.dir / "backup";
  const auto as_cut = [&] {
    std::filesystem::remove_all(s.dir / "out");
    std::filesystem::create_directories(s.options.output);
    std::filesystem::copy(backup, waiting, std::filesystem::copy_options::recursive);
  };
  std::filesystem::copy(waiting, backup, std::filesystem::copy_options::recursive);
  const auto finish = [&] {
    const auto whole = s.whole();
    EXPECT_FALSE(s.is_cut(1 << 20));
    EXPECT_EQ(content(s.options.output), whole);
    return s.kept;
  };
  const int64_t all = finish();
  ASSERT_GE(all, 3);

  as_cut();  // damaged: neither it nor what comes after it counts
  std::string bytes = slurp(waiting + "/train-00001.h5");
  bytes[bytes.size() / 2] ^= 1;
  spit(waiting + "/train-00001.h5", bytes);
  const int64_t intact = finish();
  EXPECT_GE(intact, 1);
  EXPECT_LT(intact, all);

  as_cut();  // intact, but it cannot be read just now
  {
    const Failing failing(interpose::Op::pread, "train-00001.h5", EIO, -1);
    s.options.check_stop = {};
    EXPECT_THROW(prepare(s.options), IoError);
    EXPECT_EQ(content(waiting), content(backup));
  }
  EXPECT_EQ(finish(), all);

  as_cut();  // of a newer version
  spit(waiting + "/train-00001.h5", of_the_next_version(slurp(waiting + "/train-00001.h5")));
  s.options.check_stop = {};
  EXPECT_THROW(prepare(s.options), VersionError);
  EXPECT_EQ(content(waiting).size(), content(backup).size());

  as_cut();  // more than the inputs can have made
  std::filesystem::copy(waiting + "/train-00000.h5", waiting + "/train-00002.h5",
                        std::filesystem::copy_options::overwrite_existing);
  for (int i = 3; i < 20; ++i)
    std::filesystem::copy(waiting + "/train-00000.h5", concat(waiting, "/train-000", i < 10 ? "0" : "", i, ".h5"),
                          std::filesystem::copy_options::overwrite_existing);
  s.options.check_stop = {};
  EXPECT_THROW(prepare(s.options), DataError);
  prepare(s.options);
  EXPECT_EQ(content(s.options.output), s.whole());

  as_cut();  // more of the other split
  for (int i = 0; i < 20; ++i)
    std::filesystem::copy(s.dir / "whole/valid-00000.h5", concat(waiting, "/valid-000", i < 10 ? "0" : "", i, ".h5"),
                          std::filesystem::copy_options::overwrite_existing);
  EXPECT_THROW(prepare(s.options), DataError);

  as_cut();  // of another split than its name says
  std::filesystem::copy(waiting + "/train-00000.h5", waiting + "/valid-00000.h5",
                        std::filesystem::copy_options::overwrite_existing);
  finish();

  const auto starts_over = [&](auto&& change) {
    as_cut();
    const PrepareOptions before = s.options;
    change();
    EXPECT_EQ(finish(), -1);
    s.options = before;
  };
  starts_over([&] { s.options.shard_tokens = 120; });
  starts_over([&] { s.options.valid_fraction = 0.31; });
  starts_over([&] { s.options.eos = false; });
  starts_over([&] { s.options.limit_bytes = 1500; });
  starts_over([&] { s.options.inputs.push_back(spit(s.dir / "b.jsonl", jsonl({babble(20, 77)}))); });
  starts_over([&] { spit(waiting + "/plan", "another"); });
  starts_over([&] { spit(s.dir / "a.jsonl", slurp(s.dir / "a.jsonl") + jsonl({babble(20, 78)})); });
}

TEST(Prepare, OnlyOneAtATimeInADirectory) {
  CutCorpus s;
  std::filesystem::create_directories(s.options.output);
  {
    const FolderLock other(s.options.output);
    EXPECT_THROW(prepare(s.options), CreateError);
  }
  prepare(s.options);
}

TEST(Prepare, WithoutLocksALeaseKeepsAnotherOutAndOneLineSaysSo) {
  const NoLocks none;
  CutCorpus s;
  std::vector<std::string> warnings;
  s.options.on_warning = into(warnings);
  std::filesystem::create_directories(s.options.output);
  {
    const FolderLock other(s.options.output);
    EXPECT_THROW(prepare(s.options), CreateError);
  }
  EXPECT_TRUE(warnings.empty());
  prepare(s.options);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("has no locks"), std::string::npos) << warnings[0];
  for (const std::string& name : names_in(s.options.output)) EXPECT_FALSE(name.starts_with(".mmfree-lease")) << name;
}

TEST(Prepare, AHalfReplacedCorpusIsMarkedUntilPrepareRunsAgain) {
  Corpus s;
  s.options.inputs = {spit(s.dir / "a.txt", babble(1000, 1))};
  s.options.shard_tokens = 100;
  s.options.valid_fraction = 0.3;
  prepare(s.options);
  spit(s.dir / "a.txt", babble(1000, 2));
  s.options.overwrite = true;
  failing_target = "/deep/valid-00000.h5";  // it comes after a shard that can be replaced
  EXPECT_THROW(prepare(s.options), IoError);
  failing_target.clear();
  const auto refused = [&] {
    try {
      TokenShards({s.options.output + "/valid-*.h5"});
      return false;
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find("run prepare again"), std::string::npos) << e.what();
      return true;
    }
  };
  EXPECT_TRUE(refused());
  // An attempt that fails takes nothing away, neither the mark nor the shards that became whole.
  const std::string kept = s.options.output + "/" + kPublishing;
  const auto whole = content(kept);
  EXPECT_GT(whole.size(), 1u);
  auto failing = s.options;
  failing.inputs = {spit(s.dir / "b.jsonl", "{broken")};
  EXPECT_THROW(prepare(failing), DataError);
  EXPECT_TRUE(refused());
  EXPECT_EQ(content(kept), whole);

  // Only shards are taken back, and only with their list.
  const std::string names = slurp(kept + "/names"), plan = slurp(kept + "/plan");
  spit(s.dir / "stranger.h5", "x");
  spit(kept + "/names", "train-/../../../stranger.h5\nnames\n" + names);
  s.options.overwrite = false;
  int64_t found = 0;
  s.options.on_resume = [&](int64_t shards, int64_t) { found = shards; };
  prepare(s.options);
  EXPECT_EQ(found, 2) << "the one that was in its place, and the one that was not";
  EXPECT_FALSE(std::filesystem::exists(kept));
  EXPECT_EQ(slurp(s.dir / "stranger.h5"), "x");
  const auto whole_corpus = [&] {
    const auto train = documents_of(s.tokenizer, s.options.output, "train");
    return train.at(0) + documents_of(s.tokenizer, s.options.output, "valid").at(0);
  };
  EXPECT_EQ(whole_corpus(), babble(1000, 2));

  std::filesystem::create_directory(kept);
  spit(kept + "/plan", plan);
  found = 0;
  prepare(s.options);
  EXPECT_EQ(found, 0) << "without a list it starts over";
  EXPECT_EQ(whole_corpus(), babble(1000, 2));

  // A folder with the name of a shard stands in the way from the start on.
  s.options.overwrite = true;
  std::filesystem::create_directories(s.options.output + "/train-00009.h5/full");
  EXPECT_THROW(prepare(s.options), CreateError);
  EXPECT_FALSE(refused());
}

TEST(Prepare, AnotherPlanTakesNothingOfACutPublication) {
  Corpus s;
  s.options.shard_tokens = 100;
  s.options.valid_fraction = 0.3;
  s.options.overwrite = true;
  const auto with_text = [&](unsigned seed) {
    s.options.inputs = {spit(concat(s.dir.path(), "/", seed, ".txt"), babble(1000, seed))};
  };
  with_text(1);
  prepare(s.options);
  const std::string mark = s.options.output + "/" + kPublishing;
  with_text(2);
  failing_target = "/deep/valid-00000.h5";
  EXPECT_THROW(prepare(s.options), IoError);
  failing_target.clear();
  int64_t found = 0;
  s.options.on_resume = [&](int64_t shards, int64_t) { found = shards; };
  s.options.overwrite = false;
  with_text(3);
  prepare(s.options);
  EXPECT_EQ(found, 0);
  EXPECT_FALSE(std::filesystem::exists(mark));
  EXPECT_FALSE(std::filesystem::exists(s.options.output + "/.preparing"));
  EXPECT_EQ(documents_of(s.tokenizer, s.options.output, "train").at(0) +
                documents_of(s.tokenizer, s.options.output, "valid").at(0),
            babble(1000, 3));
}

TEST(Prepare, TailsOfAnyTextAddUpToIt) {
  Corpus s;
  std::vector<std::string> texts = {"x", "\n" + std::string(50, 'k'), std::string(50, 'k') + "\n",
                                    "a\n" + std::string(6000, 'k')};
  for (double fraction : {0.01, 0.5, 0.99}) {
    s.options.inputs = {spit(s.dir / "a.jsonl", jsonl(texts))};
    s.options.valid_fraction = fraction;
    s.options.overwrite = true;
    const PrepareSummary summary = prepare(s.options);
    std::string all, parts;
    for (const std::string& text : texts) all += text;
    for (const char* split : {"train", "valid"})
      for (const std::string& text : documents_of(s.tokenizer, s.options.output, split)) parts += text;
    EXPECT_EQ(summary.train.bytes + summary.valid.bytes, int64_t(all.size())) << fraction;
    std::sort(all.begin(), all.end()), std::sort(parts.begin(), parts.end());
    EXPECT_EQ(parts, all) << fraction;
  }
  s.options.valid_fraction = 1e-18;
  EXPECT_THROW(prepare(s.options), DataError) << "nothing is left to hold out";
}

TEST(Prepare, LimitsOtherFilesAndATokenizerWithoutEnds) {
  Corpus s;
  std::string model = s.tokenizer.serialized();
  for (const char* piece : {"<s>", "</s>"}) model[model.find(piece) + 1] = '?';
  s.options.tokenizer = spit(s.dir / "endless.model", model);
  s.options.inputs = {spit(s.dir / "a.jsonl", jsonl(std::vector<std::string>(30, "kalo mi lo")))};
  s.options.limit_bytes = 45;
  s.options.valid_fraction = 0.3;
  std::filesystem::create_directories(s.options.output);
  spit(s.options.output + "/train-notes.txt", "stays");
  const PrepareSummary summary = prepare(s.options);
  EXPECT_TRUE(summary.held_out_tails) << "of five documents";
  EXPECT_EQ(summary.train.bytes + summary.valid.bytes, 50);
  EXPECT_EQ(slurp(s.options.output + "/train-notes.txt"), "stays");
  const TokenShards shards({s.options.output + "/train-*.h5"});
  EXPECT_EQ(shards.info().bos_id, -1);
  EXPECT_EQ(shards.info().eos_id, -1);
  EXPECT_EQ(summary.train.documents, shards.documents());

  std::vector<PrepareOptions> bad(4, s.options);
  bad[0].valid_fraction = -0.1;
  bad[1].valid_fraction = std::nan("");
  bad[2].shard_tokens = 0;
  bad[3].limit_bytes = -1;
  for (const PrepareOptions& options : bad) EXPECT_THROW(prepare(options), UsageError);
}

}  // namespace
}  // namespace mmfree
