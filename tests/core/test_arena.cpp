#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <thread>

#include "core/arena.h"
#include "core/error.h"
#include "core/tensor.h"
#include "tests/support/tensors.h"

using namespace mmfree;

namespace {

int obtained = 0, given_back = 0;

Arena::Source counting_source() {
  obtained = given_back = 0;
  return {Device::cpu,
          [](size_t bytes) {
            ++obtained;
            return std::aligned_alloc(256, bytes);
          },
          [](void* p) {
            ++given_back;
            std::free(p);
          }};
}

/// A step of a model: temporaries of many sizes, dying in another order.
std::vector<void*> one_step(Arena& arena) {
  std::mt19937 rng(1);
  std::vector<void*> addresses, live;
  for (int i = 0; i < 300; ++i) {
    if (live.size() > 20 || (!live.empty() && rng() % 3 == 0)) {
      const size_t which = rng() % live.size();
      arena.release(live[which]);
      live.erase(live.begin() + long(which));
    }
    live.push_back(arena.allocate(rng() % 5000));
    addresses.push_back(live.back());
  }
  for (void* p : live) arena.release(p);
  return addresses;
}

/// One range of addresses that grows at its end; the sizes asked for go to `asked`.
Arena::Source growing_source(std::vector<size_t>* asked, size_t limit = ~size_t(0)) {
  auto memory = std::shared_ptr<char>(static_cast<char*>(std::aligned_alloc(256, size_t(1) << 20)), std::free);
  auto used = std::make_shared<size_t>(0);
  return {Device::cpu,
          [=](size_t bytes) -> void* {
            asked->push_back(bytes);
            if (*used + bytes > limit) return nullptr;
            *used += bytes;
            return memory.get() + *used - bytes;
          },
          [memory](void* p) {
            EXPECT_EQ(memory.get(), p) << "only the start of the range is given back";
            ++given_back;
          },
          true};
}

}  // namespace

TEST(Arena, RepeatsAddressesAndAsksForNothingNew) {
  Arena arena(counting_source(), 1 << 14);
  const std::vector<void*> first = one_step(arena);
  const ArenaStats after = arena.stats();
  EXPECT_GT(after.slabs, 1u);
  std::vector<void*> previous = one_step(arena);  // slabs that came late are there from the start now
  for (int step = 0; step < 5; ++step) {
    const std::vector<void*> now = one_step(arena);
    EXPECT_EQ(previous, now);
    previous = now;
  }
  EXPECT_EQ(after.slabs, arena.stats().slabs);
  EXPECT_EQ(after.slabs, size_t(obtained));
  EXPECT_EQ(after.reserved, arena.stats().reserved);
  EXPECT_EQ(0u, arena.stats().live);
}

TEST(Arena, AlignsAndNeverOverlaps) {
  Arena arena(counting_source(), 1 << 16);
  std::vector<std::pair<char*, size_t>> blocks;
  for (size_t bytes : {0, 1, 255, 256, 257, 4096, 100000, 3}) {
    char* p = static_cast<char*>(arena.allocate(bytes));
    EXPECT_EQ(0u, reinterpret_cast<uintptr_t>(p) % 256);
    std::memset(p, int(blocks.size()), bytes);
    blocks.emplace_back(p, bytes);
  }
  for (size_t i = 0; i < blocks.size(); ++i)
    for (size_t k = 0; k < blocks[i].second; ++k) ASSERT_EQ(int(i), blocks[i].first[k]);
}

TEST(Arena, CoalescesNeighboursInAnyOrder) {
  for (const auto& order : {std::array{0, 1, 2, 3}, {3, 2, 1, 0}, {0, 2, 1, 3}, {1, 3, 0, 2}}) {
    Arena arena(counting_source(), 1024);
    std::vector<void*> blocks;
    for (int i = 0; i < 4; ++i) blocks.push_back(arena.allocate(256));
    for (int i : order) arena.release(blocks[size_t(i)]);
    EXPECT_EQ(blocks[0], arena.allocate(1024));
    EXPECT_EQ(1, obtained);
  }
}

TEST(Arena, TakesTheBestFit) {
  Arena arena(counting_source(), 4096);
  void* large = arena.allocate(1024);
  void* fence = arena.allocate(256);
  void* small = arena.allocate(512);
  void* second_fence = arena.allocate(256);
  arena.release(large);
  arena.release(small);
  EXPECT_EQ(small, arena.allocate(500));
  EXPECT_EQ(large, arena.allocate(1000));
  EXPECT_NE(fence, second_fence);
}

TEST(Arena, CountsLivePeakAndReserved) {
  Arena arena(counting_source(), 4096);
  void* a = arena.allocate(1);
  void* b = arena.allocate(300);
  EXPECT_EQ(256u + 512u, arena.stats().live);
  arena.release(a);
  EXPECT_EQ(512u, arena.stats().live);
  EXPECT_EQ(768u, arena.stats().peak);
  arena.reset_peak();
  EXPECT_EQ(512u, arena.stats().peak);
  void* big = arena.allocate(10000);
  EXPECT_EQ(4096u + 3 * 4096u, arena.stats().reserved);
  EXPECT_EQ(2u, arena.stats().slabs);
  arena.release(b);
  arena.release(big);
  arena.release(nullptr);
  EXPECT_EQ(0u, arena.stats().live);
}

