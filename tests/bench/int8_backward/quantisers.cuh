#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "tests/bench/int8_backward/device.cuh"

/// Quantisers that write rows, transposed blocks of 128 rows, or both.
namespace mmfree::int8_backward {

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the nearest integer, halves to even
constexpr float kLeast = 1e-30f;

__device__ inline uint32_t code(float v, float inverse) {
  return __float_as_uint(__fadd_rn(__fmul_rn(v, inverse), kRound));
}
__device__ inline float inverse_of(float absmax) { return __fdiv_rn(127.0f, fmaxf(absmax, kLeast)); }
__device__ inline float scale_of(float absmax) { return __fdiv_rn(fmaxf(absmax, kLeast), 127.0f); }
__device__ inline uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}
/// Transposes 4 x 4 bytes.
__device__ inline void transpose(uint32_t (&x)[4]) {
  const uint32_t a = __byte_perm(x[0], x[1], 0x5140), b = __byte_perm(x[2], x[3], 0x5140);
  const uint32_t c = __byte_perm(x[0], x[1], 0x7362), d = __byte_perm(x[2], x[3], 0x7362);
  x[0] = __byte_perm(a, b, 0x5410), x[1] = __byte_perm(a, b, 0x7632);
  x[2] = __byte_perm(c, d, 0x5410), x[3] = __byte_perm(c, d, 0x7632);
}
/// Four neighbours of a row.
struct Four {
  uint32_t lo = 0, hi = 0;
  __device__ void load(const Bf16* from) {
    const uint2 x = *reinterpret_cast<const uint2*>(from);
    lo = x.x, hi = x.y;
  }
  /// Makes the compiler compute the elements again instead of keeping them in registers.
  __device__ void forget() { asm volatile("" : "+r"(lo), "+r"(hi)); }
  __device__ float bf16(int i) const {
    const uint32_t x = i < 2 ? lo : hi;
    return __uint_as_float(i % 2 ? x & 0xffff0000u : x << 16);
  }
  __device__ void load(const int8_t* from) { lo = *reinterpret_cast<const uint32_t*>(from); }
  __device__ float int8(int i) const {
    return __uint_as_float(__byte_perm(lo ^ 0x80808080u, 0x4b000000u, 0x7650 + i)) - 8388736.0f;
  }
};
template <class In>
__device__ inline float element(const Four& x, int i) {
  if constexpr (sizeof(In) == 2)
    return x.bf16(i);
  else
    return x.int8(i);
}

/// What `quantise` writes, see there.
enum class Way { copy, both, blocks, tile };

/// A thread's part of a tile: 16 rows of four columns.
struct Strip {
  Four in[16];

  template <class In>
  __device__ void load(const In* x, int64_t row, int64_t col, int64_t o) {
#pragma unroll
    for (int i = 0; i < 16; ++i) in[i].load(x + (row + i) * o + col);
  }
  __device__ void forget() {
#pragma unroll
    for (Four& x : in) x.forget();
  }
  /// Each column's bytes of 16 rows.
  __device__ void copy(uint32_t (&words)[4][4]) const {
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      uint32_t four[4] = {in[4 * g].lo, in[4 * g + 1].lo, in[4 * g + 2].lo, in[4 * g + 3].lo};
      transpose(four);
#pragma unroll
      for (int c = 0; c < 4; ++c) words[c][g] = four[c];
    }
  }
  /// Writes the codes of the rows with a step per row; `inverses` of row i is that of lane i.
  template <class In>
  __device__ void write_rows(int8_t* rows, float inverses, int64_t o) const {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float r = __shfl_sync(0xffffffffu, inverses, i);
      uint32_t q[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) q[c] = code(element<In>(in[i], c), r);
      *reinterpret_cast<uint32_t*>(rows + i * o) = low_bytes(q[0], q[1], q[2], q[3]);
    }
  }
  /// The largest |x · factor| of each column; the factor of row i is that of lane i.
  template <class In>
  __device__ void find_absmax(float (&absmax)[4], float factors) const {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float f = __shfl_sync(0xffffffffu, factors, i);
#pragma unroll
      for (int c = 0; c < 4; ++c) absmax[c] = fmaxf(absmax[c], fabsf(__fmul_rn(element<In>(in[i], c), f)));
    }
  }
  /// The codes of x · factor, by columns, and with kRows also by rows.
  template <class In, bool kRows>
  __device__ void encode(uint32_t (&words)[4][4], int8_t* rows, float factors, const float (&inverse)[4],
                         int64_t o) const {
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      uint32_t four[4];
      float f[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) f[i] = __shfl_sync(0xffffffffu, factors, 4 * g + i);
      if constexpr (kRows) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t q[4];
#pragma unroll
          for (int c = 0; c < 4; ++c) q[c] = code(__fmul_rn(element<In>(in[4 * g + i], c), f[i]), inverse[c]);
          four[i] = low_bytes(q[0], q[1], q[2], q[3]);
          *reinterpret_cast<uint32_t*>(rows + (4 * g + i) * o) = four[i];
        }
        transpose(four);
      } else {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          uint32_t q[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) q[i] = code(__fmul_rn(element<In>(in[4 * g + i], c), f[i]), inverse[c]);
          four[c] = low_bytes(q[0], q[1], q[2], q[3]);
        }
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) words[c][g] = four[c];
    }
  }
};

