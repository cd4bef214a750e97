#include <gtest/gtest.h>

#include <set>

#include "core/rng.h"

using namespace mmfree;

using Words = std::array<uint32_t, 4>;

TEST(Rng, PhiloxMatchesThePublishedVectors) {  // Random123, kat_vectors, philox4x32 10
  EXPECT_EQ((Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}), philox({0, 0, 0, 0}, {0, 0}));
  EXPECT_EQ((Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}),
            philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}));
  EXPECT_EQ((Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}),
            philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}));
}

TEST(Rng, NameHashMatchesThePublishedFnv1a) {
  EXPECT_EQ(0xcbf29ce484222325u, name_hash(""));
  EXPECT_EQ(0xaf63dc4c8601ec8cu, name_hash("a"));
  EXPECT_EQ(0x85944171f73967e8u, name_hash("foobar"));
}

TEST(Rng, StreamsDependOnEveryPartOfTheirAddress) {
  std::set<Words> seen;
  for (uint64_t seed : {uint64_t(0), uint64_t(1), uint64_t(1) << 32})
    for (uint64_t step : {0, 1, 2})
      for (const char* name : {"a", "b", ""})
        for (uint64_t index : {uint64_t(0), uint64_t(1), uint64_t(1) << 32})
          seen.insert(RandomStream(seed, step, name).words(index));
  EXPECT_EQ(81u, seen.size());
  EXPECT_EQ(RandomStream(3, 4, "x").words(5), RandomStream(3, 4, "x").words(5));
}

TEST(Rng, UniformAndNormalHaveTheirMoments) {
  const RandomStream stream(1, 0, "moments");
  constexpr int kCount = 100000;
  double u1 = 0, u2 = 0, n1 = 0, n2 = 0, n4 = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double u = stream.uniform(i), n = stream.normal(i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    ASSERT_TRUE(std::isfinite(n));
    u1 += u / kCount, u2 += u * u / kCount;
    n1 += n / kCount, n2 += n * n / kCount, n4 += n * n * n * n / kCount;
  }
  // Five standard deviations of each mean: sqrt(variance / count).
  EXPECT_NEAR(0.5, u1, 5 * std::sqrt(1.0 / 12 / kCount));
  EXPECT_NEAR(1.0 / 3, u2, 5 * std::sqrt(4.0 / 45 / kCount));
  EXPECT_NEAR(0, n1, 5 * std::sqrt(1.0 / kCount));
  EXPECT_NEAR(1, n2, 5 * std::sqrt(2.0 / kCount));
  EXPECT_NEAR(3, n4, 5 * std::sqrt(96.0 / kCount));
}
