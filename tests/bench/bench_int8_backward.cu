// Ways to compute the products of the backward pass of a ternary projection in 8 bits on a Hopper GPU, and what each
// costs. Checks every kernel's bits against a plain one, then prints times and what a whole step would take.
// Needs an idle GPU; exits with 1 if any bit differs.
//
// A projection y = x wᵀ has x [n, k], w [o, k]. Its backward pass computes dx = dy w and dw = dyᵀ x.
//   dx   rows of dy in int8 with one step per row; the codes of wᵀ are exact. It is ternary_mma.
//   dw   sums over n. A step per row of n cannot leave the sum, so the rows' factors are folded into one operand, which
//        is rounded to int8 in blocks of 128 rows, with one scale per block and channel or per block and 128 channels:
//          dw[i, j] = sum over blocks b of scale[b, i or j] * float(sum over the rows of b of a[i, row] * b[j, row])
#include <cublasLt.h>
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/cuda/ternary_mma.h"

namespace {

using Bf16 = __nv_bfloat16;
using mmfree::cuda::ternary_mma;

void ok(int status, const char* what) {
  if (status == 0) return;
  std::fprintf(stderr, "%s: error %d\n", what, status);
  std::exit(2);
}
#define OK(call) ok(int(call), #call)

/// Device memory of `size` elements.
template <class T>
struct Buffer {
  T* data = nullptr;
  size_t size;
  explicit Buffer(size_t n) : size(n) {
    OK(cudaMalloc(reinterpret_cast<void**>(&data), std::max<size_t>(n, 1) * sizeof(T)));
  }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  void poison() { OK(cudaMemset(data, 0xff, size * sizeof(T))); }
};

constexpr int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// ---- The product with block scales ----

constexpr int kRows = 128, kCols = 256, kDepth = 128;
constexpr int kCluster = 2, kStages = 4, kGroup = 128, kGroups = 2;
constexpr int kThreads = kGroup * (1 + kGroups);
constexpr int kRowBytes = kRows * kDepth, kColBytes = kCols * kDepth, kScaleBytes = kCols * 4;
constexpr int kColsAt = kStages * kRowBytes;
constexpr int kScalesAt = kColsAt + kStages * kColBytes;
constexpr int kBarriersAt = kScalesAt + kStages * kScaleBytes;
constexpr int kSharedBytes = kBarriersAt + 2 * kStages * 8;
static_assert(kSharedBytes <= 227 * 1024);

/// Whether a scale belongs to a row of the output, to a column, or to 128 columns.
enum class Scale { rows, columns, tile };

struct Plan {
  int rows, cols, splits;  // tiles of the cluster, parts of the depth
  int depth;               // steps of kDepth
  int m, j;                // output
  int stride;              // of a block's scales
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ uint32_t address(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }
__device__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ void barrier_arrive(uint32_t barrier, int block) {
  asm volatile(
      "{ .reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(barrier),
      "r"(block)
      : "memory");
}
__device__ void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ void cluster_sync() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ void load_box(uint32_t to, const CUtensorMap& map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
__device__ void load_both(uint32_t to, const CUtensorMap& map, int x, int y, uint32_t barrier) {
  const uint16_t blocks = (1 << kCluster) - 1;
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
      : "memory");
}
__device__ void load_bytes(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
__device__ uint64_t matrix(uint32_t shared) {
  constexpr uint64_t kSwizzle128 = uint64_t(1) << 62, kEightRows = uint64_t(1024 >> 4) << 32;
  return kSwizzle128 | kEightRows | (uint64_t(1) << 16) | ((shared & 0x3ffff) >> 4);
}

#define SUMS_4(d, i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define SUMS_16(d, i) SUMS_4(d, i), SUMS_4(d, i + 4), SUMS_4(d, i + 8), SUMS_4(d, i + 12)
#define SUMS_64(d) SUMS_16(d, 0), SUMS_16(d, 16), SUMS_16(d, 32), SUMS_16(d, 48)
#define SUM_NAMES                                                                    \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"           \
  " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31," \
  " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47," \
  " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

/// sums = 64 rows of a times 128 rows of b over 32 elements of depth, added to the old sums if `add`.
__device__ void multiply(int (&sums)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 " SUM_NAMES ", %64, %65, add; }"
      : SUMS_64(sums)
      : "l"(a), "l"(b), "r"(int(add)));
}
/// The same with a in registers.
__device__ void multiply(int (&sums)[64], const uint32_t (&a)[4], uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 " SUM_NAMES ", {%64, %65, %66, %67}, %68, add; }"
      : SUMS_64(sums)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));
}
__device__ void multiply_wait(int (&sums)[64]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int& sum : sums) asm volatile("" : "+r"(sum)::"memory");
}

