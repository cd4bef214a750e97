#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>

#include "core/error.h"
#include "core/system/files.h"
#include "tests/support/child.h"
#include "tests/support/failing.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

TEST(Files, read_what_was_written) {
  const TempDir dir;
  const std::string bytes("a\0\xff\n", 4);
  write_file(dir / "x", bytes);
  EXPECT_EQ(read_file(dir / "x", 4), bytes);
  EXPECT_THROW(read_file(dir / "x", 3), DataError);
  write_file(dir / "x", "");
  EXPECT_EQ(read_file(dir / "x", 0), "");
  EXPECT_EQ(dir.files(), 1u);
}

TEST(Files, only_regular_files_are_input) {
  const TempDir dir;
  EXPECT_THROW(open_input(dir / "absent"), MissingError);
  EXPECT_THROW(open_input(dir.path()), DataError);
  EXPECT_THROW(open_input("/dev/zero"), DataError);
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  EXPECT_THROW(open_input(dir / "pipe"), DataError) << "and without waiting for a writer";
}

TEST(Files, the_system_s_errors_have_their_messages) {
  for (const int error : {ENOENT, ENOSPC, 12345}) EXPECT_EQ(error_text(error), std::strerror(error));
}

TEST(Files, a_short_file_is_noticed) {
  const TempDir dir;
  spit(dir / "x", "12345");
  char to[8];
  EXPECT_THROW(read_exactly(open_input(dir / "x"), "x", 2, to, 4), DataError);
  read_exactly(open_input(dir / "x"), "x", 2, to, 3);
  EXPECT_EQ(std::string(to, 3), "345");
}

TEST(Files, a_durable_file_appears_when_complete) {
  const TempDir dir;
  spit(dir / "x", "old");
  {
    DurableFile file(dir / "x");
    file.write("new", 3);
    EXPECT_EQ(slurp(dir / "x"), "old");
    EXPECT_EQ(dir.files(), 2u);
  }
  EXPECT_EQ(slurp(dir / "x"), "old");
  EXPECT_EQ(dir.files(), 1u);
  EXPECT_THROW(DurableFile(dir / "no/such/folder"), CreateError);
  std::filesystem::create_directory(dir / "folder");
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  std::filesystem::create_symlink("/dev/null", dir / "device");
  for (const char* other : {"folder", "pipe", "device"}) EXPECT_THROW(DurableFile(dir / other), CreateError) << other;
  DurableFile late(dir / "late");
  std::filesystem::create_directory(dir / "late");
  EXPECT_THROW(late.commit(), IoError) << "a folder is not replaced";
}

mode_t mode_of(const std::string& path) {
  struct stat info = {};
  EXPECT_EQ(::stat(path.c_str(), &info), 0) << path;
  return info.st_mode & 07777;
}

TEST(Files, a_durable_file_keeps_mode_and_owner_of_the_older_one) {
  const TempDir dir;
  spit(dir / "x", "old");
  ASSERT_EQ(::chmod((dir / "x").c_str(), 06600), 0);
  const bool may_give = ::geteuid() == 0;
  if (may_give) {
    ASSERT_EQ(::chown((dir / "x").c_str(), 12, 34), 0);
    ASSERT_EQ(::chmod((dir / "x").c_str(), 06600), 0);
  }
  DurableFile file(dir / "x");
  EXPECT_EQ(mode_of(file.temporary_path()), mode_t(0600)) << "nobody else reads what is written";
  file.commit();
  EXPECT_EQ(mode_of(dir / "x"), mode_t(0600)) << "without set-user-id and set-group-id";
  struct stat info = {};
  ASSERT_EQ(::stat((dir / "x").c_str(), &info), 0);
  if (may_give) {
    EXPECT_EQ(info.st_uid, 12u);
    EXPECT_EQ(info.st_gid, 34u);
  }
  std::filesystem::create_directory(dir / "folder");
  ASSERT_EQ(::chmod((dir / "folder").c_str(), 02750), 0);
  std::filesystem::create_directory(dir / "new");
  take_attributes(dir / "new", dir / "folder");
  EXPECT_EQ(mode_of(dir / "new"), mode_t(02750));
  take_attributes(dir / "x", dir / "folder");
  take_attributes(dir / "x", dir / "absent");
  EXPECT_EQ(mode_of(dir / "x"), mode_t(0600)) << "nothing of another kind of file";
}

TEST(Files, what_a_killed_process_left_of_the_same_file_is_removed) {
  const TempDir dir;
  const auto temporary = [&](const char* name, int number) {
    return concat(dir / name, kTemporaryMark, ::getpid(), "-", number);
  };
  for (int i = 0; i < 1000; ++i) spit(temporary("x", i), "left over");
  const std::string others[] = {temporary("y", 1),
                                temporary("xx", 1),
                                temporary("x", 1) + ".h5",
                                dir / "x.tmp",
                                concat(dir / "x", kTemporaryMark),
                                concat(dir / "x", kTemporaryMark, "2024-01-01")};
  for (const std::string& other : others) spit(other, "mine");
  DurableFile under_way(dir / "x");
  write_file(dir / "x", "new");
  EXPECT_EQ(slurp(dir / "x"), "new");
  for (const std::string& other : others) EXPECT_EQ(slurp(other), "mine");
  EXPECT_EQ(dir.files(), 8u) << "what another process writes now stays";
  under_way.write("newer", 5);
  under_way.commit();
  EXPECT_EQ(slurp(dir / "x"), "newer");
}

