#include "train/watch/tensorboard.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <type_traits>

#include "core/error.h"
#include "core/system/utf8.h"
#include "train/formats/event_file.h"
#include "train/watch/growing_file.h"
#include "train/watch/metrics_line.h"

namespace mmfree {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kPrefix = "events.out.tfevents.", kSuffix = ".mmfree";
constexpr int64_t kDay = 86400;
constexpr size_t kMostKeys = 65536, kMostKey = 1024, kBlock = size_t(1) << 20;

std::string name_of_second(int64_t second) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%010lld", static_cast<long long>(second));
  return concat(kPrefix, digits, kSuffix);
}

/// The second in such a name, -1 in any other.
int64_t second_of(const std::string& name) {
  if (name.size() != kPrefix.size() + 10 + kSuffix.size() || !name.starts_with(kPrefix)) return -1;
  const std::string digits = name.substr(kPrefix.size(), 10);
  if (!std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; })) return -1;
  const int64_t second = std::stoll(digits);
  return name == name_of_second(second) ? second : -1;
}

/// Whether a file begins as ours do, with any time: 12 bytes of length and its checksum, 9 of the time, the rest.
bool begins_as_ours(const std::string& path) try {
  constexpr size_t kHeader = 12, kTime = 9;
  const std::string expected = event_file_start(0);
  const size_t length = uint8_t(expected[0]);
  const Fd file = open_input(path);
  std::string start(kHeader + length, '\0');
  read_exactly(file, path, 0, start.data(), int64_t(start.size()));
  return start.compare(0, kHeader, expected, 0, kHeader) == 0 &&
         start.compare(kHeader + kTime, start.npos, expected, kHeader + kTime, length - kTime) == 0;
} catch (const Error&) {
  return false;
}

}  // namespace

std::vector<std::string> event_files(const std::string& folder) {
  std::vector<std::string> files;
  for (const std::string& name : names_in(folder))
    if (const std::string path = (fs::path(folder) / name).string(); second_of(name) >= 0 && begins_as_ours(path))
      files.push_back(path);
  return files;
}

TensorBoard::TensorBoard(std::string folder, std::string metrics)
    : folder_(std::move(folder)), metrics_(std::move(metrics)) {
  NeededDirectory(folder_).keep();
  const std::vector<std::string> older = event_files(folder_);
  create();
  replay();
  flush();
  std::error_code ignored;
  for (const std::string& path : older) fs::resize_file(path, 0, ignored);
  remove_emptied();
}

/// Readers hold on to the file that they read last: one that is gone stops TensorBoard's slower reader for good, one
/// that is empty sends it on to the next.
void TensorBoard::remove_emptied() const {
  const int64_t yesterday = int64_t(std::time(nullptr)) - kDay;
  for (const std::string& name : names_in(folder_)) {
    const fs::path path = fs::path(folder_) / name;
    std::error_code error;
    const bool empty =
        fs::is_regular_file(fs::symlink_status(path, error)) && fs::file_size(path, error) == 0 && !error;
    if (const int64_t second = second_of(name); second >= 0 && second < yesterday && empty) fs::remove(path, error);
  }
}

/// Makes a file whose name comes after all others: readers go on to the next name and never back.
void TensorBoard::create() {
  int64_t second = int64_t(std::time(nullptr));
  for (const std::string& name : names_in(folder_)) second = std::max(second, second_of(name) + 1);
  path_ = (fs::path(folder_) / name_of_second(second)).string();
  file_ =
      Fd(restarted([&] { return ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC, 0666); }));
  MMFREE_CHECK(CreateError, file_.is_open(), path_, ": cannot create the event file: ", error_text(errno));
  unwritten_ = event_file_start(double(second));
}

void TensorBoard::replay() {
  std::error_code ignored;
  if (!fs::is_regular_file(metrics_, ignored)) return;
  GrowingFile(metrics_).read([&](std::string_view text) {
    MetricsLine line(text);
    double time = 0, step = std::nan(""), value = 0;
    for (std::string_view key; line.next(key, value);) {
      if (key == "step")
        step = value;
      else if (key == "time")
        time = value;
      else
        add(key, value);
    }
    end_line(time, line.whole() ? step : std::nan(""));
  });
}

void TensorBoard::write(const Metrics& line) {
  double time = double(std::time(nullptr)), step = std::nan("");
  for (const auto& [key, number] : line) {
    const double value = std::visit(
        [](const auto& n) {
          if constexpr (std::is_arithmetic_v<std::decay_t<decltype(n)>>)
            return double(n);
          else
            return std::nan("");
        },
        number);
    if (key == "step")
      step = value;
    else if (key == "time")
      time = value;
    else
      add(key, value);
  }
  end_line(time, step);
  flush();
}

void TensorBoard::add(std::string_view key, double value) {
  const float narrow = float(value);
  if (!std::isfinite(narrow)) return;
  auto known = last_step_.find(key);
  if (known == last_step_.end()) {
    if (last_step_.size() >= kMostKeys || key.size() > kMostKey || find_invalid_utf8(key) != key.npos) return;
    known = last_step_.emplace(key, -1).first;
  }
  values_.emplace_back(known->first, narrow);
  steps_.push_back(&known->second);
}

/// Makes a record of what was added, less the points that are there already.
void TensorBoard::end_line(double time, double step) {
  constexpr double kMostStep = 9e15;  // a double holds whole numbers up to there
  const int64_t at = step >= 0 && step < kMostStep ? int64_t(step) : -1;
  size_t kept = 0;
  for (size_t i = 0; i < values_.size(); ++i) {
    if (at <= *steps_[i]) continue;
    *steps_[i] = at;
    values_[kept++] = values_[i];
  }
  values_.resize(kept);
  if (kept > 0) unwritten_ += scalars_record(std::isfinite(time) ? time : 0, at, values_);
  values_.clear();
  steps_.clear();
  if (unwritten_.size() > kBlock) flush();
}

void TensorBoard::flush() {
  const bool written = file_.write(unwritten_);
  const int error = errno;
  unwritten_.clear();
  MMFREE_CHECK(IoError, written, path_, ": cannot write events: ", error_text(error));
}

}  // namespace mmfree