/// A in registers from 128 rows of n of 128 columns m in shared memory (128-byte swizzle): 16 columns from 16-byte
/// chunk `chunk` on, rows 32 step .. 32 step + 31. Row r of the fragment is column 2 r, row r + 8 is column 2 r + 1.
/// ldmatrix transposes pairs of bytes; rows are dealt to its matrices so that no two share a bank.
__device__ void load_transposed(uint32_t (&a)[4], uint32_t tile, int chunk, int step) {
  const int lane = threadIdx.x % 32, which = lane / 8, r = lane % 8, t = r / 2;
  const int row = step * 32 + which / 2 * 16 + 4 * t + 2 * (which % 2 ^ t / 2) + r % 2;
  const uint32_t from = tile + row * 128 + ((chunk ^ row % 8) * 16);
  uint32_t x[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(from)
               : "memory");
  const uint32_t even = lane % 4 < 2 ? 0x6420 : 0x2064, odd = lane % 4 < 2 ? 0x7531 : 0x3175;
  a[0] = __byte_perm(x[0], x[1], even), a[1] = __byte_perm(x[0], x[1], odd);
  a[2] = __byte_perm(x[2], x[3], even), a[3] = __byte_perm(x[2], x[3], odd);
}

struct Shared {
  uint32_t at;
  __device__ uint32_t rows(int stage) const { return at + stage * kRowBytes; }
  __device__ uint32_t cols(int stage) const { return at + kColsAt + stage * kColBytes; }
  __device__ uint32_t scales(int stage) const { return at + kScalesAt + stage * kScaleBytes; }
  __device__ uint32_t full(int stage) const { return at + kBarriersAt + stage * 8; }
  __device__ uint32_t empty(int stage) const { return at + kBarriersAt + (kStages + stage) * 8; }
};
struct Ring {
  int stage = 0, parity = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};
/// A tile of the output over a part of the depth.
struct Item {
  int row, col, split, begin, end;
  __device__ Item(const Plan& p, int index) {
    const int tile = index % (p.rows * p.cols);
    split = index / (p.rows * p.cols), row = tile % p.rows, col = tile / p.rows;
    begin = int64_t(p.depth) * split / p.splits, end = int64_t(p.depth) * (split + 1) / p.splits;
  }
};

template <bool kTransposed, Scale kScale>
__device__ void load_tiles(const CUtensorMap& a_map, const CUtensorMap& b_map, const float* scale, const Plan& plan,
                           Shared shared, int block) {
  constexpr int kShare = kCols / kCluster;
  constexpr int kScales = kScale == Scale::rows ? kRows * 4 : kCols * 4;
  Ring ring;
  for (int index = blockIdx.x / kCluster; index < plan.rows * plan.cols * plan.splits; index += gridDim.x / kCluster) {
    const Item at(plan, index);
    const int row = (at.row * kCluster + block) * kRows, col = at.col * kCols;
    for (int l = at.begin; l < at.end; ++l, ring.next()) {
      barrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
      const uint32_t full = shared.full(ring.stage);
      barrier_expect(full, kRowBytes + kColBytes + kScales);
      if (kTransposed)
        load_box(shared.rows(ring.stage), a_map, row, l * kDepth, full);
      else
        load_box(shared.rows(ring.stage), a_map, l * kDepth, row, full);
      load_both(shared.cols(ring.stage) + block * kShare * kDepth, b_map, l * kDepth, col + block * kShare, full);
      load_bytes(shared.scales(ring.stage), scale + int64_t(l) * plan.stride + (kScale == Scale::rows ? row : col),
                 kScales, full);
    }
  }
}

template <Scale kScale>
__device__ void add_scaled(float (&to)[64], const int (&sums)[64], const float* scales, int upper, int lower,
                           int half) {
  const int t = threadIdx.x % 4;
  if constexpr (kScale == Scale::columns) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float2 s = *reinterpret_cast<const float2*>(scales + half * 128 + 8 * i + 2 * t);
      to[4 * i] = fmaf(float(sums[4 * i]), s.x, to[4 * i]);
      to[4 * i + 1] = fmaf(float(sums[4 * i + 1]), s.y, to[4 * i + 1]);
      to[4 * i + 2] = fmaf(float(sums[4 * i + 2]), s.x, to[4 * i + 2]);
      to[4 * i + 3] = fmaf(float(sums[4 * i + 3]), s.y, to[4 * i + 3]);
    }
  } else {
    const float a = kScale == Scale::rows ? scales[upper] : scales[half * 128];
    const float b = kScale == Scale::rows ? scales[lower] : a;
#pragma unroll
    for (int i = 0; i < 64; ++i) to[i] = fmaf(float(sums[i]), i % 4 < 2 ? a : b, to[i]);
  }
}

