#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <ctime>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/system/files.h"
#include "core/system/folder_lock.h"
#include "tests/support/child.h"
#include "tests/support/no_locks.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

constexpr std::chrono::milliseconds kOften(5);

/// The only file of a folder.
std::string lease_in(const TempDir& dir) {
  const std::vector<std::string> names = names_in(dir.path());
  EXPECT_EQ(names.size(), 1u);
  return names.empty() ? dir / "none" : dir / names[0];
}

/// Its age in seconds by the file system's clock.
int64_t age_of(const std::string& path) {
  struct stat info = {}, now = {};
  const TempDir here;
  if (::stat(path.c_str(), &info) != 0 || ::stat(spit(here / "x", "").c_str(), &now) != 0) return -1;
  return now.st_mtime - info.st_mtime;
}

void set_age(const std::string& path, int64_t seconds) {
  const timespec then{::time(nullptr) - seconds, 0};
  const timespec both[] = {then, then};
  ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), both, 0), 0) << path;
}

template <class Condition>
void wait_until(Condition&& holds) {
  while (!holds()) std::this_thread::sleep_for(kOften);
}

/// What a try to hold the folder says; empty if it succeeds.
std::string refusal(const std::string& path) {
  try {
    const FolderLock lock(path);
    return {};
  } catch (const CreateError& e) {
    return e.what();
  }
}

/// A process that holds the folder and is killed.
pid_t killed_holder(const std::string& path) {
  pid_t holder = 0;
  const Ended ended = in_child(
      [&] {
        const FolderLock lock(path);
        ::raise(SIGKILL);
      },
      60, [&](pid_t child) { holder = child; });
  EXPECT_EQ(ended.signal, SIGKILL);
  return holder;
}

TEST(FolderLock, one_holder_at_a_time_and_no_trace) {
  const TempDir dir;
  {
    const FolderLock lock(dir.path());
    EXPECT_TRUE(lock.is_held());
    EXPECT_EQ(lock.warning(), "");
    EXPECT_NE(refusal(dir.path()), "");
    EXPECT_EQ(dir.files(), 0u);
  }
  EXPECT_EQ(refusal(dir.path()), "");
  EXPECT_FALSE(FolderLock(dir / "none").is_held());
}

TEST(FolderLock, without_locks_a_lease_keeps_others_out_and_goes_at_the_end) {
  const NoLocks none;
  const TempDir dir;
  {
    const FolderLock lock(dir.path());
    const std::string lease = lease_in(dir), message = refusal(dir.path());
    EXPECT_NE(lock.warning().find("has no locks (No locks available)"), std::string::npos) << lock.warning();
    EXPECT_NE(message.find(concat("process ", ::getpid(), " on '")), std::string::npos) << message;
    EXPECT_NE(message.find("wait for its end, or choose another folder"), std::string::npos);
    const Ended other = in_child([&] { const FolderLock there(dir.path()); }, 60);
    EXPECT_EQ(other.status, int(Exit::cannot_create)) << other.describe();
    EXPECT_EQ(lease_in(dir), lease) << "those who were refused left nothing";
    FolderLock moved;
    moved = FolderLock(std::filesystem::path(dir.path()).parent_path() / "none");
    EXPECT_FALSE(moved.is_held());
  }
  EXPECT_EQ(dir.files(), 0u);
  EXPECT_EQ(refusal(dir.path()), "");
}

TEST(FolderLock, several_folders_of_one_process) {
  const NoLocks none;
  const TempDir a, b;
  FolderLock first(a.path());
  const FolderLock second(b.path());
  EXPECT_FALSE(first.is_other(a.path()));
  EXPECT_TRUE(first.is_other(b.path()));
  EXPECT_FALSE(first.is_other(a / "none"));
  const FolderLock moved(std::move(first));
  EXPECT_NE(refusal(a.path()), "");
  EXPECT_NE(refusal(b.path()), "");
}

TEST(FolderLock, the_lease_of_an_ended_process_of_this_machine_does_not_count) {
  const NoLocks none;
  const TempDir dir;
  killed_holder(dir.path());
  EXPECT_LT(age_of(lease_in(dir)), 60);
  EXPECT_EQ(refusal(dir.path()), "");
  EXPECT_EQ(dir.files(), 0u) << "it is removed";
}

TEST(FolderLock, a_process_number_that_was_given_anew_is_no_holder) {
  const NoLocks none;
  const TempDir dir;
  const std::string theirs = std::to_string(killed_holder(dir.path())), lease = lease_in(dir);
  std::string mine = lease;
  mine.replace(mine.find("-" + theirs + "-"), theirs.size() + 2, concat("-", ::getpid(), "-"));
  const size_t start = mine.find(concat("-", ::getpid(), "-")) + concat("-", ::getpid(), "-").size();
  mine.insert(start, "1");  // another start than this process had
  std::filesystem::rename(lease, mine);
  EXPECT_EQ(refusal(dir.path()), "");
}

