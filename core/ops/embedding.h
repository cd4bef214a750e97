#pragma once
#include "core/tensor.h"

namespace mmfree {

/// y_n = table[ids_n].  table [V, D] T (f32 | f64), ids [N] i32, y [N, D] T, out.
/// @throws ShapeError, DTypeError; DataError naming the first id outside 0..V-1.
void embedding(const Tensor& table, const Tensor& ids, Tensor& y);

/// dtable[v] = beta·dtable[v] + Σ_{n: ids_n = v} dy_n, summed in the order of n. Deterministic.
void embedding_backward(const Tensor& ids, const Tensor& dy, Tensor& dtable, double beta);

struct EmbeddingArgs {
  const void* in;  ///< table forward, dy backward
  const int32_t* ids;
  void* out;  ///< y forward, dtable backward
  int64_t n, v, d;
  double beta;
  DType dtype;
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
