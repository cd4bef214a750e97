#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>

#include "core/error.h"

namespace mmfree {

/// Up to four extents, outermost first. A default-constructed Shape has rank 0 and one element.
class Shape {
 public:
  static constexpr int kMaxRank = 4;
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  /// The extents in a range. @throws ShapeError if there are more than four or one is negative
  explicit Shape(std::span<const int64_t> dims) {
    MMFREE_CHECK(ShapeError, dims.size() <= kMaxRank, "shape: rank ", dims.size(), " exceeds ", kMaxRank);
    for (int64_t d : dims) {
      MMFREE_CHECK(ShapeError, d >= 0, "shape: negative extent ", d);
      dims_[rank_++] = d;
    }
  }
  int rank() const { return rank_; }
  /// Extent of dimension i; negative i counts from the innermost (-1 is the last).
  int64_t operator[](int i) const { return dims_[i < 0 ? rank_ + i : i]; }
  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dims_[i];
    return n;
  }
  bool operator==(const Shape& o) const {
    if (rank_ != o.rank_) return false;
    for (int i = 0; i < rank_; ++i)
      if (dims_[i] != o.dims_[i]) return false;
    return true;
  }

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

inline std::ostream& operator<<(std::ostream& out, const Shape& s) {
  out << '[';
  for (int i = 0; i < s.rank(); ++i) out << (i ? ", " : "") << s[i];
  return out << ']';
}

}  // namespace mmfree
