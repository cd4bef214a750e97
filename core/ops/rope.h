#pragma once
#include <vector>

#include "core/tensor.h"

namespace mmfree {

/// Where the tokens of a call stand in their documents: token t of sequence b has the index first + t in its sequence,
/// and its document began at the index begins[b, t].
struct Positions {
  int64_t first = 0;  ///< tokens that came before the call's
  Tensor begins;      ///< [B, T] i32, each at most first + t; undefined: all 0
};

/// The beginnings of documents from marks. begins[b, t] = first + t where starts[b, t] is 1, else begins[b, t − 1];
/// before the first mark before[b].
///
/// @param starts  [B, T] u8, or undefined = all 0
/// @param before  [B] i32: where the document of the token before the call began, or undefined = all 0
/// @param begins  [B, T] i32, out
/// @param after   [B] i32, out: begins[b, T − 1]. May be `before` itself
/// @throws ShapeError, DTypeError, DeviceError
void document_begins(const Tensor& starts, const Tensor& before, int64_t first, Tensor& begins, Tensor& after);

/// Most pairs of a head: heads are up to twice as wide.
inline constexpr int64_t kMostRopePairs = 256;

/// Rotary positions: element pairs i and i + W/2 of each head are rotated by an angle that grows with the position, so
/// that a product of two heads depends on the distance of their tokens:
///   p = first + t − begins[b, t],  φ = p · theta^(−2i/W)
///   y_i = x_i cos φ − x_{i+W/2} sin φ,  y_{i+W/2} = x_{i+W/2} cos φ + x_i sin φ
/// Angles are computed in f64.
///
/// @param x      [B, T, H, W] A, W even, up to 2·kMostRopePairs
/// @param theta  base of the angles, > 0
/// @param y      [B, T, H, W] A, out; may be x itself
/// @throws ShapeError, DTypeError, DeviceError. Source: Su et al. 2021 (arXiv:2104.09864), with the pairs of Llama.
void rope(const Tensor& x, const Positions& positions, double theta, Tensor& y);

/// Backward: dx is dy rotated back. dx may be dy itself. @throws as rope
void rope_backward(const Tensor& dy, const Positions& positions, double theta, Tensor& dx);

/// theta^(−2i/W) / 2π for i < W/2: by how many turns pair i of a head is rotated per position.
std::vector<double> rotary_turns(double theta, int64_t width);

struct DocumentBeginsArgs {
  const uint8_t* starts;  ///< or null
  const int32_t* before;  ///< or null
  int32_t *begins, *after;
  int64_t first, b, t;
};
struct RopeArgs {
  const void* x;
  void* y;
  const int32_t* begins;  ///< or null
  int64_t first, b, t, heads, width;
  double theta;
  bool back;  ///< by the negative angles
  DType dtype;
};

namespace cpu {
void document_begins(const DocumentBeginsArgs&);
void rope(const RopeArgs&);
}  // namespace cpu
namespace cuda {
void document_begins(const DocumentBeginsArgs&);
void rope(const RopeArgs&);
}  // namespace cuda

}  // namespace mmfree
