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
    write_file(path_, kept);
  }
  file_ = Fd(::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666));
  MMFREE_CHECK(CreateError, file_.is_open(), path_, ": cannot create the metrics file: ", std::strerror(errno));
}

void MetricsWriter::write(const Metrics& metrics) {
  MMFREE_CHECK(Error, std::any_of(metrics.begin(), metrics.end(), [](const auto& m) { return m.first == "step"; }),
               path_, ": a line of metrics without its step");
  MMFREE_CHECK(IoError, file_.write(metrics_line(metrics) + "\n"), path_,
               ": cannot write metrics: ", std::strerror(errno));
}

void MetricsWriter::sync() {
  // Pipes and devices (/dev/null) cannot be synced, which is no error.
  MMFREE_CHECK(IoError, ::fdatasync(file_.get()) == 0 || errno == EINVAL, path_,
               ": cannot bring metrics to the disk: ", std::strerror(errno));
}

}  // namespace mmfree
