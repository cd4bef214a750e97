#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mmfree {

/// Up to `buckets` runs of consecutive values, of equal length but for one, each with its least and greatest value:
/// what a curve of that many pixels shows. Every value belongs to exactly one.
struct Bucket {
  size_t begin = 0, end = 0;  ///< positions in `values`
  double least = 0, greatest = 0, mean = 0;
};

/// @pre values are finite; buckets > 0
inline std::vector<Bucket> decimate(const std::vector<double>& values, size_t buckets) {
  const size_t n = values.size() < buckets ? values.size() : buckets;
  std::vector<Bucket> made;
  made.reserve(n);
  for (size_t b = 0; b < n; ++b) {
    // Computed in 128 bits, as values.size() * buckets may be any product of two sizes.
    const auto edge = [&](size_t i) { return size_t(static_cast<unsigned __int128>(values.size()) * i / n); };
    Bucket bucket{edge(b), edge(b + 1), values[edge(b)], values[edge(b)], 0};
    double sum = 0;
    for (size_t i = bucket.begin; i < bucket.end; ++i) {
      const double v = values[i];
      bucket.least = v < bucket.least ? v : bucket.least;
      bucket.greatest = v > bucket.greatest ? v : bucket.greatest;
      sum += v / double(bucket.end - bucket.begin);  // no sum of finite values that is infinite
    }
    bucket.mean = sum;
    made.push_back(bucket);
  }
  return made;
}

}  // namespace mmfree
