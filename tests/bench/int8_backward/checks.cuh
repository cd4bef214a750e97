#pragma once
#include <cuda_runtime.h>

#include <cstdio>
#include <string>
#include <vector>

#include "tests/bench/int8_backward/device.cuh"
#include "tests/bench/int8_backward/inputs.cuh"
#include "tests/bench/int8_backward/product.cuh"
#include "tests/bench/int8_backward/quantisers.cuh"

/// Plain kernels, and the comparison of every kernel with them, bit by bit.
namespace mmfree::int8_backward {

template <class T>
__global__ void transpose_plainly(const T* from, T* to, int64_t rows, int64_t cols) {
  EACH(i, rows * cols) to[i % cols * rows + i / cols] = from[i];
}
template <class In>
__device__ inline float value(In x) {
  if constexpr (sizeof(In) == 2)
    return __bfloat162float(x);
  else
    return float(x);
}
/// What `quantise` must write, one thread an element.
template <class In, Way kWay>
__global__ void quantise_plainly(const In* x, const float* row_absmax, const float* factor, int8_t* rows,
                                 int8_t* blocks, float* scale, int64_t n, int64_t o, int64_t stride) {
  EACH(i, n * o) {
    const int64_t row = i / o, col = i % o, block = row / 128;
    if (kWay == Way::copy) {
      blocks[col * n + row] = int8_t(value(x[i]));
      continue;
    }
    float most = 0;
    const int64_t first = kWay == Way::tile ? col / 128 * 128 : col, last = kWay == Way::tile ? first + 128 : col + 1;
    for (int64_t r = block * 128; r < block * 128 + 128; ++r)
      for (int64_t c = first; c < last; ++c) most = fmaxf(most, fabsf(__fmul_rn(value(x[r * o + c]), factor[r])));
    const float own = value(x[i]);
    const int8_t q = int8_t(rintf(__fmul_rn(__fmul_rn(own, factor[row]), inverse_of(most))));
    blocks[col * n + row] = q;
    scale[block * stride + col] = scale_of(most);
    if (kWay == Way::tile) rows[i] = q;
    if (kWay == Way::both) rows[i] = int8_t(rintf(__fmul_rn(own, inverse_of(row_absmax[row]))));
  }
}
/// What block_mma must compute from a [m, n] and b [j, n], one thread an element.
__global__ void block_product(const int8_t* a, const int8_t* b, const float* scale, bool by_row, int64_t stride,
                              float* out, int64_t m, int64_t j, int64_t n, int splits) {
  EACH(at, m * j) {
    const int64_t row = at / j, col = at % j, depth = n / 128;
    float all = 0;
    for (int s = 0; s < splits; ++s) {
      float part = 0;
      for (int64_t l = depth * s / splits; l < depth * (s + 1) / splits; ++l) {
        int sum = 0;
        for (int k = 0; k < 32; ++k)
          sum = __dp4a(reinterpret_cast<const int*>(a + row * n + l * 128)[k],
                       reinterpret_cast<const int*>(b + col * n + l * 128)[k], sum);
        part = fmaf(float(sum), scale[l * stride + (by_row ? row : col)], part);
      }
      all = s ? __fadd_rn(all, part) : part;
    }
    out[at] = all;
  }
}
__global__ void count_differences(const uint8_t* a, const uint8_t* b, int64_t size, unsigned long long* count) {
  unsigned long long mine = 0;
  EACH(i, size) mine += a[i] != b[i];
  if (mine) atomicAdd(count, mine);
}
template <class T>
bool same(const Buffer<T>& a, const Buffer<T>& b, const std::string& what) {
  Buffer<unsigned long long> count(1);
  OK(cudaMemset(count.data, 0, sizeof(unsigned long long)));
  count_differences<<<1024, 256>>>(reinterpret_cast<uint8_t*>(a.data), reinterpret_cast<uint8_t*>(b.data),
                                   int64_t(a.size * sizeof(T)), count.data);
  unsigned long long wrong;
  OK(cudaMemcpy(&wrong, count.data, sizeof(wrong), cudaMemcpyDeviceToHost));
  if (wrong) std::printf("WRONG: %s: %llu bytes differ\n", what.c_str(), wrong);
  return wrong == 0;
}

/// Whether block_mma has the bits of block_product.
template <bool kTransposed, Scale kScale, bool kTurns = true>
bool check_product(int64_t m, int64_t j, int64_t n, uint32_t seed, const char* name) {
  const int64_t stride = up(kScale == Scale::rows ? m : j, 256), tiles = up(m, 256) / 256 * (up(j, 256) / 256);
  Buffer<int8_t> a(m * n), b(j * n), turned(m * n);
  Buffer<float> scale(n / 128 * stride), parts(kMostSplits * m * j), got(m * j), expected(m * j);
  fill_codes<<<1024, 256>>>(a.data, m * n, seed);
  fill_codes<<<1024, 256>>>(b.data, j * n, seed + 1);
  transpose_plainly<<<1024, 256>>>(a.data, turned.data, m, n);
  if (kScale == Scale::tile) {
    Buffer<float> few(n / 128 * stride / 128);
    std::vector<float> from(few.size), to(scale.size);
    fill_floats<<<64, 256>>>(few.data, few.size, seed + 2);
    OK(cudaMemcpy(from.data(), few.data, few.size * 4, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < to.size(); ++i) to[i] = from[i / 128];
    OK(cudaMemcpy(scale.data, to.data(), to.size() * 4, cudaMemcpyHostToDevice));
  } else {
    fill_floats<<<64, 256>>>(scale.data, scale.size, seed + 2);
  }
  got.poison(), expected.poison(), parts.poison();
  block_mma<kTransposed, kScale, kTurns>(kTransposed ? turned.data : a.data, b.data, scale.data, parts.data, got.data,
                                         m, j, n);
  block_product<<<1024, 256>>>(a.data, b.data, scale.data, kScale == Scale::rows, stride, expected.data, m, j, n,
                               splits_of(tiles, n / 128));
  OK(cudaDeviceSynchronize());
  char what[128];
  std::snprintf(what, sizeof what, "%s %lld x %lld x %lld", name, (long long)m, (long long)j, (long long)n);
  return same(got, expected, what);
}

/// Whether `quantise` has the bits of quantise_plainly; Way::both also quantise_rows.
template <class In, Way kWay>
bool check_quantiser(int64_t n, int64_t o, uint32_t seed, const char* name) {
  const int64_t stride = up(o, 256);
  Buffer<In> x(n * o);
  Buffer<float> absmax(n), factor(n), scale(n / 128 * stride), scale2(n / 128 * stride);
  Buffer<int8_t> rows(n * o), rows2(n * o), blocks(n * o), blocks2(n * o);
  for (auto* b : {&rows, &rows2, &blocks, &blocks2}) b->poison();
  scale.poison(), scale2.poison();
  if constexpr (sizeof(In) == 2) {
    fill_gradients<<<1024, 256>>>(x.data, n, o, seed);
    find_absmax<<<64, 256>>>(x.data, absmax.data, n, o);
  } else {
    fill_codes<<<1024, 256>>>(x.data, n * o, seed);
  }
  fill_floats<<<64, 256>>>(factor.data, n, seed + 9);
  launch_quantise<In, kWay>(x.data, absmax.data, factor.data, rows.data, blocks.data, scale.data, n, o);
  quantise_plainly<In, kWay>
      <<<1024, 256>>>(x.data, absmax.data, factor.data, rows2.data, blocks2.data, scale2.data, n, o, stride);
  OK(cudaDeviceSynchronize());
  const std::string what(name);
  bool right = same(rows, rows2, what + ", rows") & same(blocks, blocks2, what + ", blocks") &
               same(scale, scale2, what + ", scale");
  if constexpr (kWay == Way::both) {
    Buffer<float> step(n);
    rows.poison();
    launch_quantise_rows(x.data, rows.data, step.data, n, o);
    right &= same(rows, rows2, what + ", by rows");
  }
  return right;
}

/// Checks all kernels at shapes with and without remainders; prints what differs.
inline bool check_all() {
  bool right = true;
  int count = 0;
  const int64_t shapes[][3] = {{256, 256, 128},   {256, 256, 512},    {128, 128, 256},    {512, 1408, 4096},
                               {1408, 512, 1024}, {1024, 1024, 4096}, {5632, 1024, 2048}, {2048, 5632, 16384},
                               {64, 64, 640},     {512, 512, 65536},  {336, 400, 1152}};
  for (const auto& s : shapes) {
    ++count;
    right &= check_product<false, Scale::rows>(s[0], s[1], s[2], 10 * count, "a as stored, scale per row");
    right &= check_product<true, Scale::rows>(s[0], s[1], s[2], 10 * count, "a transposed, scale per row");
    right &= check_product<true, Scale::columns>(s[0], s[1], s[2], 10 * count, "a transposed, scale per column");
    right &= check_product<true, Scale::columns, false>(s[0], s[1], s[2], 10 * count, "the same, not in turn");
    right &= check_product<true, Scale::tile>(s[0], s[1], s[2], 10 * count, "a transposed, scale per tile");
  }
  for (const int64_t n : {128, 1024})
    for (const int64_t o : {128, 1408}) {
      ++count;
      right &= check_quantiser<Bf16, Way::both>(n, o, 10 * count, "bf16 to rows and blocks");
      right &= check_quantiser<Bf16, Way::blocks>(n, o, 10 * count, "bf16 to blocks");
      right &= check_quantiser<Bf16, Way::tile>(n, o, 10 * count, "bf16 to tiles");
      right &= check_quantiser<int8_t, Way::blocks>(n, o, 10 * count, "int8 to blocks");
      right &= check_quantiser<int8_t, Way::copy>(n, o, 10 * count, "int8 transposed");
    }
  std::printf("%s: %d shapes, bit by bit\n", right ? "right" : "WRONG", count);
  std::fflush(stdout);
  return right;
}

}  // namespace mmfree::int8_backward