/// With kTurns the warpgroups issue their products in turn, so that one adds while the other multiplies.
__device__ void wait_turn(int group) { asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory"); }
__device__ void give_turn(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory"); }

/// A multiplying warpgroup: 64 rows x 256 columns, 128 columns at a time, whose integer sums are added to the float
/// sums after each block of 128 of the depth, while the other warpgroup multiplies.
template <bool kTransposed, Scale kScale, bool kTurns>
__device__ void multiply_tiles(float* out, const uint8_t* memory, const Plan& plan, Shared shared, int block,
                               int group) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, t = lane % 4;
  const int upper = group * 64 + warp * 16 + (kTransposed ? 2 : 1) * (lane / 4), lower = upper + (kTransposed ? 1 : 8);
  Ring ring;
  if (kTurns && group == 1) give_turn(group);
  for (int index = blockIdx.x / kCluster; index < plan.rows * plan.cols * plan.splits; index += gridDim.x / kCluster) {
    const Item at(plan, index);
    float total[2][64];
#pragma unroll
    for (int i = 0; i < 64; ++i) total[0][i] = 0, total[1][i] = 0;
    for (int l = at.begin; l < at.end; ++l, ring.next()) {
      barrier_wait(shared.full(ring.stage), ring.parity);
      const float* scales = reinterpret_cast<const float*>(memory + kScalesAt + ring.stage * kScaleBytes);
      uint32_t a[kDepth / 32][4];
      if constexpr (kTransposed) {
#pragma unroll
        for (int k = 0; k < kDepth / 32; ++k) load_transposed(a[k], shared.rows(ring.stage), group * 4 + warp, k);
      }
      const uint64_t rows = matrix(shared.rows(ring.stage) + group * 64 * kDepth),
                     cols = matrix(shared.cols(ring.stage));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int sums[64];
        if (kTurns) wait_turn(group);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int k = 0; k < kDepth / 32; ++k) {
          const uint64_t b = cols + half * (128 * kDepth / 16) + 2 * k;
          if constexpr (kTransposed)
            multiply(sums, a[k], b, k > 0);
          else
            multiply(sums, rows + 2 * k, b, k > 0);
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        if (kTurns) give_turn(group);
        multiply_wait(sums);
        add_scaled<kScale>(total[half], sums, scales, upper, lower, half);
      }
      __syncwarp();
      if (lane < kCluster) barrier_arrive(shared.empty(ring.stage), lane);
    }
    const int first = (at.row * kCluster + block) * kRows;
    float* to = out + int64_t(at.split) * plan.m * plan.j;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int col = at.col * kCols + half * 128 + 8 * i + 2 * t;
        if (col >= plan.j) continue;
        const float* x = total[half] + 4 * i;
#pragma unroll
        for (int pair = 0; pair < 2; ++pair)
          if (const int row = first + (pair ? lower : upper); row < plan.m)
            *reinterpret_cast<float2*>(to + int64_t(row) * plan.j + col) = {x[2 * pair], x[2 * pair + 1]};
      }
  }
}
#endif

template <bool kTransposed, Scale kScale, bool kTurns>
__global__ void __launch_bounds__(kThreads, 1)
    block_mma_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                     const float* scale, float* out, Plan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t memory[];
  const Shared shared{address(memory)};
  const int block = blockIdx.x % kCluster;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared.full(i), 1);
      barrier_init(shared.empty(i), kGroups * 4 * kCluster);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_sync();
  const int group = threadIdx.x / kGroup;
  if (group == kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == kGroup * kGroups) load_tiles<kTransposed, kScale>(a_map, b_map, scale, plan, shared, block);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    multiply_tiles<kTransposed, kScale, kTurns>(out, memory, plan, shared, block, group);
  }
  cluster_sync();
#endif
}

