#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

/// Dot products of rows. The bits of each depend on its two rows alone.
namespace mmfree::cpu {

/// Eight running sums of products, one per residue of k modulo 8, added up in a fixed tree at the end.
template <class T>
struct Lanes {
  T v[8] = {};
  void add_products(const T* x, const T* w) {
    for (int i = 0; i < 8; ++i) v[i] = std::fma(x[i], w[i], v[i]);
  }
  T total() const { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
};

#if defined(__AVX2__) && defined(__FMA__)
template <>
struct Lanes<float> {
  __m256 v = _mm256_setzero_ps();
  void add_products(const float* x, const float* w) { v = _mm256_fmadd_ps(_mm256_loadu_ps(x), _mm256_loadu_ps(w), v); }
  float total() const {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};
#endif

/// A matrix in memory: rows of consecutive elements, `stride` elements apart.
template <class T>
struct RowsOf {
  const T* data;
  int64_t stride;
  const T* operator[](int64_t row) const { return data + row * stride; }
  RowsOf from(int64_t row) const { return {data + row * stride, stride}; }
};

/// A tile of y, [R, C] dot products of rows of k elements. The order of each sum does not depend on R or C.
template <int R, int C, class T>
void dot_tile(RowsOf<T> x, RowsOf<T> w, T* y, int64_t k, int64_t ldy) {
  Lanes<T> sums[R][C];
  int64_t i = 0;
  for (; i + 8 <= k; i += 8)
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sums[r][c].add_products(x[r] + i, w[c] + i);
  if (i < k) {
    T x_tail[R][8] = {}, w_tail[C][8] = {};
    for (int r = 0; r < R; ++r) std::copy(x[r] + i, x[r] + k, x_tail[r]);
    for (int c = 0; c < C; ++c) std::copy(w[c] + i, w[c] + k, w_tail[c]);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sums[r][c].add_products(x_tail[r], w_tail[c]);
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) y[r * ldy + c] = sums[r][c].total();
}

template <int R, class T>
void dot_rows(RowsOf<T> x, RowsOf<T> w, T* y, int64_t k, int64_t cols, int64_t ldy) {
  constexpr int kCols = 3;
  int64_t c = 0;
  for (; c + kCols <= cols; c += kCols) dot_tile<R, kCols>(x, w.from(c), y + c, k, ldy);
  for (; c < cols; ++c) dot_tile<R, 1>(x, w.from(c), y + c, k, ldy);
}

/// y [rows, cols], row stride ldy: the dot products of `rows` rows of x and `cols` rows of w.
template <class T>
void dot_products(RowsOf<T> x, int64_t rows, RowsOf<T> w, int64_t cols, int64_t k, T* y, int64_t ldy) {
  constexpr int kRows = 4;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) dot_rows<kRows>(x.from(r), w, y + r * ldy, k, cols, ldy);
  for (; r < rows; ++r) dot_rows<1>(x.from(r), w, y + r * ldy, k, cols, ldy);
}

}  // namespace mmfree::cpu
