#pragma once
#include <cstdint>

namespace mmfree {

/// Σ words[i] over [0, n) modulo 2^64, read as fast as one thread can.
uint64_t sum_of_words(const uint64_t* words, int64_t n);

/// Bytes per second that `threads` threads read together from `bytes` bytes of host memory, one pass after the other;
/// the best of a few passes.
double host_read_rate(int64_t bytes, int threads);

}  // namespace mmfree