CUtensorMap bytes_map(const int8_t* data, int64_t rows, int64_t cols, int box_rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    OK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    OK(found != cudaDriverEntryPointSuccess);
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  const cuuint64_t shape[] = {cuuint64_t(cols), cuuint64_t(rows)}, stride[] = {cuuint64_t(cols)};
  const cuuint32_t box[] = {128, cuuint32_t(box_rows)}, every[] = {1, 1};
  CUtensorMap map;
  OK(encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<int8_t*>(data), shape, stride, box, every,
            CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
  return map;
}

constexpr int kMostSplits = 16, kClusters = 66;

/// The number of parts of the depth with the least work of the busiest of 66 clusters. A part costs two steps more: its
/// sums are stored and added.
int splits_of(int64_t tiles, int64_t depth) {
  int best = 1;
  double least = 1e30;
  for (int s = 1; s <= kMostSplits && s <= depth; ++s) {
    const double cost = double((tiles * s + kClusters - 1) / kClusters) * (double((depth + s - 1) / s) + 4);
    if (cost < least * 0.999) least = cost, best = s;
  }
  return best;
}

/// out = Σ of `splits` parts, in order.
__global__ void add_parts(const float4* parts, float4* out, int64_t size, int splits) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < size; i += int64_t(gridDim.x) * blockDim.x) {
    float4 sum = parts[i];
    for (int s = 1; s < splits; ++s) {
      const float4 x = parts[s * size + i];
      sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    out[i] = sum;
  }
}

/// out f32 [m, j] = Σ_b scale[b, .] (a bᵀ over block b). a: int8 [m, n], or [n, m] if kTransposed; b: int8 [j, n];
/// scale [n / 128, stride], one per row of the output, per column, or equal for 128 columns. n % 128 == 0.
template <bool kTransposed, Scale kScale, bool kTurns = true>
void block_mma(const int8_t* a, const int8_t* b, const float* scale, float* parts, float* out, int64_t m, int64_t j,
               int64_t n) {
  const int64_t stride = up(kScale == Scale::rows ? m : j, 256);
  const int64_t rows = up(m, 256) / 256, cols = up(j, 256) / 256;
  const int splits = splits_of(rows * cols, n / kDepth);
  const Plan plan{int(rows), int(cols), splits, int(n / kDepth), int(m), int(j), int(stride)};
  const CUtensorMap a_map = kTransposed ? bytes_map(a, n, m, kDepth) : bytes_map(a, m, n, kRows);
  const CUtensorMap b_map = bytes_map(b, j, n, kCols / kCluster);
  const auto kernel = block_mma_kernel<kTransposed, kScale, kTurns>;
  OK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kCluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = kCluster * unsigned(std::min<int64_t>(rows * cols * splits, kClusters));
  config.blockDim = kThreads;
  config.dynamicSmemBytes = kSharedBytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  OK(cudaLaunchKernelEx(&config, kernel, a_map, b_map, scale, splits > 1 ? parts : out, plan));
  if (splits > 1)
    add_parts<<<132 * 4, 256>>>(reinterpret_cast<const float4*>(parts), reinterpret_cast<float4*>(out), m * j / 4,
                                splits);
  OK(cudaGetLastError());
}

// ---- Quantisers ----

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the nearest integer, halves to even
constexpr float kLeast = 1e-30f;

__device__ uint32_t code(float v, float inverse) { return __float_as_uint(__fadd_rn(__fmul_rn(v, inverse), kRound)); }
__device__ float inverse_of(float absmax) { return __fdiv_rn(127.0f, fmaxf(absmax, kLeast)); }
__device__ float scale_of(float absmax) { return __fdiv_rn(fmaxf(absmax, kLeast), 127.0f); }
__device__ uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}
/// Transposes 4 x 4 bytes.
__device__ void transpose(uint32_t (&x)[4]) {
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
__device__ float element(const Four& x, int i) {
  if constexpr (sizeof(In) == 2)
    return x.bf16(i);
  else
    return x.int8(i);
}

enum class Way { copy, both, blocks, tile };

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
  Four in[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) in[i].load(x + (row + i) * o + col);
  uint32_t words[4][4];  // of each column, 16 rows
  if constexpr (kWay == Way::copy) {
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      uint32_t four[4] = {in[4 * g].lo, in[4 * g + 1].lo, in[4 * g + 2].lo, in[4 * g + 3].lo};
      transpose(four);
#pragma unroll
      for (int c = 0; c < 4; ++c) words[c][g] = four[c];
    }
  } else {
    if constexpr (kWay == Way::both) {
      const float inverses = inverse_of(row_absmax[row + lane % 16]);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const float r = __shfl_sync(0xffffffffu, inverses, i);
        uint32_t q[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) q[c] = code(element<In>(in[i], c), r);
        *reinterpret_cast<uint32_t*>(rows + (row + i) * o + col) = low_bytes(q[0], q[1], q[2], q[3]);
      }
    }
#pragma unroll
    for (Four& x : in) x.forget();
    const float factors = factor[row + lane % 16];
    float absmax[4] = {};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float f = __shfl_sync(0xffffffffu, factors, i);
