#include <omp.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>

#include "core/system/hash.h"
#include "tests/support/hostile_originals.h"
#include "tests/support/mutation.h"
#include "tests/support/paths.h"

// The readers under a fuzzer. Linked with libFuzzer (-DMMFREE_FUZZ=ON with clang), the environment variable
// MMFREE_FUZZ_READER names the reader. Built like any other program:
//   fuzz COUNT SEED [READER [FILES...]]
// reads the files, or else all of tests/faults/seeds/READER, and COUNT mutations of each. An input of a reader with
// hashes is what follows the part they are in; it gets hashes that fit. Any input must be refused in one clear line or
// keep the reader's promises; whatever else happens aborts. Seeds called good* are good, all others must be refused.

namespace mmfree {
namespace {

/// A folder in which files of one reader can stand.
struct Place {
  explicit Place(const HostileReader& r) : reader(r), path(dir / "f/" + r.file) {
    std::filesystem::create_directory(dir / "f");
    if (r.name.starts_with("hf_")) hostile_original(r, dir / "f", 0);  // for the other files of the folder
  }
  const HostileReader& reader;
  TempDir dir;
  std::string path;
};

void prepare() {
  setenv("TMPDIR", "/dev/shm", 0);
  omp_set_num_threads(1);
}

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "fuzz: %s\n", what.c_str());
  std::abort();
}

/// True if the input was refused.
bool read_one(const Place& place, const std::string& input) {
  spit(place.path, place.reader.repair ? place.reader.repair(input) : input);
  try {
    place.reader.load(place.path);
    return false;
  } catch (const Error& e) {
    const std::string fault = fault_in_refusal(e, place.dir.path());
    if (!fault.empty()) fail(fault);
    return true;
  } catch (const std::exception& e) {
    fail(concat("not a refusal: ", e.what()));
  }
}

}  // namespace
}  // namespace mmfree

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mmfree;
  const char* const reader = std::getenv("MMFREE_FUZZ_READER");
  static const Place place((prepare(), hostile_reader(reader ? reader : "")));
  read_one(place, std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}

#ifndef MMFREE_FUZZ
namespace mmfree {
namespace {

/// What the process that reads tells the one that watches; it survives a crash.
struct Progress {
  int64_t refused, read;
  char input[1000];
};

using Files = std::map<std::string, std::string>;  // path -> bytes

std::string seed_folder(const HostileReader& reader) { return source_dir() + "/tests/faults/seeds/" + reader.name; }

Files seeds_of(const HostileReader& reader) {
  Files seeds;
  for (const auto& entry : std::filesystem::directory_iterator(seed_folder(reader)))
    seeds[entry.path().string()] = slurp(entry.path().string());
  MMFREE_CHECK(MissingError, !seeds.empty(), seed_folder(reader), ": holds no seeds");
  return seeds;
}

/// Of the files that are seeds, those called good* must be read and all others refused.
void replay(const Place& place, const Files& inputs, const Files& seeds, int64_t count, uint64_t seed,
            Progress* progress) {
  for (const auto& [file, bytes] : inputs) {
    const std::string name = std::filesystem::path(file).filename().string();
    Mutator m(hash64(concat(seed, ' ', name)));
    const std::string& other = std::next(seeds.begin(), int64_t(m.below(seeds.size())))->second;
    for (int64_t i = 0; i <= count; ++i) {
      std::snprintf(progress->input, sizeof progress->input, "%s, mutation %lld\n  again: fuzz %lld %llu %s %s",
                    file.c_str(), static_cast<long long>(i), static_cast<long long>(count),
                    static_cast<unsigned long long>(seed), place.reader.name.c_str(), file.c_str());
      alarm(60);
      const bool refused = read_one(place, i ? m.mutate(bytes, other) : bytes);
      if (i == 0 && seeds.count(file) && refused == name.starts_with("good"))
        fail(refused ? "a good seed was refused" : "a hostile seed was read");
      ++(refused ? progress->refused : progress->read);
    }
  }
}

int run(int argc, char** argv) {
  MMFREE_CHECK(UsageError, argc >= 3, "usage: fuzz COUNT SEED [READER [FILES...]]");
  prepare();
  auto* progress = static_cast<Progress*>(
      mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  int64_t all = 0;
  int wrong = 0;
  for (const HostileReader& reader : hostile_readers()) {
    if (argc > 3 && reader.name != hostile_reader(argv[3]).name) continue;
    const Files seeds = seeds_of(reader);
    Files inputs;
    for (int i = 4; i < argc; ++i) inputs[argv[i]] = slurp(argv[i]);
    if (inputs.empty()) inputs = seeds;
    const Place place(reader);
    *progress = {};
    std::fflush(stdout);
    const pid_t process = fork();
    if (process == 0) {
      replay(place, inputs, seeds, std::stoll(argv[1]), std::stoull(argv[2]), progress);
      _exit(0);  // the exit handlers are the parent's
    }
    int status = 0;
    waitpid(process, &status, 0);
    if (status != 0) std::printf("FAILED with status %d: %s\n", status, progress->input), ++wrong;
    std::printf("%-12s %4zu files: %lld inputs refused, %lld read\n", reader.name.c_str(), inputs.size(),
                static_cast<long long>(progress->refused), static_cast<long long>(progress->read));
    all += progress->refused + progress->read;
  }
  std::printf("%lld inputs, %d readers failed\n", static_cast<long long>(all), wrong);
  return wrong ? 1 : 0;
}

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  try {
    return mmfree::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "fuzz: %s\n", e.what());
    return 2;
  }
}
#endif
