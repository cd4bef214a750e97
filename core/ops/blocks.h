#pragma once
#include "core/tensor.h"

/// Ops on the blocks of kParamBlock elements that flat buffers consist of.
namespace mmfree {

/// squares[b] = Σ x² over block b of x: the partial sums of `sum_of_squares`.
///
/// @param x        [B · kParamBlock] f32 | f64
/// @param squares  out [B] f64
/// @throws ShapeError, DTypeError, DeviceError
void squares_of_blocks(const Tensor& x, Tensor& squares);

/// out [1] f64 = Σ squares, added as `sum_of_squares` adds its partial sums: the same bits.
/// @throws ShapeError, DTypeError, DeviceError
void add_blocks(const Tensor& squares, Tensor& out);

/// Block to_index[i] of `to` becomes block from_index[i] of `from`.
///
/// @param from, to              flat buffers of one dtype, f32 | f64, of whole blocks
/// @param from_index, to_index  [n] i32, within the buffers; no number twice in to_index
/// @throws ShapeError, DTypeError, DeviceError
void copy_blocks(const Tensor& from, const Tensor& from_index, Tensor& to, const Tensor& to_index);

struct SquaresArgs {
  const void* x;
  double* squares;
  int64_t blocks;
  DType dtype;
};
struct AddBlocksArgs {
  const double* squares;
  double* out;
  int64_t blocks;
};
struct CopyBlocksArgs {
  const void* from;
  void* to;
  const int32_t *from_index, *to_index;
  int64_t count;
  int64_t bytes;  ///< of a block
};

namespace cpu {
void squares_of_blocks(const SquaresArgs&);
void add_blocks(const AddBlocksArgs&);
void copy_blocks(const CopyBlocksArgs&);
}  // namespace cpu
namespace cuda {
void squares_of_blocks(const SquaresArgs&);
void add_blocks(const AddBlocksArgs&);
void copy_blocks(const CopyBlocksArgs&);
}  // namespace cuda

}  // namespace mmfree