#pragma unroll
      for (int c = 0; c < 4; ++c) absmax[c] = fmaxf(absmax[c], fabsf(__fmul_rn(element<In>(in[i], c), f)));
    }
#pragma unroll
    for (Four& x : in) x.forget();
    if constexpr (kWay == Way::tile) {
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
    if (warp == 0)
      *reinterpret_cast<float4*>(scale + blockIdx.y * stride + col) = {scale_of(absmax[0]), scale_of(absmax[1]),
                                                                       scale_of(absmax[2]), scale_of(absmax[3])};
    float inverse[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) inverse[c] = inverse_of(absmax[c]);
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      uint32_t four[4];
      float f[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) f[i] = __shfl_sync(0xffffffffu, factors, 4 * g + i);
      if constexpr (kWay == Way::tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t q[4];
#pragma unroll
          for (int c = 0; c < 4; ++c) q[c] = code(__fmul_rn(element<In>(in[4 * g + i], c), f[i]), inverse[c]);
          four[i] = low_bytes(q[0], q[1], q[2], q[3]);
          *reinterpret_cast<uint32_t*>(rows + (row + 4 * g + i) * o + col) = four[i];
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
void launch_quantise_rows(const Bf16* x, int8_t* codes, float* step, int64_t n, int64_t o) {
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

// ---- Inputs and plain kernels ----

__device__ uint32_t hash(uint64_t i, uint32_t seed) {
  uint64_t x = i * 0x9e3779b97f4a7c15u + seed * 0xd1b54a32d192ed03u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  return uint32_t(x >> 32);
}
/// About normal, standard deviation 1, at most 3.5.
__device__ float normal(uint64_t i, uint32_t seed) {
  const uint32_t a = hash(i, seed), b = hash(i, seed + 77);
  float sum = 0;
  for (int k = 0; k < 4; ++k) sum += float(a >> 8 * k & 255) + float(b >> 8 * k & 255);
  return (sum - 1020.0f) * (1.0f / 209.0f);
}
#define EACH(i, size) \
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < (size); i += int64_t(gridDim.x) * blockDim.x)
__global__ void fill_codes(int8_t* q, int64_t size, uint32_t seed) {
  EACH(i, size) q[i] = int8_t(max(-127.0f, min(127.0f, normal(i, seed) * 34.0f)));
}
__global__ void fill_weights(int8_t* w, int64_t size, uint32_t seed) {
  EACH(i, size) w[i] = int8_t(hash(i, seed) % 3) - 1;
}
__global__ void fill_floats(float* x, int64_t size, uint32_t seed) {
  EACH(i, size) x[i] = ldexpf(1.0f + hash(i, seed) * 0x1p-32f, -int(hash(i, seed + 1) % 6));
}
/// Gradients: rows of different sizes.
__global__ void fill_gradients(Bf16* x, int64_t n, int64_t o, uint32_t seed) {
  EACH(i, n * o) x[i] = __float2bfloat16_rn(ldexpf(normal(i, seed), -14 - int(hash(i / o, seed + 5) % 5)));
}
__global__ void find_absmax(const Bf16* x, float* absmax, int64_t n, int64_t o) {
  EACH(i, n) {
    float most = 0;
    for (int64_t c = 0; c < o; ++c) most = fmaxf(most, fabsf(__bfloat162float(x[i * o + c])));
    absmax[i] = most;
  }
}
template <class To, class From>
__global__ void convert(To* to, const From* from, int64_t size) {
  EACH(i, size) to[i] = To(float(from[i]));
}
template <class T>
__global__ void transpose_plainly(const T* from, T* to, int64_t rows, int64_t cols) {
  EACH(i, rows * cols) to[i % cols * rows + i / cols] = from[i];
}
template <class In>
__device__ float value(In x) {
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

bool check_all() {
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

// ---- Times ----

double median_us(int runs, const std::function<void(int)>& body) {
  std::vector<cudaEvent_t> events(runs + 1);
  for (cudaEvent_t& e : events) OK(cudaEventCreate(&e));
  for (int i = 0; i < 3; ++i) body(i);
  for (int i = 0; i < runs; ++i) {
    OK(cudaEventRecord(events[i]));
    body(i);
  }
  OK(cudaEventRecord(events[runs]));
  OK(cudaDeviceSynchronize());
  std::vector<float> ms(runs);
  for (int i = 0; i < runs; ++i) OK(cudaEventElapsedTime(&ms[i], events[i], events[i + 1]));
  for (cudaEvent_t e : events) OK(cudaEventDestroy(e));
  std::nth_element(ms.begin(), ms.begin() + runs / 2, ms.end());
  return ms[runs / 2] * 1e3;
}

/// d [cols, rows] (column-major) = a [cols, depth] · op(b) of cuBLASLt in bf16 with the fastest of its first eight
/// heuristics.
struct BlasProduct {
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t a, b, d;
  Buffer<char> workspace{size_t(32) << 20};
  cublasLtMatmulHeuristicResult_t found[8];
  int count = 0, best = 0;

  BlasProduct(int64_t cols, int64_t rows, int64_t depth, bool turn_b, cudaDataType out) {
    OK(cublasLtCreate(&handle));
    OK(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t turn = turn_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    OK(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSB, &turn, sizeof(turn)));
    OK(cublasLtMatrixLayoutCreate(&a, CUDA_R_16BF, cols, depth, cols));
    if (turn_b)
      OK(cublasLtMatrixLayoutCreate(&b, CUDA_R_16BF, rows, depth, rows));
    else
      OK(cublasLtMatrixLayoutCreate(&b, CUDA_R_16BF, depth, rows, depth));
    OK(cublasLtMatrixLayoutCreate(&d, out, cols, rows, cols));
    cublasLtMatmulPreference_t preference;
    OK(cublasLtMatmulPreferenceCreate(&preference));
    OK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace.size,
                                            sizeof(workspace.size)));
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    OK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                            sizeof(schemes)));
    OK(cublasLtMatmulAlgoGetHeuristic(handle, operation, a, b, d, d, preference, 8, found, &count));
    OK(cublasLtMatmulPreferenceDestroy(preference));
  }
  ~BlasProduct() {
    cublasLtMatrixLayoutDestroy(a);
    cublasLtMatrixLayoutDestroy(b);
    cublasLtMatrixLayoutDestroy(d);
    cublasLtMatmulDescDestroy(operation);
    cublasLtDestroy(handle);
  }
  void operator()(const void* a_data, const void* b_data, void* d_data) const {
    const float one = 1, zero = 0;
    OK(cublasLtMatmul(handle, operation, &one, a_data, a, b_data, b, &zero, d_data, d, d_data, d, &found[best].algo,
                      workspace.data, workspace.size, nullptr));
  }
  double tune(const std::function<void(int)>& body) {
    std::vector<double> times;
    for (best = 0; best < count; ++best) times.push_back(median_us(5, body));
    best = int(std::min_element(times.begin(), times.end()) - times.begin());
    return median_us(25, body);
  }
};

