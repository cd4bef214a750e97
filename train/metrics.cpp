#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace mmfree {
namespace {

template <class T>
std::string shortest(T value) {
  char buffer[32];
  return {buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr};
}

std::string json_number(int64_t value) { return shortest(value); }
std::string json_number(double value) { return std::isfinite(value) ? shortest(value) : "null"; }

int open_file(const std::string& path, int flags) {
  const int file = ::open(path.c_str(), flags | O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  MMFREE_CHECK(CreateError, file >= 0, path, ": cannot create the metrics file: ", std::strerror(errno));
  return file;
}

void write_all(int file, const std::string& path, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(file, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    MMFREE_CHECK(IoError, written >= 0, path, ": cannot write metrics: ", std::strerror(errno));
    text.remove_prefix(static_cast<size_t>(written));
  }
}

/// Pipes and devices (/dev/null) cannot be synced, which is no error.
void sync_file(int file, const std::string& path) {
  MMFREE_CHECK(IoError, ::fdatasync(file) == 0 || errno == EINVAL, path,
               ": cannot bring metrics to the disk: ", std::strerror(errno));
}

/// The lines of `path` up to `step`, and the number of those that are no metrics.
std::pair<std::string, int64_t> lines_up_to(const std::string& path, int64_t step) {
  std::ifstream in(path, std::ios::binary);
  MMFREE_CHECK(IoError, in.is_open(), path, ": cannot read the metrics of the run to be resumed");
  std::string kept, line;
  int64_t damaged = 0;
  while (std::getline(in, line)) {
    const bool torn = in.eof();
    const nlohmann::json row = nlohmann::json::parse(line, nullptr, false);
    const auto at = row.is_object() ? row.find("step") : row.end();
    if (torn || at == row.end() || !at->is_number_integer()) {
      ++damaged;
    } else if (at->get<int64_t>() <= step) {
      kept += line + "\n";
    }
  }
  MMFREE_CHECK(IoError, !in.bad(), path, ": cannot read the metrics of the run to be resumed");
  return {kept, damaged};
}

void replace_file(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  const int file = open_file(temporary, O_TRUNC);
  try {
    write_all(file, temporary, text);
    sync_file(file, temporary);
  } catch (...) {
    ::close(file);
    ::unlink(temporary.c_str());
    throw;
  }
  MMFREE_CHECK(IoError, ::close(file) == 0, temporary, ": cannot write metrics: ", std::strerror(errno));
  MMFREE_CHECK(IoError, ::rename(temporary.c_str(), path.c_str()) == 0, path,
               ": cannot replace the metrics file: ", std::strerror(errno));
}

}  // namespace

std::string metrics_line(const Metrics& metrics) {
  std::string line;
  for (const auto& [key, value] : metrics) {
    line += line.empty() ? "{\"" : ", \"";
    line += key + "\": " + std::visit([](auto number) { return json_number(number); }, value);
  }
  return line + "}";
}

MetricsWriter::MetricsWriter(std::string path, int64_t resume_step) : path_(std::move(path)) {
  std::error_code ignored;
  if (std::filesystem::is_regular_file(path_, ignored)) {
    std::string kept;
    if (resume_step >= 0) std::tie(kept, damaged_lines_) = lines_up_to(path_, resume_step);
    replace_file(path_, kept);
  }
  file_ = open_file(path_, O_APPEND);
}

MetricsWriter::~MetricsWriter() { ::close(file_); }

void MetricsWriter::write(const Metrics& metrics) {
  MMFREE_CHECK(Error, std::any_of(metrics.begin(), metrics.end(), [](const auto& m) { return m.first == "step"; }),
               path_, ": a line of metrics without its step");
  write_all(file_, path_, metrics_line(metrics) + "\n");
}

void MetricsWriter::sync() { sync_file(file_, path_); }

}  // namespace mmfree
