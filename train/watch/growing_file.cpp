#include "train/watch/growing_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace mmfree {

/// Opens the file unless it is open already.
void GrowingFile::reopen(const std::function<void()>& anew) {
  struct stat now = {};
  if (::stat(path_.c_str(), &now) != 0) {
    MMFREE_CHECK(IoError, errno == ENOENT || errno == ENOTDIR, path_, ": cannot be read: ", error_text(errno));
    return;
  }
  const bool same = file_.is_open() && now.st_dev == device_ && now.st_ino == number_;
  if (same && now.st_size >= offset_) return;
  if (!same) file_ = open_input(path_);
  if (std::exchange(offset_, 0) > 0) anew();
  device_ = now.st_dev, number_ = now.st_ino;
  unfinished_.clear();
  passing_over_ = false;
  passed_over_ = 0;
}

void GrowingFile::read(const std::function<void(std::string_view)>& line, const std::function<void()>& anew) {
  reopen(anew);
  if (!file_.is_open()) return;
  std::string block(size_t(1) << 20, '\0');
  for (;;) {
    const ssize_t n = retried([&] { return ::pread(file_.get(), block.data(), block.size(), off_t(offset_)); });
    MMFREE_CHECK(IoError, n >= 0, path_, ": cannot be read: ", error_text(errno));
    if (n == 0) return;
    offset_ += n;
    std::string_view rest(block.data(), size_t(n));
    while (!rest.empty()) {
      const size_t end = rest.find('\n');
      const std::string_view part = rest.substr(0, end);
      if (unfinished_.size() + part.size() > kMostLine) passing_over_ = true, unfinished_.clear();
      if (end == rest.npos) {
        if (!passing_over_) unfinished_ += part;
        break;
      }
      if (passing_over_)
        ++passed_over_;
      else
        line(unfinished_.empty() ? part : std::string_view(unfinished_ += part));
      passing_over_ = false;
      unfinished_.clear();
      rest.remove_prefix(end + 1);
    }
  }
}

}  // namespace mmfree
