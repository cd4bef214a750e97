#pragma once
#include "core/quant_tensor.h"

namespace mmfree {

/// y_n = table[ids_n].  table [V, D] P, ids [N] i32, y [N, D] P, out.
/// @throws ShapeError, DTypeError, DeviceError. An id outside 0..V-1: on the CPU a DataError that names it, on a GPU a
/// row of NaN.
void embedding(const Tensor& table, const Tensor& ids, Tensor& y);

/// How an embedding table is stored.
enum class TableStore {
  f32,
  bf16,
  int8,  ///< a code per value and a scale per row: the absmax quantiser of activations
  int4,  ///< two codes per byte, and a bf16 scale per group of kTableGroup columns
};
inline constexpr TableStore kAllTableStores[] = {TableStore::f32, TableStore::bf16, TableStore::int8, TableStore::int4};
/// "f32", "bf16", "int8", "int4"; "?" for an invalid value.
const char* name_of(TableStore store);

inline constexpr int64_t kTableGroup = 32;

/// A table [V, D] f32 in another store. In four bits, for each group x of a row: m = the x_k of largest magnitude,
/// s = bf16(m / −8), code_k = clamp(round_half_away(x_k / s), −8, 7), value = code · s (all zeros if s is 0). Byte i of
/// a row, of D / 2, holds code 2i + 8 in its low half and code 2i+1 + 8 in its high half.
/// @throws ShapeError if D is odd in four bits; DTypeError, DeviceError
QuantTensor store_table(const Tensor& table, TableStore store);
/// D of a stored table.
int64_t table_width(const QuantTensor& table);
/// Whether a table needs the function below.
bool is_packed(const QuantTensor& table);
/// As embedding, from a table in any store on the CPU, y f32. Codes and scales are not checked.
/// @throws ShapeError, DTypeError, DeviceError, and DataError as embedding
void stored_embedding(const QuantTensor& table, const Tensor& ids, Tensor& y);

/// What a kernel needs of a table. @throws ShapeError, DTypeError, DeviceError
struct StoredTableArgs stored_table(const QuantTensor& table);

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

/// Operands of store_table (table → codes, scale) and stored_embedding.
struct StoredTableArgs {
  const void *codes, *scale;
  const int32_t* ids;
  float* y;
  int64_t n, v, d;
  TableStore store;
};

namespace cpu {
void store_table(const float* table, const StoredTableArgs&);
void stored_embedding(const StoredTableArgs&);
void embedding(const EmbeddingArgs&);
void embedding_backward(const EmbeddingArgs&);
}  // namespace cpu
namespace cuda {
void embedding(const EmbeddingArgs&);
void embedding_backward(const EmbeddingArgs&);
}  // namespace cuda

}  // namespace mmfree
