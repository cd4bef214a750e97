#pragma once
#include <cstddef>
#include <vector>

namespace mmfree::cuda {

/// Device memory, also of a GPU that this one may read.
struct SmallCopy {
  void* to;
  const void* from;
  size_t bytes;
};

/// Makes all these copies by one kernel, or by few: a copy engine takes some 5 µs for each, however small.
void make_copies(const std::vector<SmallCopy>& copies);

}  // namespace mmfree::cuda
