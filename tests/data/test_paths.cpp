#include <glob.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.h"
#include "core/rng.h"
#include "data/paths.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

using Paths = std::vector<std::string>;

/// What libc finds.
Paths globbed(const std::string& pattern) {
  glob_t found{};
  const int failed = ::glob(pattern.c_str(), 0, nullptr, &found);
  Paths out(found.gl_pathv, found.gl_pathv + (failed ? 0 : found.gl_pathc));
  ::globfree(&found);
  std::sort(out.begin(), out.end());
  return out;
}

/// What mmfree finds, nothing being nothing.
Paths expanded(const std::string& pattern) {
  try {
    return expand_paths({pattern}, {".h5"});
  } catch (const MissingError&) {
    return {};
  }
}

/// A tree with names that patterns may trip over.
void plant(const TempDir& dir) {
  for (const char* folder : {"a", "b", "a/b", ".h", "a-b", "a-c"}) std::filesystem::create_directory(dir / folder);
  for (const char* file :
       {"a/1.h5", "a/2.h5", "a/b/1.h5", "a-c/1.h5", "b/1.h5", ".h/1.h5", "a/.1.h5", "1.h5", "ab", "[a]", "a*"})
    spit(dir / file, "x");
}

TEST(Paths, PatternsMatchWhatTheShellWouldMatch) {
  TempDir dir;
  plant(dir);
  const char* parts[] = {"*", "?", "a",   "b",  "[ab]", "[!a]", "[a-b]", "\\*", "\\[",
                         "]", "1", ".h5", ".1", ".h",   "/",    "-",     "/*"};
  const RandomStream random(1, 0, "patterns");
  int64_t drawn = 0, with_matches = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string pattern = dir.path() + "/*";
    const int n = 1 + int(random.uniform(uint64_t(drawn++)) * 4);
    for (int k = 0; k < n; ++k) pattern += parts[size_t(random.uniform(uint64_t(drawn++)) * double(std::size(parts)))];
    // A slash at the end asks for a folder, and a folder stands for its shards: neither is a pattern's business.
    if ((pattern + "/").find("/**/") != std::string::npos) continue;  // libc does not know it
    if (pattern.ends_with('/') || pattern.find("//") != std::string::npos || std::filesystem::is_directory(pattern))
      continue;
    const Paths expected = globbed(pattern);
    ASSERT_EQ(expanded(pattern), expected) << pattern;
    with_matches += !expected.empty();
  }
  EXPECT_GT(with_matches, 300);
}

TEST(Paths, EntriesKeepTheirOrderAndEachIsSorted) {
  TempDir dir;
  plant(dir);
  EXPECT_EQ(expand_paths({dir / "b", dir / "a", dir / "1.h5", dir / "?/1.h5"}, {".h5"}),
            (Paths{dir / "b/1.h5", dir / "a/.1.h5", dir / "a/1.h5", dir / "a/2.h5", dir / "1.h5", dir / "a/1.h5",
                   dir / "b/1.h5"}));
}

TEST(Paths, ANameThatIsThereIsNoPattern) {
  TempDir dir;
  plant(dir);
  EXPECT_EQ(expanded(dir / "[a]"), Paths{dir / "[a]"});
  EXPECT_EQ(expanded(dir / "a*"), Paths{dir / "a*"});
}

TEST(Paths, RelativePatternsStayRelative) {
  TempDir dir;
  plant(dir);
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(dir.path());
  const Paths bare = expanded("*/2.h5"), dotted = expanded("./?/2.h5");
  std::filesystem::current_path(before);
  EXPECT_EQ(bare, Paths{"a/2.h5"});
  EXPECT_EQ(dotted, Paths{"./a/2.h5"});
}

TEST(Paths, NothingFoundIsAnError) {
  TempDir dir;
  plant(dir);
  for (const char* entry : {"none.h5", "none/*.h5", "*.none", "1.h5/*", "a-b"}) {
    SCOPED_TRACE(entry);
    EXPECT_THROW(expand_paths({dir / entry}, {".h5"}), MissingError);
  }
}

TEST(Paths, AFolderThatCannotBeListedIsNotAnEmptyOne) {
  TempDir dir;
  plant(dir);
  std::filesystem::create_symlink("loop", dir / "loop");
  for (const char* entry : {"*/1.h5", "loop/*.h5", "loop"}) {
    SCOPED_TRACE(entry);
    EXPECT_THROW(expand_paths({dir / entry}, {".h5"}), IoError);
  }
}

