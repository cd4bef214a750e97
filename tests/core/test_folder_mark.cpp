#include <gtest/gtest.h>

#include <filesystem>

#include "core/error.h"
#include "core/system/folder_mark.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;

std::string refusal(const TempDir& dir, const std::vector<std::string>& names) {
  try {
    require_marked(dir.path(), "test", names);
    return "none";
  } catch (const CreateError& e) {
    return e.what();
  }
}

TEST(FolderMark, ProvesTheFilesThatItNamesAndNoOthers) {
  const TempDir dir;
  EXPECT_TRUE(read_mark(dir.path(), "test").empty());
  const std::vector<std::string> names = {"a  b", "empty", "grows", "twice", "absent"};
  const MarkedFiles files = {{"a  b", content_hash("A")},  {"empty", content_hash("")},  {"grows", kAnyContent},
                             {"twice", content_hash("1")}, {"twice", content_hash("2")}, {"absent", content_hash("x")}};
  write_mark(dir.path(), "test", files);
  EXPECT_EQ(read_mark(dir.path(), "test"), files);
  for (const char* text : {"1", "2"}) {
    for (const auto& [name, bytes] : {std::pair{"a  b", "A"}, {"empty", ""}, {"grows", "so"}, {"twice", text}})
      spit(dir / name, bytes);
    EXPECT_EQ(require_marked(dir.path(), "test", names), (MarkedFiles{{"a  b", content_hash("A")},
                                                                      {"empty", content_hash("")},
                                                                      {"grows", kAnyContent},
                                                                      {"twice", content_hash(text)}}));
  }
  spit(dir / "twice", "3");
  EXPECT_NE(refusal(dir, names).find("holds 'twice', which"), std::string::npos) << refusal(dir, names);
  spit(dir / "other", "");
  fs::remove(dir / "a  b");
  fs::create_symlink("grows", dir / "a  b");
  fs::remove(dir / "grows");
  fs::create_directory(dir / "grows");
  EXPECT_NE(refusal(dir, {"other", "a  b", "grows", "empty"}).find("holds 'other' and 2 more, which"),
            std::string::npos);
  EXPECT_NE(refusal(dir, {"grows"}).find("'grows'"), std::string::npos) << "a folder";
  EXPECT_THROW(write_mark(dir.path(), "test", {{"a\nb", ""}}), Error);
}

TEST(FolderMark, IsWholeOrNone) {
  const TempDir dir;
  const std::string path = dir / mark_name("test");
  spit(dir / "a", "A");
  EXPECT_NE(refusal(dir, {"a"}).find("no mark .mmfree-test"), std::string::npos);
  write_mark(dir.path(), "test", {{"a", content_hash("A")}});
  const std::string good = slurp(path);
  EXPECT_EQ(refusal(dir, {"a"}), "none");
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] ^= 1;
    spit(path, bad);
    EXPECT_NE(refusal(dir, {}).find("is not a mark"), std::string::npos) << i;
    spit(path, good.substr(0, i));
    EXPECT_NE(refusal(dir, {}).find("is not a mark"), std::string::npos) << i;
  }
  write_mark(dir.path(), "other", {{"a", content_hash("A")}});
  fs::rename(dir / mark_name("other"), path);
  EXPECT_NE(refusal(dir, {}).find("is not a mark"), std::string::npos) << "of another kind";
}

}  // namespace
}  // namespace mmfree