TEST(FolderLock, the_lease_of_another_machine_counts_until_it_is_old) {
  const NoLocks none;
  const TempDir dir;
  for (const char* name :
       {".mmfree-lease-0123456789abcdef-1-77-0-far-away", ".mmfree-lease--1--0-", ".mmfree-lease-"}) {
    const std::string lease = spit(dir / name, "");
    set_age(lease, 50);
    EXPECT_NE(refusal(dir.path()), "") << name;
    set_age(lease, -3600);
    EXPECT_NE(refusal(dir.path()), "") << name << ": the clock was set back";
    set_age(lease, 70);
    EXPECT_EQ(refusal(dir.path()), "") << name;
    EXPECT_EQ(dir.files(), 0u) << name;
  }
  spit(dir / ".mmfree-lease-0123456789abcdef-12-77-0-far-\x1b[2J", "");
  EXPECT_NE(refusal(dir.path()).find("process 12 on 'far-\\x1b[2J'"), std::string::npos) << refusal(dir.path());
}

TEST(FolderLock, a_lease_is_renewed) {
  const NoLocks none;
  const TempDir dir;
  const FolderLock lock(dir.path(), kOften);
  const std::string lease = lease_in(dir);
  set_age(lease, 3600);
  wait_until([&] { return age_of(lease) < 60; });
  lock.check();
}

TEST(FolderLock, a_lease_that_someone_removed_is_made_again_unless_another_holder_came) {
  const NoLocks none;
  const TempDir dir;
  const FolderLock lock(dir.path(), kOften);
  std::filesystem::remove(lease_in(dir));
  wait_until([&] { return dir.files() == 1; });
  lock.check();
  EXPECT_NE(refusal(dir.path()), "");

  const std::string other = spit(dir / ".mmfree-lease-0123456789abcdef-1-77-0-far", "");
  for (const std::string& name : names_in(dir.path()))
    if (dir / name != other) std::filesystem::remove(dir / name);
  std::string lost;
  wait_until([&] {
    try {
      lock.check();
    } catch (const CreateError& e) {
      lost = e.what();
    }
    return !lost.empty();
  });
  EXPECT_NE(lost.find("another process took this folder"), std::string::npos) << lost;
  EXPECT_EQ(lease_in(dir), other);
}

TEST(FolderLock, of_many_that_take_over_at_once_at_most_one_has_the_folder) {
  const NoLocks none;
  for (int round = 0; round < 20; ++round) {
    const TempDir dir;
    set_age(spit(dir / ".mmfree-lease-0123456789abcdef-1-77-0-far", ""), 70);
    std::atomic<int> ready{0}, holders{0}, most{0};
    const auto take = [&] {
      for (++ready; ready < 3;) continue;
      try {
        const FolderLock lock(dir.path());
        const int now = ++holders;
        most = std::max(most.load(), now);
        std::this_thread::sleep_for(kOften);
        --holders;
      } catch (const CreateError&) {
        return;  // the others were in its way
      }
    };
    std::vector<std::thread> takers;
    for (int i = 0; i < 3; ++i) takers.emplace_back(take);
    for (std::thread& t : takers) t.join();
    EXPECT_LE(most, 1);
    EXPECT_EQ(dir.files(), 0u);
  }
}

TEST(FolderLock, where_no_lease_can_be_made_nothing_is_held) {
  const NoLocks none;
  const std::string message = refusal("/proc/self");
  EXPECT_NE(message.find("/proc/self/.mmfree-lease-"), std::string::npos) << message;
  EXPECT_NE(message.find("cannot create"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

TEST(FolderLock, a_removed_folder_gets_no_lease_of_its_old_holder) {
  const NoLocks none;
  const TempDir dir;
  std::filesystem::create_directory(dir / "run");
  const FolderLock lock(dir / "run", kOften);
  std::filesystem::remove_all(dir / "run");
  std::filesystem::create_directory(dir / "run");
  std::this_thread::sleep_for(10 * kOften);  // renewals
  EXPECT_TRUE(lock.is_other(dir / "run"));
  EXPECT_EQ(refusal(dir / "run"), "");
  lock.check();
}

TEST(FolderLock, without_locks_temporary_files_of_others_stay) {
  const NoLocks none;
  const TempDir dir;
  spit(concat(dir / "x", kTemporaryMark, "1-0"), "of a process that may be alive");
  DurableFile under_way(dir / "x");
  under_way.write("first", 5);
  write_file(dir / "x", "second");
  EXPECT_EQ(slurp(dir / "x"), "second");
  under_way.commit();
  EXPECT_EQ(slurp(dir / "x"), "first");
  EXPECT_EQ(slurp(concat(dir / "x", kTemporaryMark, "1-0")), "of a process that may be alive");
}

}  // namespace
}  // namespace mmfree