TEST(Paths, TwoStarsStandForAnyNumberOfFolders) {
  TempDir dir;
  plant(dir);
  EXPECT_EQ(expanded(dir / "**/1.h5"),
            (Paths{dir / "1.h5", dir / "a-c/1.h5", dir / "a/1.h5", dir / "a/b/1.h5", dir / "b/1.h5"}));
  EXPECT_EQ(expanded(dir / "**/b/*"), (Paths{dir / "a/b/1.h5", dir / "b/1.h5"}));
  EXPECT_EQ(expanded(dir / "a/**/**/2.h5"), Paths{dir / "a/2.h5"});
  EXPECT_EQ(expanded(dir / "**.h5"), Paths{dir / "1.h5"}) << "a part of a name";
}

TEST(Paths, ADirectoryOfTextStandsForAllBelowIt) {
  TempDir dir;
  plant(dir);
  spit(dir / "a/b/X.H5", "x"), spit(dir / "b/other", "x");
  const Paths all = {dir / "1.h5",     dir / "a-c/1.h5", dir / "a/1.h5", dir / "a/2.h5",
                     dir / "a/b/1.h5", dir / "a/b/X.H5", dir / "b/1.h5"};
  const FoundFiles found({dir.path()}, {".h5"});
  EXPECT_EQ(found.files, all);
  EXPECT_EQ(found.passed_over, (Paths{dir / "[a]", dir / "a*", dir / "ab", dir / "b/other"}));
  EXPECT_EQ(FoundFiles({dir / "?", dir / "ab", dir / "1.h5"}, {".h5"}).files,
            (Paths{dir / "a/1.h5", dir / "a/2.h5", dir / "a/b/1.h5", dir / "a/b/X.H5", dir / "b/1.h5", dir / "ab",
                   dir / "1.h5"}))
      << "a pattern that matches directories, and a file that is named";
  EXPECT_EQ(FoundFiles({dir / "b/**"}, {".h5"}).files, Paths{dir / "b/1.h5"});
  EXPECT_EQ(FoundFiles({dir / "b/*"}, {".h5"}).passed_over, Paths{dir / "b/other"});
  EXPECT_EQ(FoundFiles({"-"}, {".h5"}).files, Paths{"-"});
  EXPECT_EQ(expand_paths({dir / "a/b"}, {".h5"}), (Paths{dir / "a/b/1.h5", dir / "a/b/X.H5"}));
}

TEST(Paths, LinksAreFollowedAndNoFolderIsReadTwice) {
  TempDir dir;
  plant(dir);
  std::filesystem::create_symlink("..", dir / "a/b/up");
  std::filesystem::create_symlink("b", dir / "z");
  std::filesystem::create_symlink("../a-c/1.h5", dir / "b/link.h5");
  EXPECT_EQ(FoundFiles({dir.path()}, {".h5"}).files,
            (Paths{dir / "1.h5", dir / "a-c/1.h5", dir / "a/1.h5", dir / "a/2.h5", dir / "a/b/1.h5", dir / "b/1.h5",
                   dir / "b/link.h5"}));
  EXPECT_EQ(FoundFiles({dir / "z"}, {".h5"}).files, (Paths{dir / "z/1.h5", dir / "z/link.h5"}));
  EXPECT_EQ(expanded(dir / "**/2.h5"), Paths{dir / "a/2.h5"});
}

TEST(Paths, WhatIsPassedOverIsNamed) {
  TempDir dir;
  plant(dir);
  try {
    FoundFiles({dir / "a-c"}, {".txt", ".json"});
    ADD_FAILURE();
  } catch (const MissingError& e) {
    EXPECT_EQ(std::string(e.what()),
              dir / "a-c" + ": holds none of: *.txt *.json; passed over 1 file of another type: " + dir / "a-c/1.h5");
  }
  EXPECT_EQ(passed_over_text({}), "");
  EXPECT_EQ(passed_over_text({"a", "b"}), "passed over 2 files of other types: a, b");
  EXPECT_EQ(passed_over_text({"a", "b", "c", "d", "e", "f", "g"}),
            "passed over 7 files of other types: a, b, c, d, e, ... (+2)");
}

}  // namespace
}  // namespace mmfree
