#pragma once
#include <algorithm>
#include <cstdint>
#include <exception>
#include <type_traits>
#include <vector>

#include "core/thread_pool.h"

namespace mmfree {

/// Calls body(begin, end) for consecutive ranges of at most `grain` items that cover [0, n), in parallel over the
/// program's threads (see core/thread_pool.h). The ranges depend on n and grain alone, never on the number of threads.
/// body must not throw.
template <class Body>
void parallel_for(int64_t n, int64_t grain, Body&& body) {
  const int64_t chunks = (n + grain - 1) / grain;
  if (chunks <= 1) {
    if (n > 0) body(int64_t(0), n);
    return;
  }
  const auto chunk = [&](int64_t c) { body(c * grain, std::min(n, (c + 1) * grain)); };
  threads::run(
      chunks, [](const void* call, int64_t c) { (*static_cast<const decltype(chunk)*>(call))(c); }, &chunk);
}

/// Calls body(i) for each i in [0, n) on up to `threads` threads of the program, whose index() is below `threads`
/// unless the calling thread has a larger one. body must not throw.
template <class Body>
void share_tasks(int64_t n, int threads, Body&& body) {
  if (n == 1 || threads == 1)
    for (int64_t i = 0; i < n; ++i) body(i);
  else if (n > 0)
    threads::run(
        n, [](const void* call, int64_t i) { (*static_cast<const std::remove_reference_t<Body>*>(call))(i); }, &body,
        threads);
}

/// Sum over [0, n) of partial(begin, end), where the ranges are fixed blocks of `grain` items and the partials are
/// added in index order: the same bits for any number of threads.
template <class Partial>
double ordered_sum(int64_t n, int64_t grain, Partial&& partial) {
  std::vector<double> sums(size_t((n + grain - 1) / grain));
  parallel_for(n, grain, [&](int64_t begin, int64_t end) { sums[size_t(begin / grain)] = partial(begin, end); });
  double total = 0;
  for (double s : sums) total += s;
  return total;
}

}  // namespace mmfree
