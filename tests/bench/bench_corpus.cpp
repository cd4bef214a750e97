// bench_corpus FOLDER [SHARDS]: how long it takes to open the shards in a folder, how much memory that needs, and how
// long a window takes at a random place. In a folder that is not there it makes 1,000 sparse shards of 128 MiB instead;
// a second call measures them.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <functional>
#include <optional>

#include "core/error.h"
#include "core/rng.h"
#include "core/system/files.h"
#include "core/system/report.h"
#include "data/token_shards.h"

namespace mmfree {
namespace {

constexpr int64_t kTokens = int64_t(64) << 20, kBlock = 4096, kWindow = 2049, kReads = 2000;

/// A shard of zeros, as its size and those blocks that hold something else.
struct Sparse {
  std::vector<std::pair<int64_t, std::string>> blocks;
  int64_t size = 0;

  explicit Sparse(const std::string& path) {
    ShardInfo info{"train", 32000, "no tokenizer", 1, 2, true, std::vector<int32_t>(32000, 4)};
    ShardWriter writer(path, info, "zeros");
    const std::vector<int32_t> document(1 << 20);
    while (writer.tokens() < kTokens) writer.add(document);
    writer.commit();
    const std::string bytes = read_file(path, INT64_MAX);
    size = int64_t(bytes.size());
    for (int64_t at = 0; at < size; at += kBlock) {
      std::string block = bytes.substr(size_t(at), kBlock);
      if (block.find_first_not_of('\0') != block.npos) blocks.emplace_back(at, std::move(block));
    }
  }
  void write(const std::string& path) const {
    const Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    bool ok = file.is_open() && ::ftruncate(file.get(), size) == 0;
    for (const auto& [at, block] : blocks)
      ok = ok && ::pwrite(file.get(), block.data(), block.size(), at) == ssize_t(block.size());
    MMFREE_CHECK(IoError, ok, path, ": cannot be written");
  }
};

/// How long `work` takes and how much of a core, for machines that others use too.
std::string time_of(int64_t times, const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  const std::clock_t cpu = std::clock();
  work();
  const std::chrono::duration<double, std::milli> wall = std::chrono::steady_clock::now() - begin;
  return concat(wall.count() / double(times), " ms (",
                1e3 * double(std::clock() - cpu) / CLOCKS_PER_SEC / double(times), " of a core)");
}

void make(const std::string& folder, int shards) {
  std::filesystem::create_directory(folder);
  const auto name = [&](int i) { return concat(folder, "/train-", 10000 + i, ".h5"); };
  const Sparse sparse(name(0));
  for (int i = 0; i < shards; ++i) sparse.write(name(i));
}

/// The most memory that the process had up to now, in MiB.
long peak_memory() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss >> 10;
}

void measure(const std::string& folder) {
  std::optional<TokenShards> corpus;
  const std::string opening = time_of(1, [&] { corpus.emplace(std::vector{folder}); });
  const long opened = peak_memory();
  std::vector<int32_t> window(kWindow);
  const RandomStream random(1, 0, "window");
  const auto places = double(corpus->total_tokens() - kWindow);
  const std::string reading = time_of(kReads, [&] {
    for (int64_t i = 0; i < kReads; ++i)
      corpus->read(int64_t(random.uniform(uint64_t(i)) * places), kWindow, window.data());
  });
  std::printf("%.2f G tokens: opened in %s, at most %ld MiB; a window of %lld in %s, at most %ld MiB\n",
              double(corpus->total_tokens()) / 1e9, opening.c_str(), opened, (long long)kWindow, reading.c_str(),
              peak_memory());
}

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  return mmfree::run_reporting([&] {
    MMFREE_CHECK(UsageError, argc == 2 || argc == 3, "usage: bench_corpus FOLDER [SHARDS]");
    if (std::filesystem::exists(argv[1])) return mmfree::measure(argv[1]);
    mmfree::make(argv[1], argc == 3 ? std::atoi(argv[2]) : 1000);
  });
}
