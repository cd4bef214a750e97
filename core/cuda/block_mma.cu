#include <algorithm>

#include "core/cuda/block_mma.h"
#include "core/cuda/common.cuh"
#include "core/cuda/hopper.cuh"
#include "core/ops/ternary_int8.h"

/// A cluster of two thread blocks has a tile of 256 x 256 of the output over a part of the depth, each block 128 rows.
/// Tiles of the operands are 128 of the depth and wait in two rings: of a [n, m] 128 rows of 128 bytes, stored across
/// the depth, so that a warp turns its operand while it loads it to registers; of x [j, n] 128 rows, half of the
/// columns of the output, of which each block loads one half for both. A multiplying warpgroup has 64 rows and 256
/// columns of sums in f32. For each scale block it loads a to registers and gives those tiles back at once; then it
/// multiplies half of its columns at a time, adds the integer sums times their scales, and gives the tiles of x back.
/// So copies have about the time of one and a half scale blocks to arrive.
namespace mmfree::cuda {
namespace {

using namespace hopper;

constexpr int kRows = 128, kCols = 256, kDepth = 128, kHalf = kCols / 2;
constexpr int kSteps = int(kActivationBlock) / kDepth;  // tiles of a scale block
constexpr int kATiles = 2 * kSteps, kXTiles = 9;        // of the rings
constexpr int kThreads = kGroup * (1 + kGroups);
constexpr int kABytes = kRows * kDepth, kXBytes = kHalf * kDepth, kScaleBytes = kHalf * 4;
constexpr int kXAt = kATiles * kABytes;
constexpr int kScalesAt = kXAt + kXTiles * kXBytes;
constexpr int kBarriersAt = kScalesAt + kXTiles * kScaleBytes;
constexpr int kSharedBytes = kBarriersAt + 2 * (kATiles + kXTiles) * 8;
static_assert(kSharedBytes <= 227 * 1024);
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
  __device__ uint32_t a(int tile) const { return at + tile * kABytes; }
  __device__ uint32_t x(int tile) const { return at + kXAt + tile * kXBytes; }
  __device__ uint32_t scales(int tile) const { return at + kScalesAt + tile * kScaleBytes; }
  __device__ uint32_t full_a(int tile) const { return at + kBarriersAt + tile * 8; }
  __device__ uint32_t full_x(int tile) const { return full_a(kATiles + tile); }
  __device__ uint32_t empty_a(int tile) const { return full_x(kXTiles + tile); }
  __device__ uint32_t empty_x(int tile) const { return empty_a(kATiles + tile); }
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

/// The loading thread: all tiles of the thread block. The scales of half of the columns come with its last tile of x.
__device__ void load_tiles(const CUtensorMap& a_map, const CUtensorMap& x_map, const float* scale, const Plan& plan,
                           Shared shared, int block) {
  constexpr int kShare = kHalf / kCluster;
  Ring<kATiles> a;
  Ring<kXTiles> x;
  for (int index = blockIdx.x / kCluster; index < plan.rows * plan.cols * plan.parts; index += gridDim.x / kCluster) {
    const Item at(plan, index);
    const int row = (at.row * kCluster + block) * kRows;
    for (int b = at.begin; b < at.end; ++b) {
      for (int s = 0; s < kSteps; ++s, a.next()) {
        barrier_wait(shared.empty_a(a.stage), a.parity ^ 1);
        barrier_expect(shared.full_a(a.stage), kABytes);
        load_box(shared.a(a.stage), a_map, row, (b * kSteps + s) * kDepth, shared.full_a(a.stage));
      }
      for (int i = 0; i < 2 * kSteps; ++i, x.next()) {
        const int col = at.col * kCols + i / kSteps * kHalf, depth = (b * kSteps + i % kSteps) * kDepth;
        const bool last = i % kSteps == kSteps - 1;
        const uint32_t full = shared.full_x(x.stage);
        barrier_wait(shared.empty_x(x.stage), x.parity ^ 1);
        barrier_expect(full, kXBytes + (last ? kScaleBytes : 0));
        load_box_everywhere(shared.x(x.stage) + block * kShare * kDepth, x_map, depth, col + block * kShare, full);
        if (last) load_bytes(shared.scales(x.stage), scale + int64_t(b) * plan.stride + col, kScaleBytes, full);
      }
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

/// The 16 rows of a warp in a scale block, from `first` on in the ring. Its tiles have one parity, because the ring
/// holds two blocks.
__device__ void load_rows(uint32_t (&rows)[kSteps][kDepth / 32][4], Shared shared, Ring<kATiles> first, int warp) {
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    barrier_wait(shared.full_a(first.stage + s), first.parity);
#pragma unroll
    for (int k = 0; k < kDepth / 32; ++k) load_transposed(rows[s][k], shared.a(first.stage + s), warp, k);
  }
}

/// A multiplying warpgroup: all tiles of the thread block.
__device__ void multiply_tiles(float* out, float* parts, const uint8_t* memory, const Plan& plan, Shared shared,
                               int block, int group) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  Ring<kATiles> a;
  Ring<kXTiles> x;
  const auto release_x = [&](int tile) {
    if (lane < kCluster) barrier_arrive(shared.empty_x(tile), lane);
  };
  const Turns turns(group);
  for (int index = blockIdx.x / kCluster; index < plan.rows * plan.cols * plan.parts; index += gridDim.x / kCluster) {
    const Item at(plan, index);
    float total[2][64];
#pragma unroll
    for (int i = 0; i < 64; ++i) total[0][i] = 0, total[1][i] = 0;
    for (int b = at.begin; b < at.end; ++b) {
      uint32_t rows[kSteps][kDepth / 32][4];
      load_rows(rows, shared, a, group * 4 + warp);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int sums[64], tile[kSteps];
        turns.begin();
#pragma unroll
        for (int s = 0; s < kSteps; ++s, x.next()) {
          tile[s] = x.stage;
          barrier_wait(shared.full_x(x.stage), x.parity);
          multiply_begin();
#pragma unroll
          for (int k = 0; k < kDepth / 32; ++k)
            multiply(sums, rows[s][k], matrix(shared.x(x.stage)) + 2 * k, s + k > 0);
        }
        multiply_commit();
        turns.pass();
        if (half == 0) {  // a is in registers
          __syncwarp();
#pragma unroll
          for (int s = 0; s < kSteps; ++s, a.next())
            if (lane == 0) barrier_arrive(shared.empty_a(a.stage), block);
        }
        multiply_wait_all(sums);
#pragma unroll
        for (int s = 0; s < kSteps - 1; ++s) release_x(tile[s]);
        add_scaled(total[half], sums,
                   reinterpret_cast<const float*>(memory + kScalesAt + tile[kSteps - 1] * kScaleBytes));
        __syncwarp();
        release_x(tile[kSteps - 1]);
      }
    }
    const int row = (at.row * kCluster + block) * kRows + group * 64 + warp * 16 + 2 * (lane / 4);
    float* to = at.part ? parts + int64_t(at.part - 1) * plan.m * plan.j : out;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      store_sums(to, total[half], plan, row, at.col * kCols + half * kHalf, at.part == 0 && plan.beta != 0);
  }
  turns.end();
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
    for (int i = 0; i < kATiles; ++i) {
      barrier_init(shared.full_a(i), 1);
      barrier_init(shared.empty_a(i), kGroups * 4);
    }
    for (int i = 0; i < kXTiles; ++i) {
      barrier_init(shared.full_x(i), 1);
      barrier_init(shared.empty_x(i), kGroups * 4 * kCluster);
    }
    barrier_init_done();
  }
  cluster_sync();
  begin_kernel();
  const int group = threadIdx.x / kGroup;
  if (group == kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == kGroup * kGroups) load_tiles(a_map, x_map, scale, plan, shared, block);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
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
  const CUtensorMap x_map = rows_map(p.x, p.j, blocks * kActivationBlock, kHalf / kCluster);
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
