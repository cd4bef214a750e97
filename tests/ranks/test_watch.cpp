#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "core/ranks/watch.h"

namespace mmfree {
namespace {

using std::chrono::milliseconds;

/// Exchanges of a GPU end only when the recordings that hold them are destroyed, which is after `check` has thrown.
TEST(Watch, DoesNotLetTheProcessEndInTheMidstOfACancel) {
  int ends[2];
  ASSERT_EQ(0, ::socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
  Meeting meeting;
  meeting.members.resize(2);
  meeting.spokes.emplace_back();
  meeting.spokes.emplace_back(ends[0]);
  std::atomic<bool> may_end = false, ended = false;
  {
    Watch watch(std::move(meeting));
    watch.set_cancel([&] {
      while (!may_end) std::this_thread::sleep_for(milliseconds(5));
      std::this_thread::sleep_for(milliseconds(300));
      ended = true;
    });
    Fd other(ends[1]);
    other.close();
    const auto wait = [&] {
      for (;;) {
        watch.check();
        std::this_thread::sleep_for(milliseconds(5));
      }
    };
    EXPECT_THROW(wait(), LostRank);
    EXPECT_FALSE(ended);
    may_end = true;
  }
  EXPECT_TRUE(ended);
}

}  // namespace
}  // namespace mmfree
