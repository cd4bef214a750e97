// How ranks divide parameters: whole, in order, and as evenly as that allows.
#include <gtest/gtest.h>

#include "core/ops/adamw.h"
#include "optim/owners.h"

namespace mmfree {
namespace {

/// Parameters of so many blocks each.
std::vector<ParamSpec> parameters(const std::vector<int64_t>& blocks) {
  std::vector<ParamSpec> specs;
  for (size_t i = 0; i < blocks.size(); ++i)
    specs.push_back({concat("p", i), {blocks[i] * kParamBlock - 1}, {}, ParamRole::matrix});
  return specs;
}

std::vector<int64_t> pieces(const std::vector<int64_t>& blocks, int ranks, const std::vector<size_t>& divisible = {}) {
  const Bounds bounds = owner_bounds(parameters(blocks), ranks, [&](size_t i) {
    return std::find(divisible.begin(), divisible.end(), i) != divisible.end();
  });
  EXPECT_EQ(size_t(ranks) + 1, bounds.size());
  EXPECT_EQ(0, bounds[0]);
  std::vector<int64_t> sizes;
  for (size_t r = 0; r + 1 < bounds.size(); ++r) sizes.push_back((bounds[r + 1] - bounds[r]) / kParamBlock);
  return sizes;
}

using Sizes = std::vector<int64_t>;

/// Blocks of each part of each rank's piece.
std::vector<Sizes> parts(const std::vector<int64_t>& blocks, const Bounds& bounds_in_blocks, int count,
                         const std::vector<size_t>& divisible = {}) {
  Bounds bounds;
  for (const int64_t b : bounds_in_blocks) bounds.push_back(b * kParamBlock);
  std::vector<Sizes> sizes(bounds.size() - 1);
  std::vector<int64_t> ends(bounds.begin(), bounds.end() - 1);
  for (const Ranges& part : owner_parts(parameters(blocks), bounds, count, [&](size_t i) {
         return std::find(divisible.begin(), divisible.end(), i) != divisible.end();
       })) {
    EXPECT_EQ(part.size(), sizes.size());
    for (size_t r = 0; r < part.size(); ++r) {
      EXPECT_EQ(part[r].begin, ends[r]) << "parts follow each other";
      ends[r] = part[r].end;
      sizes[r].push_back(part[r].size() / kParamBlock);
    }
  }
  for (size_t r = 0; r < ends.size(); ++r) EXPECT_EQ(ends[r], bounds[r + 1]);
  return sizes;
}

TEST(Owners, HaveWholeParametersInOrder) {
  EXPECT_EQ((Sizes{10}), pieces({1, 2, 3, 4}, 1));
  EXPECT_EQ((Sizes{6, 4}), pieces({1, 2, 3, 4}, 2));
  EXPECT_EQ((Sizes{4, 4, 4, 4}), pieces({4, 1, 1, 1, 1, 2, 2, 4}, 4));
  EXPECT_EQ((Sizes{9, 2}), pieces({9, 1, 1}, 2)) << "one cannot be divided";
  EXPECT_EQ((Sizes{1, 1, 0, 0}), pieces({1, 1}, 4)) << "there are more ranks than parameters";
}

TEST(Owners, ShareTheBlocksOfWhatIsDivisible) {
  EXPECT_EQ((Sizes{5, 5}), pieces({8, 1, 1}, 2, {0}));
  EXPECT_EQ((Sizes{4, 4, 2, 4}), pieces({10, 3, 1}, 4, {0, 2})) << "the second is whole";
}

TEST(Owners, DividePiecesIntoPartsOfWholeParameters) {
  EXPECT_EQ((std::vector<Sizes>{{2, 2}, {2, 2}}), parts({1, 1, 2, 1, 1, 2}, {0, 4, 8}, 2));
  EXPECT_EQ((std::vector<Sizes>{{2, 2}, {4, 0}}), parts({1, 1, 2, 1, 3}, {0, 4, 8}, 2)) << "the last is whole";
  EXPECT_EQ((std::vector<Sizes>{{6, 0, 0}, {1, 1, 0}}), parts({6, 1, 1}, {0, 6, 8}, 3)) << "one cannot be divided";
  EXPECT_EQ((std::vector<Sizes>{{2, 2, 2}, {1, 1, 0}}), parts({6, 1, 1}, {0, 6, 8}, 3, {0}));
  EXPECT_EQ((std::vector<Sizes>{{1, 0}, {0, 0}}), parts({1}, {0, 1, 1}, 2)) << "a piece may be empty";
}

}  // namespace
}  // namespace mmfree