TEST(Arena, TellsItsLayoutWhereverItsSlabsAre) {
  std::vector<char> memory(3 * 4096 + 256);
  char* const begin = memory.data() + (256 - reinterpret_cast<uintptr_t>(memory.data()) % 256) % 256;
  const auto layout = [&](std::vector<int> places, size_t last) {
    const auto obtain = [&, i = size_t(0)](size_t) mutable -> void* { return begin + 4096 * places.at(i++); };
    Arena arena({Device::cpu, obtain, [](void*) {}}, 4096);
    for (size_t bytes : {size_t(3000), size_t(4096), size_t(300), last}) arena.allocate(bytes);
    EXPECT_EQ(begin + 4096 * places[1], arena.slabs().at(1).begin);
    EXPECT_EQ(4096u, arena.slabs().at(1).bytes);
    return arena.layout();
  };
  EXPECT_EQ("slab of 4096 bytes\nslab of 4096 bytes\nslab 0 at 0: 3072 bytes\nslab 0 at 3072: 512 bytes\nslab 0 at 3584: 256 bytes\nslab 1 at 0: 4096 bytes\n",
            layout({0, 1}, 1));
  EXPECT_EQ(layout({0, 1}, 1), layout({2, 0}, 200));
  EXPECT_NE(layout({0, 1}, 1), layout({0, 1}, 257));
}

TEST(Arena, GivesEverySlabBackAtTheEnd) {
  {
    Arena arena(counting_source(), 4096);
    arena.allocate(5000);  // two slabs' worth in one
    arena.allocate(4000);
    EXPECT_EQ(0, given_back);
  }
  EXPECT_EQ(obtained, given_back);
  EXPECT_EQ(2, given_back);
}

TEST(Arena, SaysHowMuchWasMissing) {
  Arena arena({Device::cpu, [](size_t) -> void* { return nullptr; }, [](void*) {}}, 1 << 20);
  try {
    arena.allocate(size_t(5) << 20);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string::npos, std::string(e.what()).find("5 MiB")) << e.what();
  }
  EXPECT_THROW(arena.allocate(~size_t(0) - 10), Error);
  EXPECT_EQ(0u, arena.stats().live);
}

TEST(Arena, SaysHowMuchOfItsMemoryIsInUse) {
  std::vector<size_t> asked;
  Arena arena(growing_source(&asked, size_t(1) << 20), size_t(1) << 20);
  void* freed = arena.allocate(size_t(512) << 10);
  arena.release(freed);
  expect_error<OutOfMemory>({"4 MiB more", "beyond 1 MiB, of which 0 MiB are in use"},
                            [&] { arena.allocate(size_t(5) << 20); });
}

TEST(Arena, OfTheProcessOutlivesStaticObjects) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // the child starts anew, before the arena is made
  const auto ask_at_the_end = [] {
    static auto& arena = *new std::weak_ptr<Arena>;
    std::atexit([] { std::_Exit(arena.expired() ? 1 : 0); });  // after the destructors of what is made from here on
    arena = Arena::current(Device::cpu);
    std::exit(2);
  };
  EXPECT_EXIT(ask_at_the_end(), testing::ExitedWithCode(0), "");
}

