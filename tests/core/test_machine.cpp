// What is said of a machine.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/system/machine.h"
#include "tests/support/temp_dir.h"

using namespace mmfree;
namespace fs = std::filesystem;

TEST(Machine, TellsProcessorAndHugePages) {
  const TempDir dir;
  const std::string at = dir / "", thp = at + "/sys/kernel/mm/transparent_hugepage";
  fs::create_directories(at + "/proc");
  fs::create_directories(thp);
  EXPECT_EQ("unknown", processor_name(at));
  EXPECT_EQ("unknown", huge_pages(at));
  std::ofstream(at + "/proc/cpuinfo") << "processor\t: 0\nmodel name\t: Some Chip @ 2.00GHz\nprocessor\t: 1\n";
  EXPECT_EQ("Some Chip @ 2.00GHz", processor_name(at));
  for (const char* said : {"always", "madvise", "never"}) {
    std::string line;
    for (const std::string word : {"always", "madvise", "never"}) line += word == said ? "[" + word + "] " : word + " ";
    std::ofstream(thp + "/enabled") << line << "\n";
    EXPECT_EQ(said, huge_pages(at));
  }
  std::ofstream(thp + "/enabled") << "nonsense [\n";
  EXPECT_EQ("unknown", huge_pages(at));
}
