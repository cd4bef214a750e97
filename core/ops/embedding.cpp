#include "core/ops/embedding.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {

void embedding(const Tensor& table, const Tensor& ids, Tensor& y) {
  check_float("embedding", "table", table, 2);
  check_tensor("embedding", "ids", ids, {ids.size()}, DType::i32);
  check_tensor("embedding", "y", y, {ids.size(), table.dim(1)}, table.dtype());
  MMFREE_DISPATCH(table.device(), embedding,
                  EmbeddingArgs{table.raw(), ids.data<int32_t>(), y.raw_mut(), ids.size(), table.dim(0), table.dim(1),
                                0, table.dtype()});
}

void embedding_backward(const Tensor& ids, const Tensor& dy, Tensor& dtable, double beta) {
  check_float("embedding_backward", "dtable", dtable, 2);
  check_tensor("embedding_backward", "ids", ids, {ids.size()}, DType::i32);
  check_tensor("embedding_backward", "dy", dy, {ids.size(), dtable.dim(1)}, dtable.dtype());
  MMFREE_DISPATCH(dy.device(), embedding_backward,
                  EmbeddingArgs{dy.raw(), ids.data<int32_t>(), dtable.raw_mut(), ids.size(), dtable.dim(0),
                                dtable.dim(1), beta, dy.dtype()});
}

}  // namespace mmfree
