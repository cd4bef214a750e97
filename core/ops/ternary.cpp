#include "core/ops/ternary.h"

#include <algorithm>

#include "core/dispatch.h"
#include "core/ops/adamw.h"
#include "core/ops/matmul.h"
#include "core/ops/ternary_check.h"

namespace mmfree {

int64_t ternary_row_bytes(int64_t cols) { return (cols + kTernaryBlock - 1) / kTernaryBlock * kTernaryBlockBytes; }

void pack_ternary(const int8_t* weights, int64_t rows, int64_t cols, uint8_t* packed) {
  const int64_t row_bytes = ternary_row_bytes(cols);
  for (int64_t o = 0; o < rows; ++o)
    for (int64_t byte = 0; byte < row_bytes; ++byte) {
      const int64_t first = byte / kTernaryBlockBytes * kTernaryBlock + byte % kTernaryBlockBytes;
      int bits = 0;
      for (int plane = 0; plane < 4; ++plane) {
        const int64_t k = first + plane * 32;
        bits |= (k < cols ? weights[o * cols + k] + 1 : 1) << (2 * plane);
      }
      packed[o * row_bytes + byte] = uint8_t(bits);
    }
}

TernaryTensor make_ternary(int64_t rows, int64_t cols, DType scale_dtype, Device device) {
  MMFREE_CHECK(DTypeError, scale_dtype == DType::f32 || scale_dtype == DType::f64,
               "make_ternary: expected a scale of f32 or f64, got ", name_of(scale_dtype));
  MMFREE_CHECK(ShapeError, rows >= 0 && cols >= 0, "make_ternary: negative extent in [", rows, ", ", cols, "]");
  Tensor scale({1}, scale_dtype, device);
  if (device == Device::cpu) return {Tensor({rows, ternary_row_bytes(cols)}, DType::u8), scale, cols};
  return {Tensor({rows, cols}, DType::i8, device), scale, cols};
}

TernaryTensor to_device(const TernaryTensor& w, Device device) {
  if (w.codes.device() == device) return w;
  Tensor dense({w.rows(), w.cols}, DType::f32);
  TernaryTensor out = make_ternary(w.rows(), w.cols, w.scale.dtype(), device);
  if (device == Device::cuda) {
    ternary_dequantise(w, dense, false);
    Tensor codes({w.rows(), w.cols}, DType::i8);
    std::transform(dense.data<float>(), dense.data<float>() + dense.size(), codes.mut<int8_t>(),
                   [](float x) { return int8_t(x); });
    out.codes = codes.to(device);
  } else {
    const Tensor codes = w.codes.to(device);
    pack_ternary(codes.data<int8_t>(), w.rows(), w.cols, out.codes.mut<uint8_t>());
  }
  out.scale.copy_from(w.scale);
  return out;
}

void ternary_quantise(const Tensor& w, TernaryTensor& out) {
  constexpr const char* op = "ternary_quantise";
  check_ternary(op, out);
  check_matrix(op, "weights", w, out.rows(), out.cols, out.scale.dtype());
  check_device(op, w.device(), {&out.codes});
  const TernaryQuantiseArgs args{w.raw(), out.codes.raw_mut(), out.scale.raw_mut(), w.dtype(), out.rows(), out.cols};
  MMFREE_DISPATCH(w.device(), ternary_quantise, args);
}

void ternary_quantise_flat(const Tensor& values, const Tensor& abs_sums, std::vector<TernaryJob>& jobs) {
  constexpr const char* op = "ternary_quantise_flat";
  check_param(op, "values", values);
  const int64_t size = values.size();
  check_optional(op, "abs_sums", abs_sums, {size / kParamBlock}, DType::f64);
  TernaryQuantiseFlatArgs args{
      values.raw(), abs_sums.defined() ? abs_sums.data<double>() : nullptr, size / kParamBlock, {}, values.dtype()};
  for (TernaryJob& job : jobs) {
    check_ternary(op, job.out);
    check_tensor(op, "scale", job.out.scale, {1}, values.dtype());
    const int64_t count = job.out.rows() * job.out.cols;
    MMFREE_CHECK(ShapeError, job.offset % kParamBlock == 0 && job.offset >= 0 && job.offset + count <= size, op,
                 ": a matrix of ", count, " elements at ", job.offset, " does not lie on a block of [", size, "]");
    check_device(op, values.device(), {&abs_sums, &job.out.codes});
    args.jobs.push_back({job.offset, job.out.rows(), job.out.cols, job.out.codes.raw_mut(), job.out.scale.raw_mut()});
  }
  MMFREE_DISPATCH(values.device(), ternary_quantise_flat, args);
}

void ternary_dequantise(const TernaryTensor& w, Tensor& out, bool scaled) {
  constexpr const char* op = "ternary_dequantise";
  check_ternary(op, w);
  check_activation(op, "weights", out, w.scale.dtype());
  check_matrix(op, "weights", out, w.rows(), w.cols, out.dtype());
  check_device(op, out.device(), {&w.codes});
  const TernaryDequantiseArgs args{
      w.codes.raw(), scaled ? w.scale.raw() : nullptr, out.raw_mut(), out.dtype(), w.rows(), w.cols};
  MMFREE_DISPATCH(out.device(), ternary_dequantise, args);
}

void ternary_linear(const Tensor& q, const Tensor& step, const TernaryTensor& w, Tensor& y) {
  constexpr const char* op = "ternary_linear";
  check_ternary(op, w);
  check_codes(op, q, step);
  check_matrix(op, "step", step, step.rows(), step.cols(), w.scale.dtype());
  check_activation(op, "y", y, w.scale.dtype());
  check_device(op, y.device(), {&q, &step, &w.codes});
  MMFREE_CHECK(ShapeError, q.cols() == w.cols && y.rows() == q.rows() && y.cols() == w.rows(), op, ": ", q.shape(),
               " times the transpose of [", w.rows(), ", ", w.cols, "] does not give ", y.shape());
  MMFREE_CHECK(ShapeError, w.cols <= int64_t(1) << 23, op, ": ", w.cols, " columns overflow 32-bit sums");
  if (y.size() == 0) return;
  const TernaryLinearArgs args{q.data<int8_t>(), step.raw(), w.codes.raw(), w.scale.raw(), y.raw_mut(),
                               y.dtype(),        q.rows(),   w.rows(),      w.cols};
  MMFREE_DISPATCH(y.device(), ternary_linear, args);
}

namespace {

// bf16 holds -1, 0 and 1 exactly, but not weight * scale: the scale stays f32 and multiplies the sums.
bool is_bare(DType t, Products products) { return t == DType::bf16 || products == Products::bf16; }

/// Whether ternary_linear_dx makes a few rows of the matrix dense at a time.
bool goes_in_blocks(const TernaryTensor& w, DType t, Products products) {
  return w.codes.device() == Device::cpu && t == DType::f32 && products == Products::compute;
}

/// ternary_linear_dx in f32 on the CPU, from a few rows of the matrix at a time: 6 MiB of one 512 wide, where a head of
/// 32,000 tokens would take 65. Blocks end where oneDNN ends its own of 256 or 384, and the last one is not shorter
/// than those, so the bits are those of one product.
void dx_in_blocks(const Tensor& dy, const TernaryTensor& w, Tensor& dx, double beta) {
  constexpr int64_t kRows = 3072, kLeast = 384;
  constexpr DType t = DType::f32;
  const int64_t n = dy.rows(), o = w.rows(), k = w.cols;
  Tensor dense({std::min(kRows + kLeast, o), k}, t);
  for (int64_t begin = 0, end = 0; begin < o; begin = end) {
    end = o - begin < kRows + kLeast ? o : begin + kRows;
    Tensor block = dense.slice(0, end - begin);
    ternary_dequantise({w.codes.slice(begin, end), w.scale, k}, block);
    const char* const from = dy.raw() + begin * size_of(t);
    const MatmulArgs args{from, block.raw(), dx.raw_mut(),     t,     t,      false, false, n, k, end - begin, o,
                          k,    1,           begin ? 1 : beta, false, nullptr};
    MMFREE_DISPATCH(dx.device(), matmul, args);
  }
}

}  // namespace

Tensor ternary_dx_weights(const TernaryTensor& w, DType t, Products products) {
  if (goes_in_blocks(w, t, products)) return {};
  Tensor dense({w.rows(), w.cols}, t, w.codes.device());
  ternary_dequantise(w, dense, !is_bare(t, products));
  return dense;
}

void ternary_linear_dx(const Tensor& dy, const TernaryTensor& w, Tensor& dx, double beta, Products products,
                       const Tensor& made) {
  constexpr const char* op = "ternary_linear_dx";
  check_ternary(op, w);
  check_activation(op, "dy", dy, w.scale.dtype());
  check_matrix(op, "dx", dx, dy.rows(), w.cols, dy.dtype());
  check_matrix(op, "dy", dy, dy.rows(), w.rows(), dy.dtype());
  if (goes_in_blocks(w, dy.dtype(), products) && dx.size() > 0) return dx_in_blocks(dy, w, dx, beta);
  const Tensor dense = made.defined() ? made : ternary_dx_weights(w, dy.dtype(), products);
  check_matrix(op, "dense", dense, w.rows(), w.cols, dy.dtype());
  if (products == Products::bf16) {
    check_param(op, "scale", w.scale);
    const double scale = w.scale.dtype() == DType::f32 ? double(*w.scale.data<float>()) : *w.scale.data<double>();
    return matmul(dy, false, dense, false, dx, scale, beta, Tensor(), products);
  }
  matmul(dy, false, dense, false, dx, 1, beta, is_bare(dy.dtype(), products) ? w.scale : Tensor());
}

void ternary_linear_dw(const Tensor& dy, const Tensor& q, const Tensor& step, Tensor& dw, double beta,
                       Products products) {
  constexpr const char* op = "ternary_linear_dw";
  check_codes(op, q, step);
  check_activation(op, "dy", dy, step.dtype());
  check_device(op, q.device(), {&dy, &step, &dw});
  MMFREE_CHECK(ShapeError, dy.rows() == q.rows(), op, ": ", dy.shape(), " transposed times ", q.shape(),
               " does not give ", dw.shape());
  check_matrix(op, "dw", dw, dy.cols(), q.cols(), step.dtype());
  Tensor u({q.rows(), q.cols()}, dy.dtype(), q.device());
  const ScaleCodesArgs args{q.data<int8_t>(), step.raw(), u.raw_mut(), u.dtype(), q.rows(), q.cols()};
  MMFREE_DISPATCH(q.device(), scale_codes, args);
  matmul(dy, true, u, false, dw, 1, beta, Tensor(), products);
}

}  // namespace mmfree
