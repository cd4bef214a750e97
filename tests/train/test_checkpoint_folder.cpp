#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/temp_dir.h"
#include "train/run/run_folder.h"

namespace mmfree {
namespace {

TEST(CheckpointFolder, unfinished_saves_are_removed_and_nothing_else) {
  const TempDir dir;
  remove_unfinished_checkpoints(dir.path());  // no checkpoints folder yet
  std::filesystem::create_directory(dir / "checkpoints");
  const std::vector<std::string> kept = {"step-00000001.h5", "step-00000002.h5", "notes.mmfree-tmp-1-0",
                                         "step-3.mmfree-tmp-1-0"};
  for (const std::string& name : kept) spit(dir / "checkpoints/" + name, "x");
  for (const char* name : {"step-00000002.h5.mmfree-tmp-1-0", "step-00000003.h5.mmfree-tmp-4711-12"})
    spit(dir / "checkpoints/" + name, "x");
  remove_unfinished_checkpoints(dir.path());
  for (const std::string& name : kept) EXPECT_TRUE(std::filesystem::exists(dir / "checkpoints/" + name)) << name;
  const std::filesystem::directory_iterator left(dir / "checkpoints");
  EXPECT_EQ(std::distance(begin(left), end(left)), 4);
  EXPECT_EQ(checkpoint_steps(dir.path()), (std::vector<int64_t>{1, 2}));
}

}  // namespace
}  // namespace mmfree
