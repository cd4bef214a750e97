#pragma once
#include "core/tensor.h"

namespace mmfree {

/// y_n = table[ids_n].  table [V, D] P, ids [N] i32, y [N, D] P, out.
/// @throws ShapeError, DTypeError, DeviceError. An id outside 0..V-1: on the CPU a DataError that names it, on a GPU a
/// row of NaN.
void embedding(const Tensor& table, const Tensor& ids, Tensor& y);

/// dtable[v] = beta·dtable[v] + Σ_{n: ids_n = v} dy_n.  dy [N, D] A, dtable [V, D] P. The order of the sum is fixed:
/// on the CPU the order of n, on a GPU partial sums of 32 positions in that order. Ids outside 0..V-1 are left out.
/// @throws ShapeError, DTypeError, DeviceError
void embedding_backward(const Tensor& ids, const Tensor& dy, Tensor& dtable, double beta);

struct EmbeddingArgs {
  const void* in;  ///< table (P) forward, dy (A) backward
  const int32_t* ids;
  void* out;  ///< y (P) forward, dtable (P) backward
  int64_t n, v, d;
  double beta;
  DType dtype;  ///< of `in`
};

namespace cpu {
void embedding(const EmbeddingArgs&);
void embedding_backward(const EmbeddingArgs&);
}  // namespace cpu
namespace cuda {
void embedding(const EmbeddingArgs&);
void embedding_backward(const EmbeddingArgs&);
}  // namespace cuda

}  // namespace mmfree