struct Times {
  double bf16_dx, bf16_dw;
  double dx;                                                                         // int8 rows by wᵀ
  double as_stored, no_turns, turned_rows, turned_columns, turned_tile, other_side;  // dw
  double rows, both, blocks, tile;                                                   // of dy, from bf16
  double again_dy, again_x, copy_x;  // int8 to blocks of dy, of x; x transposed
};

constexpr int kSets = 2;  // of buffers, used in turn

Times time_projection(int64_t n, int64_t o, int64_t k) {
  struct Set {
    Buffer<Bf16> dy, x, dx;
    Buffer<int8_t> dy_rows, dy_blocks, x_codes, x_blocks;
    Buffer<float> dw;
    Set(int64_t n, int64_t o, int64_t k)
        : dy(n * o),
          x(n * k),
          dx(n * k),
          dy_rows(n * o),
          dy_blocks(n * o),
          x_codes(n * k),
          x_blocks(n * k),
          dw(o * k) {}
  };
  const int64_t most = std::max(up(o, 256), up(k, 256));
  Buffer<float> absmax(n), factor(n), step(n), scale(n / 128 * most), parts(kMostSplits * o * k), one(1);
  Buffer<int8_t> w(o * k);
  Buffer<Bf16> w_bf16(o * k);
  fill_weights<<<1024, 256>>>(w.data, o * k, 3);
  convert<<<1024, 256>>>(w_bf16.data, w.data, o * k);
  fill_floats<<<64, 256>>>(factor.data, n, 4);
  fill_floats<<<64, 256>>>(one.data, 1, 4);
  std::vector<std::unique_ptr<Set>> sets;
  for (int i = 0; i < kSets; ++i) {
    sets.push_back(std::make_unique<Set>(n, o, k));
    Set& s = *sets.back();
    fill_gradients<<<1024, 256>>>(s.dy.data, n, o, 10 + i);
    find_absmax<<<256, 128>>>(s.dy.data, absmax.data, n, o);
    fill_codes<<<1024, 256>>>(s.x_codes.data, n * k, 20 + i);
    convert<<<1024, 256>>>(s.x.data, s.x_codes.data, n * k);
    launch_quantise_rows(s.dy.data, s.dy_rows.data, step.data, n, o);
    launch_quantise<Bf16, Way::blocks>(s.dy.data, absmax.data, factor.data, s.dy_rows.data, s.dy_blocks.data,
                                       scale.data, n, o);
    launch_quantise<int8_t, Way::blocks>(s.x_codes.data, absmax.data, factor.data, nullptr, s.x_blocks.data, scale.data,
                                         n, k);
  }
  OK(cudaDeviceSynchronize());
  const auto time = [&](const std::function<void(Set&)>& body) {
    return median_us(25, [&](int i) { body(*sets[i % kSets]); });
  };
  Times t{};
  {
    BlasProduct product(k, n, o, false, CUDA_R_16BF);
    t.bf16_dx = product.tune([&](int i) { product(w_bf16.data, sets[i % kSets]->dy.data, sets[i % kSets]->dx.data); });
  }
  {
    BlasProduct product(k, o, n, true, CUDA_R_32F);
    t.bf16_dw = product.tune([&](int i) {
      Set& s = *sets[i % kSets];
      product(s.x.data, s.dy.data, s.dw.data);
    });
  }
  t.dx = time([&](Set& s) { ternary_mma(s.dy_rows.data, step.data, w.data, one.data, s.dx.data, n, k, o, nullptr); });
  t.as_stored = time([&](Set& s) {
    block_mma<false, Scale::rows>(s.dy_blocks.data, s.x_blocks.data, scale.data, parts.data, s.dw.data, o, k, n);
  });
  t.turned_rows = time([&](Set& s) {
    block_mma<true, Scale::rows>(s.dy_rows.data, s.x_blocks.data, scale.data, parts.data, s.dw.data, o, k, n);
  });
  t.turned_columns = time([&](Set& s) {
    block_mma<true, Scale::columns>(s.dy_rows.data, s.x_blocks.data, scale.data, parts.data, s.dw.data, o, k, n);
  });
  t.no_turns = time([&](Set& s) {
    block_mma<true, Scale::columns, false>(s.dy_rows.data, s.x_blocks.data, scale.data, parts.data, s.dw.data, o, k, n);
  });
  t.turned_tile = time([&](Set& s) {
    block_mma<true, Scale::tile>(s.dy_rows.data, s.x_blocks.data, scale.data, parts.data, s.dw.data, o, k, n);
  });
  t.other_side = time([&](Set& s) {
    block_mma<true, Scale::columns>(s.x_codes.data, s.dy_blocks.data, scale.data, parts.data, s.dw.data, k, o, n);
  });
  t.rows = time([&](Set& s) { launch_quantise_rows(s.dy.data, s.dy_rows.data, step.data, n, o); });
  t.both = time([&](Set& s) {
    launch_quantise<Bf16, Way::both>(s.dy.data, absmax.data, factor.data, s.dy_rows.data, s.dy_blocks.data, scale.data,
                                     n, o);
  });
  t.blocks = time([&](Set& s) {
    launch_quantise<Bf16, Way::blocks>(s.dy.data, absmax.data, factor.data, nullptr, s.dy_blocks.data, scale.data, n,
                                       o);
  });
  t.tile = time([&](Set& s) {
    launch_quantise<Bf16, Way::tile>(s.dy.data, absmax.data, factor.data, s.dy_rows.data, s.dy_blocks.data, scale.data,
                                     n, o);
  });
  t.again_dy = time([&](Set& s) {
    launch_quantise<int8_t, Way::blocks>(s.dy_rows.data, absmax.data, factor.data, nullptr, s.dy_blocks.data,
                                         scale.data, n, o);
  });
  t.again_x = time([&](Set& s) {
    launch_quantise<int8_t, Way::blocks>(s.x_codes.data, absmax.data, factor.data, nullptr, s.x_blocks.data, scale.data,
                                         n, k);
  });
  t.copy_x = time([&](Set& s) {
    launch_quantise<int8_t, Way::copy>(s.x_codes.data, absmax.data, factor.data, nullptr, s.x_blocks.data, scale.data,
                                       n, k);
  });
  OK(cudaGetLastError());
  return t;
}

