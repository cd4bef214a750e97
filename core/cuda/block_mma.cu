#include <algorithm>

#include "core/cuda/block_mma.h"
#include "core/cuda/common.cuh"
#include "core/cuda/hopper.cuh"
#include "core/ops/ternary_int8.h"

/// A cluster of two thread blocks has a tile of 256 x 256 of the output over a part of the depth, each block 128 rows.
/// A stage holds 128 of the depth: of a [n, m] 128 rows of 128 bytes, stored across the depth, so that a warp turns its
/// operand while it loads it to registers; and 256 rows of x, each block loads one half for both. A multiplying
/// warpgroup has 64 rows and 256 columns of sums in f32. It multiplies half of its columns at a time over the stages of
/// one scale block, and then adds the integer sums times their scales.
namespace mmfree::cuda {
namespace {

using namespace hopper;

constexpr int kRows = 128, kCols = 256, kDepth = 128, kHalf = kCols / 2;
constexpr int kStages = 4;
constexpr int kSteps = int(kActivationBlock) / kDepth;  // stages of a scale block
constexpr int kThreads = kGroup * (1 + kGroups);
constexpr int kRowBytes = kRows * kDepth, kColBytes = kCols * kDepth, kScaleBytes = kCols * 4;
constexpr int kColsAt = kStages * kRowBytes;
constexpr int kScalesAt = kColsAt + kStages * kColBytes;
constexpr int kBarriersAt = kScalesAt + kStages * kScaleBytes;
constexpr int kSharedBytes = kBarriersAt + 2 * kStages * 8;
static_assert(kSharedBytes <= 227 * 1024 && kStages % kSteps == 0);
static_assert(127 * 127 * kActivationBlock < int64_t(1) << 22);

struct Plan {
  int rows, cols, parts;  // tiles of the output, parts of the depth
  int blocks;             // of kActivationBlock
  int m, j, stride;
  float beta;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Shared {
  uint32_t at;
  __device__ uint32_t rows(int stage) const { return at + stage * kRowBytes; }
  __device__ uint32_t cols(int stage) const { return at + kColsAt + stage * kColBytes; }
  __device__ uint32_t scales(int stage) const { return at + kScalesAt + stage * kScaleBytes; }
  __device__ uint32_t full(int stage) const { return at + kBarriersAt + stage * 8; }
  __device__ uint32_t empty(int stage) const { return at + kBarriersAt + (kStages + stage) * 8; }
};

/// A tile of the output over a part of the depth.
struct Item {
  int row, col, part, begin, end;
  __device__ Item(const Plan& p, int index) {
    const int tile = index % (p.rows * p.cols);
    part = index / (p.rows * p.cols), row = tile % p.rows, col = tile / p.rows;
    begin = int(int64_t(p.blocks) * part / p.parts), end = int(int64_t(p.blocks) * (part + 1) / p.parts);
  }
};

/// The loading thread: all tiles of the thread block. The scales come with the last stage of their block.
__device__ void load_tiles(const CUtensorMap& a_map, const CUtensorMap& x_map, const float* scale, const Plan& plan,
                           Shared shared, int block) {
  constexpr int kShare = kCols / kCluster;
  Ring<kStages> ring;
  for (int index = blockIdx.x / kCluster; index < plan.rows * plan.cols * plan.parts; index += gridDim.x / kCluster) {
    const Item at(plan, index);
    const int row = (at.row * kCluster + block) * kRows, col = at.col * kCols;
    for (int l = at.begin * kSteps; l < at.end * kSteps; ++l, ring.next()) {
      barrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
      const uint32_t full = shared.full(ring.stage);
      const bool last = l % kSteps == kSteps - 1;
      barrier_expect(full, kRowBytes + kColBytes + (last ? kScaleBytes : 0));
      load_box(shared.rows(ring.stage), a_map, row, l * kDepth, full);
      load_box_everywhere(shared.cols(ring.stage) + block * kShare * kDepth, x_map, l * kDepth, col + block * kShare,
                          full);
      if (last)
        load_bytes(shared.scales(ring.stage), scale + int64_t(l / kSteps) * plan.stride + col, kScaleBytes, full);
    }
  }
}

/// Adds integer sums times the scales of their columns.
__device__ void add_scaled(float (&to)[64], const int (&sums)[64], const float* scales) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float2 s = *reinterpret_cast<const float2*>(scales + 8 * i + 2 * t);
    to[4 * i] = fmaf(float(sums[4 * i]), s.x, to[4 * i]);
    to[4 * i + 1] = fmaf(float(sums[4 * i + 1]), s.y, to[4 * i + 1]);
    to[4 * i + 2] = fmaf(float(sums[4 * i + 2]), s.x, to[4 * i + 2]);
    to[4 * i + 3] = fmaf(float(sums[4 * i + 3]), s.y, to[4 * i + 3]);
  }
}

/// Stores a thread's sums of half a tile: rows `row` and the next one. `adds`: beta times what is there is added.
__device__ void store_sums(float* out, const float (&total)[64], const Plan& plan, int row, int col, bool adds) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int c = col + 8 * i + 2 * (int(threadIdx.x) % 4);
    if (c >= plan.j) continue;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      if (row + pair >= plan.m) continue;
      float2* to = reinterpret_cast<float2*>(out + int64_t(row + pair) * plan.j + c);
      float2 sum{total[4 * i + 2 * pair], total[4 * i + 2 * pair + 1]};
      if (adds) {
        const float2 old = *to;
        sum.x = __fadd_rn(__fmul_rn(plan.beta, old.x), sum.x), sum.y = __fadd_rn(__fmul_rn(plan.beta, old.y), sum.y);
      }
      *to = sum;
    }
  }
}