/// The largest values of a block's 128 rows from those of its eight warps: of each column, or of all with kTile.
template <bool kTile>
__device__ inline void reduce_absmax(float (&absmax)[4], uint32_t (&most)[8][128], int warp, int lane) {
  if constexpr (kTile) {
    const float mine = fmaxf(fmaxf(absmax[0], absmax[1]), fmaxf(absmax[2], absmax[3]));
    const uint32_t all = __reduce_max_sync(0xffffffffu, __float_as_uint(mine));
    if (lane == 0) most[warp][0] = all;
    __syncthreads();
    uint32_t of_tile = 0;
#pragma unroll
    for (int w = 0; w < 8; ++w) of_tile = max(of_tile, most[w][0]);
#pragma unroll
    for (int c = 0; c < 4; ++c) absmax[c] = __uint_as_float(of_tile);
  } else {
    *reinterpret_cast<float4*>(&most[warp][4 * lane]) = {absmax[0], absmax[1], absmax[2], absmax[3]};
    __syncthreads();
#pragma unroll
    for (int w = 0; w < 8; ++w) {
      const float4 m = *reinterpret_cast<const float4*>(&most[w][4 * lane]);
      absmax[0] = fmaxf(absmax[0], m.x), absmax[1] = fmaxf(absmax[1], m.y);
      absmax[2] = fmaxf(absmax[2], m.z), absmax[3] = fmaxf(absmax[3], m.w);
    }
  }
}

/// Tiles of 128 x 128 elements of x [n, o], 256 threads each. Writes any of
///   rows    int8 [n, o]  both: codes with the step of the row's absmax; tile: codes with the tile's scale
///   blocks  int8 [o, n]  copy: x; otherwise codes of x · factor[row] with a scale per block of 128 rows and channel,
///                        or per tile
///   scale   [n / 128, stride], of `blocks`
template <class In, Way kWay>
__global__ void __launch_bounds__(256, 3)
    quantise(const In* x, const float* row_absmax, const float* factor, int8_t* rows, int8_t* blocks, float* scale,
             int64_t n, int64_t o, int64_t stride) {
  __shared__ uint4 turned[128 * 8];
  __shared__ uint32_t most[8][128];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t row = blockIdx.y * int64_t(128) + warp * 16, col = blockIdx.x * int64_t(128) + lane * 4;
  Strip strip;
  strip.load(x, row, col, o);
  uint32_t words[4][4];
  if constexpr (kWay == Way::copy) {
    strip.copy(words);
  } else {
    if constexpr (kWay == Way::both)
      strip.write_rows<In>(rows + row * o + col, inverse_of(row_absmax[row + lane % 16]), o);
    strip.forget();
    const float factors = factor[row + lane % 16];
    float absmax[4] = {};
    strip.find_absmax<In>(absmax, factors);
    strip.forget();
    reduce_absmax<kWay == Way::tile>(absmax, most, warp, lane);
    if (warp == 0)
      *reinterpret_cast<float4*>(scale + blockIdx.y * stride + col) = {scale_of(absmax[0]), scale_of(absmax[1]),
                                                                       scale_of(absmax[2]), scale_of(absmax[3])};
    float inverse[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) inverse[c] = inverse_of(absmax[c]);
    strip.encode<In, kWay == Way::tile>(words, rows + row * o + col, factors, inverse, o);
  }
#pragma unroll
  for (int c = 0; c < 4; ++c)
    turned[(4 * lane + c) * 8 + (warp ^ lane % 8)] = {words[c][0], words[c][1], words[c][2], words[c][3]};
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = i * 256 + int(threadIdx.x), channel = at / 8, chunk = at % 8;
    *reinterpret_cast<uint4*>(blocks + (blockIdx.x * int64_t(128) + channel) * n + blockIdx.y * int64_t(128) +
                              chunk * 16) = turned[channel * 8 + (chunk ^ channel / 4 % 8)];
  }
}

