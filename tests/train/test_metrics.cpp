#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <utility>

#include "core/error.h"
#include "train/run/metrics.h"
#include "train/run/progress.h"

namespace {
int error_of_next_sync = 0;
off_t durable_bytes = 0;

off_t bytes_of(int fd) {
  struct stat info {};
  fstat(fd, &info);
  return info.st_size;
}
}  // namespace

/// In place of libc's, to fail, and then to lose what had to be brought to the device.
extern "C" int fdatasync(int fd) {
  const int error = std::exchange(error_of_next_sync, 0);
  if (error == EIO) {
    std::fstream file("/proc/self/fd/" + std::to_string(fd), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(durable_bytes) << std::string(size_t(bytes_of(fd) - durable_bytes), '\0');
  }
  if (error != 0) return errno = error, -1;
  durable_bytes = bytes_of(fd);
  return int(syscall(SYS_fdatasync, fd));
}

namespace mmfree {
namespace {

class MetricsFile : public testing::Test {
 protected:
  MetricsFile() : path(testing::TempDir() + "mmfree_metrics_" + std::to_string(::getpid()) + ".jsonl") {
    std::filesystem::remove(path);
  }
  ~MetricsFile() override { std::filesystem::remove(path); }

  std::string content() const {
    std::ifstream in(path, std::ios::binary);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }
  void put(const std::string& text) const { std::ofstream(path, std::ios::binary) << text; }

  static Metrics row(int64_t step) {
    return {{"train/loss", 1.0 / static_cast<double>(step + 3)}, {"step", step}, {"tokens", step * 2048}};
  }

  std::string path;
};

TEST_F(MetricsFile, HoldsOneObjectPerLineInTheGivenOrder) {
  const double infinity = std::numeric_limits<double>::infinity();
  MetricsWriter writer(path);
  writer.write({{"train/loss", 0.1}, {"train/grad_norm", infinity}, {"step", 7}, {"time", 1e22}});
  EXPECT_EQ(content(), "{\"train/loss\": 0.1, \"train/grad_norm\": null, \"step\": 7, \"time\": 1e+22}\n");
  writer.write({{"val/loss", -infinity}, {"val/ppl", std::nan("")}, {"step", INT64_MIN}});
  writer.sync();
  EXPECT_TRUE(content().ends_with("\n{\"val/loss\": null, \"val/ppl\": null, \"step\": -9223372036854775808}\n"));
  EXPECT_THROW(writer.write({{"train/loss", 0.1}}), Error);
}

TEST_F(MetricsFile, DoublesReadBackExactly) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 10000; ++i) {
    const double value = std::bit_cast<double>(random());
    if (!std::isfinite(value)) continue;
    EXPECT_EQ(nlohmann::json::parse(metrics_line({{"x", value}}))["x"].get<double>(), value);
  }
}

TEST_F(MetricsFile, AResumedRunsFileEqualsAnUninterruptedOnes) {
  {
    MetricsWriter writer(path);
    for (int64_t step = 1; step <= 20; ++step) writer.write(row(step));
  }
  const std::string whole = content();
  for (const int64_t checkpoint : {0, 1, 10, 13, 20})
    for (const size_t cut : {size_t{0}, size_t{1}, size_t{17}}) {
      put(whole.substr(0, whole.size() - cut));
      if (checkpoint == 20 && cut > 0) continue;
      MetricsWriter writer(path, checkpoint);
      EXPECT_EQ(writer.damaged_lines(), cut > 0);
      for (int64_t step = checkpoint + 1; step <= 20; ++step) writer.write(row(step));
      EXPECT_EQ(content(), whole) << "checkpoint " << checkpoint << " cut " << cut;
    }
}

TEST_F(MetricsFile, DropsDamagedLinesAndStartsAnew) {
  const std::string deep(100000, '[');
  put("{\"step\": 1}\nnot json\n{\"no_step\": 1}\n{\"step\": \"2\"}\n\n" + deep + "\n[1]\n{\"step\": 3}\n" +
      std::string(50, '\0') + "\n{\"step\": 2}\n{\"step\": 4}");
  {
    MetricsWriter writer(path, 3);
    EXPECT_EQ(writer.damaged_lines(), 8);
    EXPECT_EQ(content(), "{\"step\": 1}\n{\"step\": 3}\n{\"step\": 2}\n");
  }
  MetricsWriter fresh(path);
  EXPECT_EQ(content(), "");
}

TEST_F(MetricsFile, KnowsTheLastEvaluation) {
  {
    MetricsWriter writer(path);
    EXPECT_EQ(writer.evaluated(), -1);
    writer.write({{"val/loss", 3.0}, {"step", 4}});
    writer.write(row(5));
    EXPECT_EQ(writer.evaluated(), 4);
    writer.write({{"step", 8}, {"val/loss", 2.0}});
    EXPECT_EQ(writer.evaluated(), 8);
  }
  EXPECT_EQ(MetricsWriter(path, 8).evaluated(), 8);
  EXPECT_EQ(MetricsWriter(path, 7).evaluated(), 4);
  EXPECT_EQ(MetricsWriter(path, 3).evaluated(), -1);
}

TEST_F(MetricsFile, KeepsWhatAFullDiskRefusedAndWritesItLater) {
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  MetricsWriter writer(path);
  writer.write(row(1));
  const std::string first = content();
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit small{first.size() + 7, limit.rlim_max};  // the next line gets seven bytes far
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_THROW(writer.write(row(2)), IoError);
  EXPECT_THROW(writer.write(row(3)), IoError);
  EXPECT_THROW(writer.sync(), IoError);
  setrlimit(RLIMIT_FSIZE, &limit);
  EXPECT_EQ(content().size(), first.size() + 7);
  writer.sync();
  writer.write(row(4));
  std::signal(SIGXFSZ, before);
  const std::string got = content();
  std::filesystem::remove(path);
  MetricsWriter whole(path);
  for (int64_t step = 1; step <= 4; ++step) whole.write(row(step));
  EXPECT_EQ(got, content());
}

TEST_F(MetricsFile, KeepsABoundedNumberOfLinesForLater) {
  const size_t line = metrics_line(row(1)).size() + 1;
  MetricsWriter full("/dev/full", -1, 10 * line);
  for (int64_t step = 1; step <= 8; ++step) EXPECT_THROW(full.write(row(step)), IoError);
  EXPECT_FALSE(full.dropped());
  EXPECT_EQ(full.missing(), MetricsWriter::Steps(1, 8));
  for (int64_t step = 9; step <= 100; ++step) EXPECT_THROW(full.write(row(step)), IoError);
  EXPECT_TRUE(full.dropped());
  EXPECT_EQ(full.missing(), MetricsWriter::Steps(1, 100));

  // Where the disk takes them again, the first lines and the last are there, each whole.
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  MetricsWriter writer(path, -1, 10 * line);
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit small{line + 7, limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  writer.write(row(1));
  for (int64_t step = 2; step <= 30; ++step) EXPECT_THROW(writer.write(row(step)), IoError);
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, before);
  writer.sync();
  ASSERT_TRUE(writer.missing());
  EXPECT_EQ(writer.missing()->first, 2);
  EXPECT_GE(writer.missing()->second, 20);
  const std::string got = content();
  EXPECT_TRUE(got.starts_with(metrics_line(row(1)) + "\n" + metrics_line(row(2)) + "\n")) << got;
  EXPECT_TRUE(got.ends_with(metrics_line(row(29)) + "\n" + metrics_line(row(30)) + "\n")) << got;
  EXPECT_EQ(MetricsWriter(path, 30).damaged_lines(), 0);
}

TEST_F(MetricsFile, LinesThatAreNeverSyncedTakeNoMemoryEither) {
  const size_t line = metrics_line(row(1)).size() + 1;
  std::string all;
  {
    MetricsWriter writer(path, -1, 10 * line);
    for (int64_t step = 1; step <= 100; ++step) {
      writer.write(row(step));
      all += metrics_line(row(step)) + "\n";
    }
    EXPECT_FALSE(writer.missing());
    EXPECT_GT(durable_bytes, off_t(80 * line));
  }
  EXPECT_EQ(content(), all);
}

TEST_F(MetricsFile, DevicesNeedNoSync) {
  MetricsWriter writer("/dev/null");
  writer.write(row(1));
  writer.sync();
}

TEST_F(MetricsFile, SaysWhenItCannotWrite) {
  EXPECT_THROW(MetricsWriter("no/such/directory/m.jsonl"), CreateError);
  MetricsWriter full("/dev/full");
  try {
    full.write(row(1));
    FAIL() << "a full disk went unnoticed";
  } catch (const IoError& error) {
    EXPECT_STREQ(error.what(), "/dev/full: cannot write metrics: No space left on device");
  }
}

TEST_F(MetricsFile, AfterAFailedSyncTheFileIsWrittenAnew) {
  const auto number = [&] {
    struct stat info {};
    EXPECT_EQ(stat(path.c_str(), &info), 0);
    return info.st_ino;
  };
  MetricsWriter writer(path);
  const auto lines = [](int64_t last) {
    std::string all;
    for (int64_t step = 1; step <= last; ++step) all += metrics_line(row(step)) + "\n";
    return all;
  };
  writer.write(row(1));
  const auto first = number();
  error_of_next_sync = EINTR;
  writer.sync();
  EXPECT_EQ(number(), first) << "an interrupted sync has not failed";
  writer.write(row(2));
  error_of_next_sync = EIO;
  EXPECT_THROW(writer.sync(), IoError);
  EXPECT_EQ(number(), first);
  EXPECT_NE(content(), lines(2)) << "what was not durable is lost";
  EXPECT_EQ(writer.missing(), MetricsWriter::Steps(2, 2));
  writer.write(row(3));
  writer.sync();
  EXPECT_NE(number(), first) << "what the disk holds of the old file is not known";
  EXPECT_FALSE(writer.missing());
  EXPECT_EQ(content(), lines(3));
  // Where the new file cannot be opened, it is tried again.
  std::filesystem::rename(path, path + ".away");
  std::filesystem::create_directory(path);
  EXPECT_THROW(writer.write(row(4)), CreateError);
  EXPECT_THROW(writer.sync(), CreateError);
  std::filesystem::remove(path);
  std::filesystem::rename(path + ".away", path);
  writer.write(row(5));
  writer.sync();
  EXPECT_EQ(content(), lines(5));
}

TEST_F(MetricsFile, AFileThatIsRemovedComesBack) {
  MetricsWriter writer(path, 7);
  writer.write(row(8));
  writer.sync();
  std::filesystem::remove(path);
  writer.write(row(9));
  EXPECT_FALSE(std::filesystem::exists(path));
  std::filesystem::create_directory(path);
  EXPECT_THROW(writer.sync(), CreateError);
  EXPECT_EQ(writer.missing(), MetricsWriter::Steps(9, 9));
  std::filesystem::remove(path);
  writer.sync();
  writer.write(row(10));
  EXPECT_EQ(content(), metrics_line(row(8)) + "\n" + metrics_line(row(9)) + "\n" + metrics_line(row(10)) + "\n");
}

TEST_F(MetricsFile, NeedsNoDiskToSync) {
  MetricsWriter nowhere("/dev/null");
  nowhere.write(row(1));
  nowhere.sync();
}

TEST(Progress, FormatsNumbersForPeople) {
  const std::pair<double, const char*> counts[] = {
      {0, "0"},        {999, "999"},        {999.6, "1.00k"},  {1234567, "1.23M"},
      {9996, "10.0k"}, {374108160, "374M"}, {999600, "1.00M"}, {2702357504, "2.70G"},
      {5e15, "5000T"}, {-1500, "-1.50k"},   {NAN, "-"}};
  for (const auto& [value, text] : counts) EXPECT_EQ(format_count(value), text);
  const std::pair<double, const char*> durations[] = {
      {0, "0.0s"},       {4.21, "4.2s"},  {9.96, "10s"},
      {59.4, "59s"},     {59.6, "1m00s"}, {125, "2m05s"},
      {3599.7, "1h00m"}, {3725, "1h02m"}, {86400 * 3 + 4 * 3600, "3d04h"},
      {-1, "-"},         {INFINITY, "-"}};
  for (const auto& [value, text] : durations) EXPECT_EQ(format_duration(value), text);
  const std::pair<uint64_t, const char*> sizes[] = {{0, "0 B"},
                                                    {1023, "1023 B"},
                                                    {1536, "1.50 KiB"},
                                                    {2ull << 30, "2.00 GiB"},
                                                    {1048575, "1.00 MiB"},
                                                    {UINT64_MAX, "16.0 EiB"}};
  for (const auto& [value, text] : sizes) EXPECT_EQ(format_bytes(value), text);
}

TEST(Progress, FormatsSharesWithThreeDigits) {
  const std::pair<double, const char*> shares[] = {
      {0, "0%"},          {2.67e-7, "< 0.01%"},  {0.000099, "< 0.01%"}, {0.0001, "0.01%"}, {0.000125, "0.0125%"},
      {0.31249, "31.2%"}, {0.66666666, "66.7%"}, {0.9999, "100%"},      {1, "100%"},       {12.345, "1234%"},
      {NAN, "-"}};
  for (const auto& [value, text] : shares) EXPECT_EQ(format_share(value), text);
}

TEST(Progress, ShowsWhatAGpuDoes) {
  ProgressState state{.step = 1,
                      .steps = 3,
                      .loss = 10,
                      .learning_rate = 1e-3,
                      .grad_norm = 2,
                      .tokens_per_second = 250000,
                      .elapsed = 5,
                      .eta = 10,
                      .gpu = ProgressState::Gpu{0.456, 0.02, uint64_t(3) << 30}};
  const std::string begin = "step 1/3  33%  loss 10.0000  lr 1.00e-03  norm 2.00  250k tok/s  ", end = "5.0s  eta 10s";
  EXPECT_EQ(progress_line(state), begin + "mfu 46%  wait 2%  3.00 GiB  " + end);
  state.gpu->mfu = 0;  // the chip's rate is not known
  EXPECT_EQ(progress_line(state), begin + "wait 2%  3.00 GiB  " + end);
  state.gpu.reset();
  EXPECT_EQ(progress_line(state), begin + end);
}

TEST(Progress, PrintsOneLinePerCallWhereThereIsNoTerminal) {
  const ProgressState state{.step = 120,
                            .steps = 600,
                            .loss = 3.45678,
                            .learning_rate = 4e-3,
                            .grad_norm = 0.811,
                            .tokens_per_second = 12345,
                            .elapsed = 62,
                            .eta = 248,
                            .gpu = {}};
  const std::string line = "step 120/600  20%  loss 3.4568  lr 4.00e-03  norm 0.81  12.3k tok/s  1m02s  eta 4m08s";
  EXPECT_EQ(progress_line(state), line);
  for (const bool quiet : {false, true}) {
    console::Stream out(memfd_create("out", MFD_CLOEXEC), console::Stream::Stuck::waits);
    ASSERT_GE(out.fd(), 0);
    {
      Progress progress(quiet, out);
      progress.update(state);
      progress.message("saved");
      progress.update(state);
    }
    std::string got(1000, '\0');
    got.resize(size_t(pread(out.fd(), got.data(), got.size(), 0)));
    close(out.fd());
    EXPECT_EQ(got, quiet ? "saved\n" : line + "\nsaved\n" + line + "\n");
  }
}

}  // namespace
}  // namespace mmfree