/// A multiplying warpgroup: all tiles of the thread block.
__device__ void multiply_tiles(float* out, float* parts, const uint8_t* memory, const Plan& plan, Shared shared,
                               int block, int group) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  Ring<kStages> ring;
  for (int index = blockIdx.x / kCluster; index < plan.rows * plan.cols * plan.parts; index += gridDim.x / kCluster) {
    const Item at(plan, index);
    float total[2][64];
#pragma unroll
    for (int i = 0; i < 64; ++i) total[0][i] = 0, total[1][i] = 0;
    for (int b = at.begin; b < at.end; ++b) {
      // The stages of a block have one parity, because their number divides kStages.
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int sums[64];
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int stage = ring.stage + s;
          if (half == 0) barrier_wait(shared.full(stage), ring.parity);
          uint32_t a[kDepth / 32][4];
#pragma unroll
          for (int k = 0; k < kDepth / 32; ++k) load_transposed(a[k], shared.rows(stage), group * 4 + warp, k);
          const uint64_t x = matrix(shared.cols(stage) + half * kHalf * kDepth);
          multiply_begin();
#pragma unroll
          for (int k = 0; k < kDepth / 32; ++k) multiply(sums, a[k], x + 2 * k, s + k > 0);
          multiply_commit();
          multiply_wait_all(sums);
        }
        const int last = ring.stage + kSteps - 1;
        add_scaled(total[half], sums,
                   reinterpret_cast<const float*>(memory + kScalesAt + last * kScaleBytes) + half * kHalf);
      }
      __syncwarp();
#pragma unroll
      for (int s = 0; s < kSteps; ++s, ring.next())
        if (lane < kCluster) barrier_arrive(shared.empty(ring.stage), lane);
    }
    const int row = (at.row * kCluster + block) * kRows + group * 64 + warp * 16 + 2 * (lane / 4);
    float* to = at.part ? parts + int64_t(at.part - 1) * plan.m * plan.j : out;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      store_sums(to, total[half], plan, row, at.col * kCols + half * kHalf, at.part == 0 && plan.beta != 0);
  }
}
#endif

__global__ void __launch_bounds__(kThreads, 1)
    block_mma_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap x_map,
                     const float* scale, float* out, float* parts, Plan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t memory[];
  const Shared shared{address(memory)};
  const int block = blockIdx.x % kCluster;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared.full(i), 1);
      barrier_init(shared.empty(i), kGroups * 4 * kCluster);
    }
    barrier_init_done();
  }
  cluster_sync();
  begin_kernel();
  const int group = threadIdx.x / kGroup;
  if (group == kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == kGroup * kGroups) load_tiles(a_map, x_map, scale, plan, shared, block);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    multiply_tiles(out, parts, memory, plan, shared, block, group);
  }
  cluster_sync();
#endif
}

