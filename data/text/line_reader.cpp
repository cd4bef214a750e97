#include "data/text/line_reader.h"

#include <cstring>

#include "core/error.h"

namespace mmfree {

bool LineReader::next(std::string* line) {
  line->clear();
  ++line_;
  for (bool any = false;; any = true) {
    if (at_ == block_.size()) {
      at_ = 0;
      if (!source_.next(&block_)) return any;
    }
    const char* begin = block_.data() + at_;
    const size_t left = block_.size() - at_;
    const auto* end = static_cast<const char*>(std::memchr(begin, '\n', left));
    const size_t n = end ? size_t(end - begin) : left;
    MMFREE_CHECK(DataError, int64_t(line->size() + n) <= kMaxLineBytes, source_.name(), ": a line is longer than ",
                 kMaxLineBytes, " bytes; split it");
    line->append(begin, n);
    at_ += n + (end ? 1 : 0);
    if (end) return true;
  }
}

}  // namespace mmfree
