#include "core/ops/blocks.h"

#include "core/dispatch.h"
#include "core/ops/adamw.h"
#include "core/ops/check.h"

namespace mmfree {
namespace {

void check_blocks(const char* op, const char* arg, const Tensor& t) {
  check_float(op, arg, t, 1);
  MMFREE_CHECK(DTypeError, t.dtype() != DType::bf16, op, ": ", arg, " must be f32 or f64, got ", t.describe());
  MMFREE_CHECK(ShapeError, t.size() % kParamBlock == 0, op, ": ", arg, " of ", t.size(),
               " elements is not padded to blocks of ", kParamBlock);
}

}  // namespace

void squares_of_blocks(const Tensor& x, Tensor& squares) {
  check_blocks("squares_of_blocks", "x", x);
  check_tensor("squares_of_blocks", "squares", squares, {x.size() / kParamBlock}, DType::f64);
  check_device("squares_of_blocks", x.device(), {&squares});
  const SquaresArgs args{x.raw(), squares.mut<double>(), squares.size(), x.dtype()};
  MMFREE_DISPATCH(x.device(), squares_of_blocks, args);
}

void add_blocks(const Tensor& squares, Tensor& out) {
  check_tensor("add_blocks", "squares", squares, {squares.size()}, DType::f64);
  check_tensor("add_blocks", "out", out, {1}, DType::f64);
  check_device("add_blocks", squares.device(), {&out});
  const AddBlocksArgs args{squares.data<double>(), out.mut<double>(), squares.size()};
  MMFREE_DISPATCH(squares.device(), add_blocks, args);
}

void copy_blocks(const Tensor& from, const Tensor& from_index, Tensor& to, const Tensor& to_index) {
  check_blocks("copy_blocks", "from", from);
  check_blocks("copy_blocks", "to", to);
  MMFREE_CHECK(DTypeError, from.dtype() == to.dtype(), "copy_blocks: from ", from.describe(), " to ", to.describe());
  check_tensor("copy_blocks", "from_index", from_index, {to_index.size()}, DType::i32);
  check_tensor("copy_blocks", "to_index", to_index, {to_index.size()}, DType::i32);
  check_device("copy_blocks", from.device(), {&from_index, &to, &to_index});
  const CopyBlocksArgs args{from.raw(),
                            to.raw_mut(),
                            from_index.data<int32_t>(),
                            to_index.data<int32_t>(),
                            to_index.size(),
                            kParamBlock * size_of(to.dtype())};
  MMFREE_DISPATCH(from.device(), copy_blocks, args);
}

}  // namespace mmfree