TEST(Arena, ServesThreadsAtOnce) {
  Arena arena(counting_source(), 1 << 14);
  std::vector<std::thread> threads;
  std::atomic<int> damaged{0};
  for (int id = 0; id < 4; ++id)
    threads.emplace_back([&, id] {
      std::mt19937 rng{uint32_t(id)};
      for (int i = 0; i < 2000; ++i) {
        const size_t bytes = 1 + rng() % 3000;
        auto* p = static_cast<unsigned char*>(arena.allocate(bytes));
        std::memset(p, id + 1, bytes);
        for (size_t k = 0; k < bytes; k += 97) damaged += p[k] != id + 1;
        arena.release(p);
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(0, damaged);
  EXPECT_EQ(0u, arena.stats().live);
}

TEST(Arena, OverAContiguousSourceGrowsInPlaceAndReusesTheFreeTail) {
  std::vector<size_t> asked;
  given_back = 0;
  {
    Arena arena(growing_source(&asked), 1024);
    char* a = static_cast<char*>(arena.allocate(256));
    EXPECT_EQ(asked, (std::vector<size_t>{1024}));
    // 768 free bytes end the range: of 1536 only as many are missing, so one slab does.
    char* b = static_cast<char*>(arena.allocate(1536));
    EXPECT_EQ(asked, (std::vector<size_t>{1024, 1024}));
    EXPECT_EQ(a + 256, b);
    // 256 are left at the end, which serves this without growth.
    char* c = static_cast<char*>(arena.allocate(256));
    EXPECT_EQ(b + 1536, c);
    EXPECT_EQ(2u, asked.size());
    EXPECT_EQ(2048u, arena.stats().reserved);
    EXPECT_EQ(2048u, arena.stats().live);
    EXPECT_EQ(2048u, arena.stats().peak);
    // The end of the range is in use now: what is free elsewhere does not count.
    arena.release(b);
    char* d = static_cast<char*>(arena.allocate(1792));
    EXPECT_EQ(c + 256, d);
    EXPECT_EQ(asked, (std::vector<size_t>{1024, 1024, 2048}));
    arena.release(a);
    arena.release(c);
    arena.release(d);
    EXPECT_EQ(0u, arena.stats().live);
    EXPECT_EQ(a, arena.allocate(4096)) << "all growth is one block again";
    EXPECT_EQ(3u, asked.size());
  }
  EXPECT_EQ(1, given_back);
}

TEST(Arena, OverAContiguousSourceNeverOverlapsAndRepeatsAddresses) {
  std::vector<size_t> asked;
  Arena arena(growing_source(&asked), 512);
  // The first step grows the range; where its blocks lie must not depend on how far it has grown.
  const std::vector<void*> expected = one_step(arena);
  const size_t slabs = asked.size();
  EXPECT_GT(slabs, 10u);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(expected, one_step(arena));
  EXPECT_EQ(slabs, asked.size());
  EXPECT_EQ(0u, arena.stats().live);
  std::mt19937 rng(2);
  std::map<char*, size_t> live;
  for (int i = 0; i < 3000; ++i) {
    if (live.size() > 30 || (!live.empty() && rng() % 2)) {
      const auto it = std::next(live.begin(), long(rng() % live.size()));
      arena.release(it->first);
      live.erase(it);
    }
    const size_t bytes = 1 + rng() % 6000;
    char* p = static_cast<char*>(arena.allocate(bytes));
    const auto next = live.lower_bound(p);
    if (next != live.end()) {
      ASSERT_LE(p + bytes, next->first);
    }
    if (next != live.begin()) {
      ASSERT_LE(std::prev(next)->first + std::prev(next)->second, p);
    }
    live[p] = bytes;
  }
}

TEST(Arena, OverAContiguousSourceWastesLessThanOverSeparateSlabs) {
  // Blocks that each need more than what is left: separate slabs leave holes, a range that grows leaves none.
  std::vector<size_t> asked;
  Arena grown(growing_source(&asked), 1024), separate(counting_source(), 1024);
  for (Arena* arena : {&grown, &separate})
    for (int i = 0; i < 20; ++i) arena->allocate(768);
  EXPECT_EQ(15u * 1024, grown.stats().reserved);
  EXPECT_EQ(20u * 1024, separate.stats().reserved);
}

TEST(Arena, OverAContiguousSourceSurvivesItsEnd) {
  std::vector<size_t> asked;
  Arena arena(growing_source(&asked, 4096), 1024);
  void* a = arena.allocate(3000);
  EXPECT_THROW(arena.allocate(2000), Error);
  EXPECT_EQ(3072u, arena.stats().live);
  void* b = arena.allocate(1000);
  arena.release(a);
  arena.release(b);
  EXPECT_EQ(a, arena.allocate(4096));
}

TEST(Arena, CountedHandsOutAddressesOfAGpuWithoutMemory) {
  const auto arena = Arena::counted();
  EXPECT_EQ(Device::cuda, arena->device());
  const size_t terabyte = size_t(1) << 40;
  void* a = arena->allocate(8 * terabyte);
  void* b = arena->allocate(terabyte);
  EXPECT_EQ(static_cast<char*>(a) + 8 * terabyte, b);
  EXPECT_EQ(9 * terabyte, arena->stats().live);
  arena->release(a);
  EXPECT_EQ(terabyte, arena->stats().live);
  EXPECT_EQ(9 * terabyte, arena->stats().peak);
}

TEST(ArenaScope, RedirectsTensorsOfThisThreadAndNests) {
  const auto outer = Arena::host(), inner = Arena::host();
  EXPECT_EQ(Arena::current(Device::cpu), Arena::current(Device::cpu));
  Tensor kept;
  {
    ArenaScope a(outer);
    {
      ArenaScope b(inner);
      EXPECT_EQ(inner, Arena::current(Device::cpu));
      kept = Tensor({100}, DType::f32);
      std::thread([&] { EXPECT_NE(inner, Arena::current(Device::cpu)); }).join();
    }
    EXPECT_EQ(outer, Arena::current(Device::cpu));
  }
  EXPECT_NE(outer, Arena::current(Device::cpu));
  EXPECT_EQ(512u, inner->stats().live);
  EXPECT_EQ(0u, outer->stats().live);
  kept = Tensor();
  EXPECT_EQ(0u, inner->stats().live);
}