/// Rows of bf16 to int8 with a step per row. A block per row, kVectors vectors of 8 elements a thread.
template <int kVectors>
__global__ void __launch_bounds__(256) quantise_rows(const Bf16* x, int8_t* codes, float* step, int64_t o) {
  __shared__ uint32_t most[8];
  uint4 in[kVectors];
  const Bf16* from = x + blockIdx.x * o;
  uint32_t absmax = 0;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = (int64_t(v) * blockDim.x + threadIdx.x) * 8;
    in[v] = at < o ? *reinterpret_cast<const uint4*>(from + at) : uint4{0, 0, 0, 0};
    for (const uint32_t word : {in[v].x, in[v].y, in[v].z, in[v].w})
      absmax = max(absmax, max(word & 0x7fff0000u, word << 16 & 0x7fff0000u));
  }
  absmax = __reduce_max_sync(0xffffffffu, absmax);
  if (threadIdx.x % 32 == 0) most[threadIdx.x / 32] = absmax;
  __syncthreads();
  for (int w = 0; w < int(blockDim.x) / 32; ++w) absmax = max(absmax, most[w]);
  const float inverse = inverse_of(__uint_as_float(absmax));
  if (threadIdx.x == 0) step[blockIdx.x] = scale_of(__uint_as_float(absmax));
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = (int64_t(v) * blockDim.x + threadIdx.x) * 8;
    if (at >= o) continue;
    uint32_t q[8];
    int i = 0;
#pragma unroll
    for (const uint32_t word : {in[v].x, in[v].y, in[v].z, in[v].w}) {
      q[i++] = code(__uint_as_float(word << 16), inverse);
      q[i++] = code(__uint_as_float(word & 0xffff0000u), inverse);
    }
    *reinterpret_cast<uint2*>(codes + blockIdx.x * o + at) = {low_bytes(q[0], q[1], q[2], q[3]),
                                                              low_bytes(q[4], q[5], q[6], q[7])};
  }
}
inline void launch_quantise_rows(const Bf16* x, int8_t* codes, float* step, int64_t n, int64_t o) {
  const int threads = int(std::min<int64_t>(up(o / 8, 32), 256));
  const int vectors = int((o / 8 + threads - 1) / threads);
  const auto kernel = vectors == 1   ? quantise_rows<1>
                      : vectors == 2 ? quantise_rows<2>
                      : vectors == 3 ? quantise_rows<3>
                                     : quantise_rows<6>;
  OK(vectors > 6);
  kernel<<<unsigned(n), threads>>>(x, codes, step, o);
}
template <class In, Way kWay>
void launch_quantise(const In* x, const float* row_absmax, const float* factor, int8_t* rows, int8_t* blocks,
                     float* scale, int64_t n, int64_t o) {
  quantise<In, kWay><<<dim3(unsigned(o / 128), unsigned(n / 128)), 256>>>(x, row_absmax, factor, rows, blocks, scale, n,
                                                                          o, up(o, 256));
}

}  // namespace mmfree::int8_backward