/// out = ((out + part 1) + part 2) + ...
template <int W>
__global__ void __launch_bounds__(256) add_parts(const float* parts, float* out, int64_t size, int count) {
  begin_kernel();
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * W;
  if (i >= size) return;
  float sum[W], more[W];
  load(sum, out + i);
  for (int part = 0; part < count; ++part) {
    load(more, parts + part * size + i);
#pragma unroll
    for (int k = 0; k < W; ++k) sum[k] = __fadd_rn(sum[k], more[k]);
  }
  store(out + i, sum);
}

void add_parts(const BlockProduct& p) {
  const int more = activation_parts(p.m, p.j, p.n) - 1;
  const int64_t size = p.m * p.j;
  if (more == 0) return;
  const bool wide =
      size % 4 == 0 && reinterpret_cast<uintptr_t>(p.parts) % 16 == 0 && reinterpret_cast<uintptr_t>(p.out) % 16 == 0;
  if (wide)
    launch_kernel(add_parts<4>, {unsigned(ceil_div(size, 4 * 256)), 256}, p.parts, p.out, size, more);
  else
    launch_kernel(add_parts<1>, {unsigned(ceil_div(size, 256)), 256}, p.parts, p.out, size, more);
  check_launch("block_product");
}

/// One output of one part a thread; x runs fastest.
__global__ void __launch_bounds__(256) plain_product(const BlockProduct p, int parts, int64_t stride) {
  begin_kernel();
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, part = blockIdx.y;
  if (at >= p.m * p.j) return;
  const int64_t row = at / p.j, col = at % p.j, blocks = (p.n + kActivationBlock - 1) / kActivationBlock;
  const int64_t depth = blocks * kActivationBlock;
  float total = 0;
  for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b) {
    int32_t sum = 0;
    for (int64_t n = b * kActivationBlock; n < min((b + 1) * kActivationBlock, p.n); ++n)
      sum += int32_t(p.a[n * p.m + row]) * int32_t(p.x[col * depth + n]);
    total = fmaf(float(sum), p.scale[b * stride + col], total);
  }
  if (part)
    p.parts[(part - 1) * p.m * p.j + at] = total;
  else
    p.out[at] = p.beta == 0 ? total : __fadd_rn(__fmul_rn(p.beta, p.out[at]), total);
}

}  // namespace

bool block_mma_fits(const BlockProduct& p) {
  constexpr int64_t kMost = int64_t(1) << 24;
  bool fits = p.m >= 1 && p.j >= 1 && p.n >= 1 && std::max({p.m, p.j, p.n}) <= kMost && p.m % 16 == 0 && p.j % 4 == 0;
  for (const void* at :
       {static_cast<const void*>(p.a), static_cast<const void*>(p.x), static_cast<const void*>(p.scale),
        static_cast<const void*>(p.parts), static_cast<const void*>(p.out)})
    fits = fits && reinterpret_cast<uintptr_t>(at) % 16 == 0;
  return fits && is_hopper();
}

void block_mma(const BlockProduct& p) {
  const int64_t rows = ceil_div(p.m, kRows * kCluster), cols = ceil_div(p.j, kCols),
                blocks = ceil_div(p.n, kActivationBlock);
  const int parts = activation_parts(p.m, p.j, p.n);
  const Plan plan{int(rows), int(cols), parts, int(blocks), int(p.m), int(p.j), int(scale_stride(p.j)), p.beta};
  const CUtensorMap a_map = rows_map(p.a, p.n, p.m, kDepth);
  const CUtensorMap x_map = rows_map(p.x, p.j, blocks * kActivationBlock, kCols / kCluster);
  launch_clusters(block_mma_kernel, std::min<int64_t>(rows * cols * parts, multiprocessors() / kCluster), kThreads,
                  kSharedBytes, stream(), a_map, x_map, p.scale, p.out, p.parts, plan);
  check_launch("block_mma");
  add_parts(p);
}

void block_product(const BlockProduct& p) {
  const int parts = activation_parts(p.m, p.j, p.n);
  launch_kernel(plain_product, {dim3(unsigned(ceil_div(p.m * p.j, 256)), unsigned(parts)), 256}, p, parts,
                scale_stride(p.j));
  check_launch("block_product");
  add_parts(p);
}

}  // namespace mmfree::cuda
