#include "core/ops/embedding.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {

void embedding(const Tensor& table, const Tensor& ids, Tensor& y) {
  check_float("embedding", "table", table, 2);
  check_tensor("embedding", "ids", ids, {ids.size()}, DType::i32);
  check_tensor("embedding", "y", y, {ids.size(), table.dim(1)}, table.dtype());
  check_device("embedding", table.device(), {&ids, &y});
  const EmbeddingArgs args{table.raw(),  ids.data<int32_t>(), y.raw_mut(), ids.size(),
                           table.dim(0), table.dim(1),        0,           table.dtype()};
  MMFREE_DISPATCH(table.device(), embedding, args);
}

void embedding_backward(const Tensor& ids, const Tensor& dy, Tensor& dtable, double beta) {
  check_float("embedding_backward", "dtable", dtable, 2);
  check_tensor("embedding_backward", "ids", ids, {ids.size()}, DType::i32);
  check_tensor("embedding_backward", "dy", dy, {ids.size(), dtable.dim(1)}, dy.dtype());
  check_float("embedding_backward", "dy", dy, 2);
  MMFREE_CHECK(DTypeError, dtable.dtype() == param_dtype(dy.dtype()), "embedding_backward: dtable must be ",
               name_of(param_dtype(dy.dtype())), ", got ", dtable.describe());
  check_device("embedding_backward", dy.device(), {&ids, &dtable});
  const EmbeddingArgs args{dy.raw(), ids.data<int32_t>(), dtable.raw_mut(), ids.size(), dtable.dim(0), dtable.dim(1),
                           beta,     dy.dtype()};
  MMFREE_DISPATCH(dy.device(), embedding_backward, args);
}

}  // namespace mmfree
