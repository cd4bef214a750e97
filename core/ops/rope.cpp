#include "core/ops/rope.h"

#include <cmath>
#include <limits>
#include <numbers>

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {
namespace {

void rotate(const char* op, const Tensor& x, const Positions& positions, double theta, bool back, Tensor& y) {
  check_float(op, "x", x, 4);
  const int64_t b = x.dim(0), t = x.dim(1), heads = x.dim(2), width = x.dim(3);
  MMFREE_CHECK(ShapeError, width % 2 == 0 && width <= 2 * kMostRopePairs, op,
               ": the width of a head must be even, and at most ", 2 * kMostRopePairs, "; got ", x.describe());
  check_optional(op, "begins", positions.begins, {b, t}, DType::i32);
  check_tensor(op, "y", y, x.shape(), x.dtype());
  check_device(op, x.device(), {&positions.begins, &y});
  const int32_t* begins = positions.begins.defined() ? positions.begins.data<int32_t>() : nullptr;
  const RopeArgs args{x.raw(), y.raw_mut(), begins, positions.first, b, t, heads, width, theta, back, x.dtype()};
  MMFREE_DISPATCH(x.device(), rope, args);
}

}  // namespace

void document_begins(const Tensor& starts, const Tensor& before, int64_t first, Tensor& begins, Tensor& after) {
  constexpr const char* op = "document_begins";
  MMFREE_CHECK(ShapeError, begins.defined() && begins.shape().rank() == 2, op, ": begins must have 2 dimensions, got ",
               begins.describe());
  const int64_t b = begins.dim(0), t = begins.dim(1);
  MMFREE_CHECK(ShapeError, first + t <= std::numeric_limits<int32_t>::max(), op,
               ": sequences of more than 2^31 tokens");
  check_tensor(op, "begins", begins, {b, t}, DType::i32);
  check_optional(op, "starts", starts, {b, t}, DType::u8);
  check_optional(op, "before", before, {b}, DType::i32);
  check_tensor(op, "after", after, {b}, DType::i32);
  check_device(op, begins.device(), {&starts, &before, &after});
  const DocumentBeginsArgs args{starts.defined() ? starts.data<uint8_t>() : nullptr,
                                before.defined() ? before.data<int32_t>() : nullptr,
                                begins.mut<int32_t>(),
                                after.mut<int32_t>(),
                                first,
                                b,
                                t};
  MMFREE_DISPATCH(begins.device(), document_begins, args);
}

std::vector<double> rotary_turns(double theta, int64_t width) {
  std::vector<double> turns;
  for (int64_t i = 0; i < width / 2; ++i)
    turns.push_back(std::pow(theta, -2.0 * double(i) / double(width)) / (2 * std::numbers::pi));
  return turns;
}

void rope(const Tensor& x, const Positions& positions, double theta, Tensor& y) {
  rotate("rope", x, positions, theta, false, y);
}

void rope_backward(const Tensor& dy, const Positions& positions, double theta, Tensor& dx) {
  rotate("rope_backward", dy, positions, theta, true, dx);
}

}  // namespace mmfree
