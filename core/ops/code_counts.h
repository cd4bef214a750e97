#pragma once
#include "core/ops/ternary.h"

/// Counts over codes, for telemetry. They are integers, so no order of adding changes them.
namespace mmfree {

/// Counts over the codes of w [O, K]: counts[0] += zeros, counts[1] += codes that differ from those of the last call,
/// counts[2] += rows of zeros only. The codes are kept in `before` for the next call.
///
/// @param before  in and out: u8 [O, ternary_row_bytes(K)], packed as core/ops/ternary.h says, on any device
/// @param counts  in and out: i64 [3]
/// @throws ShapeError, DTypeError, DeviceError
void ternary_code_counts(const TernaryTensor& w, Tensor& before, Tensor& counts);

/// Of each row of codes q [N, K]: counts[n, 0] = Σ_k q², counts[n, 1] = the number of codes that are 127 or −127.
///
/// @param q       i8 [N, K], as norm_quant writes them
/// @param counts  out: i64 [N, 2]
/// @throws ShapeError, DTypeError, DeviceError
void row_code_counts(const Tensor& q, Tensor& counts);

struct TernaryCodeCountsArgs {
  const void* codes;
  uint8_t* before;
  int64_t* counts;
  int64_t rows, cols;
};
struct RowCodeCountsArgs {
  const int8_t* q;
  int64_t* counts;
  int64_t n, k;
};

namespace cpu {
void ternary_code_counts(const TernaryCodeCountsArgs&);
void row_code_counts(const RowCodeCountsArgs&);
}  // namespace cpu
namespace cuda {
void ternary_code_counts(const TernaryCodeCountsArgs&);
void row_code_counts(const RowCodeCountsArgs&);
}  // namespace cuda

}  // namespace mmfree
