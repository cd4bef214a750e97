#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "core/error.h"
#include "core/system/shared_file.h"

namespace mmfree {
namespace {

TEST(SharedFile, IsTheSameMemoryForAllWhoOpenItAndZeroAtFirst) {
  std::optional<SharedFile> file(std::in_place, 8192);
  const SharedPages one(file->name(), 8192), two(file->name(), 8192);
  EXPECT_NE(one.data(), two.data());
  auto* bytes = static_cast<char*>(one.data());
  for (int i = 0; i < 8192; ++i) ASSERT_EQ(0, bytes[i]);
  std::memcpy(bytes + 8000, "here", 5);
  EXPECT_STREQ("here", static_cast<const char*>(two.data()) + 8000);
  const std::string name = file->name();
  EXPECT_THROW(SharedPages(name, 4096), Error) << "another size";
  file.reset();
  EXPECT_THROW(SharedPages(name, 8192), Error) << "its name is gone";
  EXPECT_STREQ("here", static_cast<const char*>(two.data()) + 8000) << "what is mapped stays";
}

TEST(SharedFile, HasANameOfItsOwn) { EXPECT_NE(SharedFile(4096).name(), SharedFile(4096).name()); }

}  // namespace
}  // namespace mmfree