TEST(Files, what_cannot_be_opened_is_missing_only_if_it_is_out_of_reach) {
  const TempDir dir;
  std::filesystem::create_symlink("loop", dir / "loop");
  EXPECT_THROW(open_input(dir / "loop"), MissingError);
  EXPECT_THROW(open_input(dir / std::string(300, 'n')), MissingError);
  if (kHasItsOwnAllocator) GTEST_SKIP() << "a sanitizer needs files of its own";
  spit(dir / "x", "");
  rlimit before, none;
  getrlimit(RLIMIT_NOFILE, &before);
  none = before;
  none.rlim_cur = 0;
  setrlimit(RLIMIT_NOFILE, &none);
  EXPECT_THROW(open_input(dir / "x"), IoError) << "too many open files";
  setrlimit(RLIMIT_NOFILE, &before);
}

TEST(Files, what_may_pass_is_tried_three_times_more) {
  const TempDir dir;
  spit(dir / "x", "some bytes");
  using interpose::Op;
  for (const int error : {EIO, ESTALE, ENOMEM, EACCES, EAGAIN, ETIMEDOUT, ENFILE, EMFILE}) {
    const Failing failing(Op::open, dir / "x", error, 1);
    EXPECT_NO_THROW(open_input(dir / "x")) << error_text(error);
  }
  for (const auto& [error, times, calls] : {std::array{EIO, 3, 3}, {EIO, 4, 4}, {EIO, -1, 4}, {EISDIR, -1, 1}}) {
    const Failing failing(Op::pread, dir / "x", error, times);
    if (times == 3)
      EXPECT_EQ(read_file(dir / "x", 100), "some bytes");
    else
      EXPECT_THROW(read_file(dir / "x", 100), IoError);
    EXPECT_EQ(failing.failed(), calls);
  }
}

TEST(Files, names_are_sorted_and_what_is_not_there_holds_none) {
  const TempDir dir;
  for (const char* name : {"b", "a", "d", "c", "10", "9"}) spit(dir / name, "");
  EXPECT_EQ(names_in(dir.path()), (std::vector<std::string>{"10", "9", "a", "b", "c", "d"}));
  EXPECT_TRUE(names_in(dir / "none").empty());
  EXPECT_TRUE(names_in(dir / "a/none").empty()) << "below a file there is nothing";
  EXPECT_THROW(names_in(dir / "a"), IoError) << "a file is no empty folder";
}

TEST(Files, space_is_asked_for_in_time) {
  const TempDir dir;
  EXPECT_THROW(require_space(dir / "x", std::numeric_limits<int64_t>::max()), IoError);
  EXPECT_NO_THROW(require_space(dir / "x", 1));
  EXPECT_NO_THROW(require_space(dir / "no/folder/x", std::numeric_limits<int64_t>::max()));
}

TEST(Files, a_needed_directory_goes_again_unless_it_is_used_or_kept) {
  const TempDir dir;
  for (const char* name : {"a/b/c", "a/b/c/"}) {
    {
      const NeededDirectory made(dir / name);
      EXPECT_TRUE(std::filesystem::is_directory(dir / name)) << name;
    }
    EXPECT_EQ(dir.files(), 0u) << name;
  }
  {
    const NeededDirectory made(dir / "a/b/c");
    spit(dir / "a/b/x", "");
  }
  EXPECT_TRUE(std::filesystem::exists(dir / "a/b/x"));
  EXPECT_FALSE(std::filesystem::exists(dir / "a/b/c"));
  NeededDirectory(dir / "kept/empty").keep();
  EXPECT_TRUE(std::filesystem::is_directory(dir / "kept/empty"));
  { const NeededDirectory there(dir / "kept/empty"); }
  EXPECT_TRUE(std::filesystem::is_directory(dir / "kept/empty")) << "it was there before";

  std::filesystem::create_symlink("loop", dir / "loop");
  for (const char* name : {"a/b/x", "a/b/x/y", "a/b/n/../x", "loop", "loop/y"})
    EXPECT_THROW(NeededDirectory(dir / name), CreateError) << name;
  EXPECT_EQ(slurp(dir / "a/b/x"), "");
}

TEST(Files, a_read_that_fails_names_the_place) {
  const TempDir dir;
  const Fd folder(::open(dir.path().c_str(), O_RDONLY | O_DIRECTORY));
  char byte;
  EXPECT_THROW(read_exactly(folder, dir.path(), 0, &byte, 1), IoError);
}

TEST(Files, the_working_directory_needs_no_name) {
  sync_directory("");
  const NeededDirectory here("");
  require_space("x", 1);
}

TEST(Files, a_directory_that_cannot_be_made_is_an_error) {
  const TempDir dir;
  spit(dir / "file", "x");
  EXPECT_THROW(NeededDirectory(dir / "file"), CreateError);
  EXPECT_THROW(NeededDirectory(dir / "file/below"), std::exception);
  EXPECT_THROW(NeededDirectory("/proc/self/below"), CreateError);
  std::filesystem::create_symlink(dir / "nowhere", dir / "link");
  EXPECT_THROW(NeededDirectory(dir / "link"), CreateError) << "its name is taken, and it leads nowhere";
  EXPECT_EQ(dir.files(), 2u);
}

}  // namespace
}  // namespace mmfree
