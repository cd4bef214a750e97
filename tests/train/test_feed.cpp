// Reading ahead: the same batches in the same order, errors where they are asked for, and no thread left behind.
#include <gtest/gtest.h>

#include <limits>

#include "core/gpu.h"
#include "data/feed.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_run.h"

namespace mmfree {
namespace {

constexpr int64_t kRows = 3, kLength = 17;

struct Feeding {
  Corpus corpus{TokenShards({TinyCorpus::get().train()})};
  Batches batches{corpus, {kLength, 5, true}};
  std::vector<int32_t> expected(int64_t step) const {
    std::vector<int32_t> all(size_t(2 * kRows * kLength));
    batches.read(step * kRows, kRows, {all.data(), all.data() + kRows * kLength});
    return all;
  }
};

std::vector<int32_t> content(BatchFeed::Slot* slot) {
  return std::vector<int32_t>(slot->data(), slot->data() + 2 * kRows * kLength);
}

TEST(BatchFeed, GivesTheBatchesOfItsStepsInOrder) {
  const Feeding corpus;
  for (int64_t first : {0, 7}) {
    BatchFeed feed(corpus.batches, first * kRows, 20, kRows, kLength, false);
    std::vector<int32_t> previous;
    for (int64_t step = first; step < first + 20; ++step) {
      BatchFeed::Slot* slot = feed.next();
      EXPECT_EQ(corpus.expected(step), content(slot)) << step;
      EXPECT_NE(previous, content(slot));
      EXPECT_EQ(kRows * kLength, slot->scored);
      EXPECT_EQ(slot->targets(), slot->data() + kRows * kLength);
      EXPECT_EQ(std::count(slot->starts(), slot->starts() + kRows * kLength, 0), kRows * kLength);
      previous = content(slot);
      feed.release(slot);
    }
    EXPECT_GE(feed.waited(), 0);
    for (int again : {0, 1}) expect_error<Error>({"feed", "after the last step"}, [&] { feed.next(); }), (void)again;
  }
}

TEST(BatchFeed, ABatchBelongsToTheCallerUntilItIsReleased) {
  const Feeding corpus;
  BatchFeed feed(corpus.batches, 0, 50, kRows, kLength, false);
  // Two batches in hand while ten more pass through what is left.
  BatchFeed::Slot *a = feed.next(), *b = feed.next();
  for (int64_t step = 2; step < 12; ++step) {
    BatchFeed::Slot* slot = feed.next();
    EXPECT_NE(slot, a);
    EXPECT_NE(slot, b);
    EXPECT_EQ(corpus.expected(step), content(slot));
    feed.release(slot);
  }
  EXPECT_EQ(corpus.expected(0), content(a));
  EXPECT_EQ(corpus.expected(1), content(b));
  feed.release(b);
  feed.release(a);
  EXPECT_EQ(corpus.expected(12), content(feed.next()));
}

TEST(BatchFeed, WhatReadingThrowsArrivesBehindTheBatchesBefore) {
  const Feeding corpus;
  // The last step whose samples can be numbered.
  const int64_t last = std::numeric_limits<int64_t>::max() / kRows - 1;
  BatchFeed feed(corpus.batches, (last - 1) * kRows, 11, kRows, kLength, false);
  for (int64_t step : {last - 1, last}) {
    BatchFeed::Slot* slot = feed.next();
    EXPECT_EQ(corpus.expected(step), content(slot));
    feed.release(slot);
  }
  for (int time = 0; time < 3; ++time) expect_error<Error>({"batches: sample", "out of range"}, [&] { feed.next(); });
}

TEST(BatchFeed, EndsWhileItsThreadWaitsReadsOrIsDone) {
  const Feeding corpus;
  for (int taken = 0; taken < 6; ++taken) {
    BatchFeed endless(corpus.batches, 0, int64_t(1) << 40, kRows, kLength, false);
    for (int i = 0; i < taken; ++i) {
      BatchFeed::Slot* slot = endless.next();
      if (i >= 2) endless.release(slot);
    }
  }
  { BatchFeed done(corpus.batches, 4, 0, kRows, kLength, false); }
  { BatchFeed failed(corpus.batches, std::numeric_limits<int64_t>::max() - 1, 4, kRows, kLength, false); }
  BatchFeed none(corpus.batches, 4, 0, kRows, kLength, false);
  EXPECT_THROW(none.next(), Error);
}

TEST(BatchFeed, PinnedMemoryNeedsAGpu) {
  if (gpu::problem().empty()) GTEST_SKIP() << "there is a GPU";
  const Feeding corpus;
  EXPECT_THROW(BatchFeed(corpus.batches, 0, 4, kRows, kLength, true), DeviceError);
}

}  // namespace
}  // namespace mmfree
