#include "train/run/metrics.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "train/run/digest.h"

namespace mmfree {
namespace {

constexpr const char* kEvaluated = "val/loss";

template <class T>
std::string shortest(T value) {
  char buffer[32];
  return {buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr};
}

std::string json_number(int64_t value) { return shortest(value); }
std::string json_number(double value) { return std::isfinite(value) ? shortest(value) : "null"; }

std::string json_number(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

struct Lines {
  std::string kept;
  int64_t damaged = 0;     ///< lines that are no metrics
  int64_t evaluated = -1;  ///< the largest step of a kept evaluation
  int64_t last = -1;       ///< the largest step of a kept line
  double loss = 0;         ///< its loss, NaN for none
};

/// The lines of `path` up to `step`.
Lines lines_up_to(const std::string& path, int64_t step) {
  const std::string text = read_file(path, std::numeric_limits<int64_t>::max());
  Lines lines;
  for (size_t at = 0, end; at < text.size(); at = end + 1) {
    end = std::min(text.find('\n', at), text.size());
    const bool torn = end == text.size();
    const std::string line = text.substr(at, end - at);
    const nlohmann::json row = nlohmann::json::parse(line, nullptr, false);
    const auto found = row.is_object() ? row.find("step") : row.end();
    if (torn || found == row.end() || !found->is_number_integer()) {
      ++lines.damaged;
    } else if (const auto of_line = found->get<int64_t>(); of_line <= step) {
      lines.kept += line + "\n";
      lines.last = std::max(lines.last, of_line);
      if (!row.contains(kEvaluated) || of_line < lines.evaluated) continue;
      lines.evaluated = of_line;
      lines.loss = row[kEvaluated].is_number() ? row[kEvaluated].get<double>() : std::nan("");
    }
  }
  return lines;
}

}  // namespace

std::string metrics_line(const Metrics& metrics) {
  std::string line;
  for (const auto& [key, value] : metrics) {
    line += line.empty() ? "{\"" : ", \"";
    line += key + "\": " + std::visit([](const auto& number) { return json_number(number); }, value);
  }
  return line + "}";
}

std::map<int64_t, StepDigests> read_digests(const std::string& path) {
  const std::string text = read_file(path, std::numeric_limits<int64_t>::max());
  std::map<int64_t, StepDigests> digests;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const nlohmann::json row = nlohmann::json::parse(line, nullptr, false);
    if (!row.is_object() || !row.contains("step") || !row["step"].is_number_integer()) continue;
    StepDigests& of_step = digests[row["step"].get<int64_t>()];
    const auto number = [&](const char* key) {
      return row.contains(key) && row[key].is_number() ? row[key].get<double>() : std::nan("");
    };
    if (row.contains("train/loss")) {
      of_step.loss = number("train/loss"), of_step.grad_norm = number("train/grad_norm");
      if (std::isfinite(of_step.loss) && std::isfinite(of_step.grad_norm))
        of_step.step = step_digest(of_step.loss, of_step.grad_norm);
    }
    const auto digest = [&](const char* key, std::string& to) {
      if (row.contains(key) && row[key].is_string()) to = row[key].get<std::string>();
    };
    digest("train/digest", of_step.step);
    digest("checkpoint/weights", of_step.weights);
  }
  return digests;
}

MetricsWriter::MetricsWriter(std::string path, int64_t resume_step, size_t most_kept)
    : path_(std::move(path)), most_kept_(most_kept) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::file_type type = fs::status(path_, ignored).type();
  if (type == fs::file_type::regular || type == fs::file_type::not_found) {
    Lines lines;
    if (resume_step >= 0 && type == fs::file_type::regular) lines = lines_up_to(path_, resume_step);
    damaged_lines_ = lines.damaged;
    evaluated_ = lines.evaluated;
    last_ = lines.last;
    evaluated_loss_ = lines.loss;
    write_file(path_, lines.kept);  // so that its name is durable too
    synced_ = lines.kept.size();
  }
  open();
}

