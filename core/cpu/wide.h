#pragma once

/// Functions marked MMFREE_WIDE are compiled, with all that they call, for vectors of 512 bits: a second time, for
/// processors that have them. The loops keep their order of operations, so the bits are the same.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MMFREE_WIDE_VECTORS 1
#define MMFREE_WIDE \
  __attribute__((flatten, noinline, target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#else
#define MMFREE_WIDE_VECTORS 0
#endif

#if MMFREE_WIDE_VECTORS
namespace mmfree::cpu {

/// Cleared by tests, to compare the two forms.
inline bool wide_vectors_allowed = true;

inline bool has_wide_vectors() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return has && wide_vectors_allowed;
}

}  // namespace mmfree::cpu
#endif
