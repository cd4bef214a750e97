#pragma once
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "tests/bench/int8_backward/device.cuh"
#include "tests/bench/int8_backward/hopper.cuh"

/// The product with block scales: out [m, j] = Σ_b scale[b, .] (a bᵀ over block b of 128 of the depth), in int32 within
/// a block and in f32 over blocks.
///
/// A cluster of two thread blocks has a tile of 256 x 256 of the output over a part of the depth. One thread of a block
/// loads tiles into a ring of shared memory; two warpgroups multiply them.
namespace mmfree::int8_backward {

constexpr int kRows = 128, kCols = 256, kDepth = 128;
constexpr int kStages = 4, kGroup = 128, kGroups = 2;
constexpr int kThreads = kGroup * (1 + kGroups);
constexpr int kRowBytes = kRows * kDepth, kColBytes = kCols * kDepth, kScaleBytes = kCols * 4;
constexpr int kColsAt = kStages * kRowBytes;
constexpr int kScalesAt = kColsAt + kStages * kColBytes;
constexpr int kBarriersAt = kScalesAt + kStages * kScaleBytes;
constexpr int kSharedBytes = kBarriersAt + 2 * kStages * 8;
static_assert(kSharedBytes <= 227 * 1024);

/// Whether a scale belongs to a row of the output, to a column, or to 128 columns.
enum class Scale { rows, columns, tile };

/// The shape of a launch.
struct Plan {
  int rows, cols, splits;  // tiles of the cluster, parts of the depth
  int depth;               // steps of kDepth
  int m, j;                // output
  int stride;              // of a block's scales
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Shared memory of a thread block.
struct Shared {
  uint32_t at;
  __device__ uint32_t rows(int stage) const { return at + stage * kRowBytes; }
  __device__ uint32_t cols(int stage) const { return at + kColsAt + stage * kColBytes; }
  __device__ uint32_t scales(int stage) const { return at + kScalesAt + stage * kScaleBytes; }
  __device__ uint32_t full(int stage) const { return at + kBarriersAt + stage * 8; }
  __device__ uint32_t empty(int stage) const { return at + kBarriersAt + (kStages + stage) * 8; }
};
/// A place in the ring of tiles.
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

/// The loading thread: all tiles of the thread block.
template <bool kTransposed, Scale kScale>
__device__ inline void load_tiles(const CUtensorMap& a_map, const CUtensorMap& b_map, const float* scale,
                                  const Plan& plan, Shared shared, int block) {
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

/// Adds a block's integer sums times their scales. `upper`, `lower`: the two rows that the thread has sums of.
template <Scale kScale>
__device__ inline void add_scaled(float (&to)[64], const int (&sums)[64], const float* scales, int upper, int lower,
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
__device__ inline void wait_turn(int group) { asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory"); }
__device__ inline void give_turn(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory"); }

/// A multiplying warpgroup: 64 rows x 256 columns, 128 columns at a time, whose integer sums are added to the float
/// sums after each block of 128 of the depth, while the other warpgroup multiplies.
template <bool kTransposed, Scale kScale, bool kTurns>
__device__ inline void multiply_tiles(float* out, const uint8_t* memory, const Plan& plan, Shared shared, int block,
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

/// A map of bytes [rows, cols] in boxes of box_rows x 128.
inline CUtensorMap bytes_map(const int8_t* data, int64_t rows, int64_t cols, int box_rows) {
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

constexpr int kMostSplits = 16, kClusters = 66;  // parts of the depth, clusters of two of an H100

/// The number of parts of the depth with the least work of the busiest of 66 clusters. A part costs two steps more: its
/// sums are stored and added.
inline int splits_of(int64_t tiles, int64_t depth) {
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

}  // namespace mmfree::int8_backward