void MetricsWriter::open() {
  // O_NONBLOCK: a pipe would wait for its reader, here and in each write.
  const int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  file_ = Fd(restarted([&] { return ::open(path_.c_str(), flags, 0666); }));
  const int error = errno;
  struct stat info = {};
  const bool device = file_.is_open() && ::fstat(file_.get(), &info) == 0 && S_ISCHR(info.st_mode);
  const bool other = file_.is_open() ? !S_ISREG(info.st_mode) && !device : error == ENXIO;
  if (other) file_.close();
  MMFREE_CHECK(CreateError, !other, path_,
               ": metrics go into a regular file, and this is none; remove it, or choose another train.run_dir");
  MMFREE_CHECK(CreateError, file_.is_open(), path_, ": cannot create the metrics file: ", error_text(error));
}

void MetricsWriter::write(const Metrics& metrics) {
  const auto find = [&](const char* key) {
    return std::find_if(metrics.begin(), metrics.end(), [&](const auto& m) { return m.first == key; });
  };
  const auto step = find("step");
  MMFREE_CHECK(Error, step != metrics.end(), path_, ": a line of metrics without its step");
  const auto number = std::get<int64_t>(step->second);
  if (find(kEvaluated) != metrics.end()) evaluated_ = std::max(evaluated_, number);
  bound(unsynced_, first_unsynced_);  // it is too long only if a sync failed
  if (unwritten_.empty()) first_unwritten_ = number;
  if (unwritten_.empty() && unsynced_.empty()) first_unsynced_ = number;
  last_ = number;
  unwritten_ += metrics_line(metrics) + "\n";
  bound(unwritten_, first_unwritten_);
  flush();
  if (unsynced_.size() > most_kept_) sync();
}

/// Drops the older half of `lines` if they are too many, but for the first, which may be half written.
void MetricsWriter::bound(std::string& lines, int64_t first_step) {
  if (lines.size() <= most_kept_) return;
  const size_t from = lines.find('\n') + 1, to = lines.find('\n', lines.size() / 2) + 1;
  if (from >= to) return;
  lines.erase(from, to - from);
  dropped_ = {dropped_ ? dropped_->first : first_step, last_};
}

std::optional<MetricsWriter::Steps> MetricsWriter::missing() const {
  if (unwritten_.empty() && !sync_failed_) return dropped_;
  return Steps{dropped_ ? dropped_->first : sync_failed_ ? first_unsynced_ : first_unwritten_, last_};
}

void MetricsWriter::flush() {
  if (!file_.is_open()) open();
  while (!unwritten_.empty()) {
    const ssize_t n = restarted([&] { return ::write(file_.get(), unwritten_.data(), unwritten_.size()); });
    MMFREE_CHECK(IoError, n > 0, path_, ": cannot write metrics: ", error_text(errno));
    unsynced_.append(unwritten_, 0, size_t(n));
    unwritten_.erase(0, size_t(n));
  }
}

void MetricsWriter::sync() {
  flush();
  struct stat info = {};
  const bool removed = ::fstat(file_.get(), &info) == 0 && S_ISREG(info.st_mode) && info.st_nlink == 0;
  if (removed || sync_failed_) {
    sync_failed_ = true;  // until the new file is there
    // A removed file can be read while it is open. After a failed sync the system may have dropped pages that it could
    // not write: only the part that was durable before is trusted.
    const std::string from = removed ? concat("/proc/self/fd/", file_.get()) : path_;
    std::string lines = read_file(from, std::numeric_limits<int64_t>::max());
    lines.resize(std::min(lines.size(), synced_));
    write_file(path_, lines + unsynced_);
    file_.close();
  } else {
    // Pipes and devices (/dev/null) cannot be synced, which is no error.
    sync_failed_ = restarted([&] { return ::fdatasync(file_.get()); }) != 0 && errno != EINVAL;
    MMFREE_CHECK(IoError, !sync_failed_, path_, ": cannot sync metrics to the disk: ", error_text(errno));
  }
  sync_failed_ = false;
  synced_ += unsynced_.size();
  unsynced_.clear();
}

}  // namespace mmfree