struct Projection {
  int64_t o, k;
  int count;
};
struct Model {
  const char* name;
  int64_t n;
  int layers;
  std::vector<Projection> projections;
};

void time_model(const Model& model) {
  std::printf("\n%s, %lld rows. Products in us (Top/s), quantisers in us (GB/s)\n", model.name, (long long)model.n);
  double now = 0, dx_only = 0, dx_free = 0, way_a = 0, way_b = 0, way_d = 0, smaller = 0, products = 0, quantisers = 0;
  for (const Projection& p : model.projections) {
    const Times t = time_projection(model.n, p.o, p.k);
    const double operations = 2.0 * model.n * p.o * p.k, dy = double(model.n) * p.o, x = double(model.n) * p.k;
    const auto rate = [&](const char* name, double us) {
      std::printf("  %-44s %8.1f (%5.0f)\n", name, us, operations / us * 1e-6);
    };
    const auto moved = [&](const char* name, double us, double bytes) {
      std::printf("  %-44s %8.1f (%5.0f)\n", name, us, bytes / us * 1e-3);
    };
    std::printf(" o %lld, k %lld, %d of them in a layer, dw in %d parts\n", (long long)p.o, (long long)p.k, p.count,
                splits_of(up(p.o, 256) / 256 * (up(p.k, 256) / 256), model.n / 128));
    rate("bf16 dx, cuBLASLt", t.bf16_dx);
    rate("bf16 dw, cuBLASLt", t.bf16_dw);
    rate("int8 dx", t.dx);
    rate("int8 dw, two transposed copies, row scales", t.as_stored);
    rate("int8 dw, dy turned inside, row scales", t.turned_rows);
    rate("int8 dw, dy turned inside, column scales", t.turned_columns);
    rate("the same, warpgroups not in turn", t.no_turns);
    rate("int8 dw, dy turned inside, tile scales", t.turned_tile);
    rate("int8 dw, x turned inside, column scales", t.other_side);
    moved("dy to rows", t.rows, 3 * dy);
    moved("dy to rows and blocks (a)", t.both, 4 * dy);
    moved("dy to blocks", t.blocks, 3 * dy);
    moved("dy to tiles, two layouts (b)", t.tile, 4 * dy);
    moved("rows of dy to blocks", t.again_dy, 2 * dy);
    moved("codes of x to blocks", t.again_x, 2 * x);
    moved("codes of x transposed", t.copy_x, 2 * x);
    std::fflush(stdout);
    const double c = p.count * model.layers * 1e-3, saved = dy / 2.8e6;  // one byte less of dy written by its producer
    now += c * (t.bf16_dx + t.bf16_dw);
    dx_only += c * (t.rows + t.dx + t.bf16_dw);
    dx_free += c * (saved + t.dx + t.bf16_dw);
    way_a += c * (t.both + t.copy_x + t.dx + t.as_stored);
    way_b += c * (t.tile + t.copy_x + t.dx + t.turned_tile);
    way_d += c * (t.both + t.dx + t.other_side);
    products += c * (t.dx + std::min(t.turned_columns, t.other_side));
    quantisers += c * (p.o > p.k ? t.again_x - saved : t.both);
    smaller += c * (p.o > p.k ? t.again_x - saved + t.dx + t.turned_columns : t.both + t.dx + t.other_side);
  }
  std::printf(" ms of a step: %s\n", model.name);
  const auto total = [&](const char* name, double ms) {
    std::printf("  %-72s %7.2f  gain %6.2f\n", name, ms, now - ms);
  };
  total("now: bf16", now);
  total("int8 dx, dy to rows in a pass", dx_only);
  total("int8 dx, rows written by the producer beside bf16", dx_free);
  total("(a) rows and blocks of dy, transposed copy of x", way_a);
  total("(b) tiles of dy in two layouts, transposed copy of x", way_b);
  total("(c) rows and blocks of dy, x turned inside", way_d);
  total("(d) as (c); o > k: producer writes rows alone, blocks of x", smaller);
  std::printf("  of (d): products %.2f, quantisers %.2f\n", products, quantisers);
  std::fflush(stdout);
}

const std::vector<Model> kModels = {{"370M", 32768, 24, {{1024, 1024, 4}, {5632, 1024, 1}, {1024, 2816, 1}}},
                                    {"1.3B", 16384, 24, {{2048, 2048, 4}, {11264, 2048, 1}, {2048, 5632, 1}}},
                                    {"50M", 65536, 12, {{512, 512, 4}, {2816, 512, 1}, {512, 1408, 1}}}};

}  // namespace

int main(int count, char** names) {
  if (!mmfree::cuda::ternary_mma_fits(128, 128, 128)) {
    std::printf("skipped: this GPU is no Hopper\n");
    return 0;
  }
  const bool right = check_all();
  for (const Model& model : kModels)
    if (count < 2 || std::find(names + 1, names + count, std::string(model.name)) != names + count) time_model(model);
  return right ? 0 : 1;
}
