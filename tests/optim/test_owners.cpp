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

}  // namespace
}  // namespace mmfree
