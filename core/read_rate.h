#pragma once
#include <cstdint>

namespace mmfree {

/// Bytes per second that `threads` threads read together from `bytes` bytes of host memory, one pass after the other;
/// the best of a few passes.
double host_read_rate(int64_t bytes, int threads);

}  // namespace mmfree
