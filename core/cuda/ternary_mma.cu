#include <algorithm>

#include "core/cuda/ternary_mma.cuh"

/// y = q wᵀ on Hopper's tensor cores, for all shapes; ternary_mma_short.cu is faster at some. The grid is persistent:
/// clusters of two blocks, one block per multiprocessor.
///
/// Tile. A cluster computes 256 x 256 tiles of y, each block 128 rows, each multiplying warpgroup 64:
///
///                                     256 columns of y = rows of w
///                  block 0 loads rows 0..127 of w | block 1 loads rows 128..255 of w
///                  +------------------------------------------------------------+
///     block 0      | warpgroup 0:  64 rows x 256 sums, int32, 128 per thread    |
///     128 rows     | warpgroup 1:  64 rows x 256                                |
///                  +------------------------------------------------------------+
///     block 1      | warpgroup 0:  64 rows x 256                                |
///     128 rows     | warpgroup 1:  64 rows x 256                                |
///                  +------------------------------------------------------------+
///
/// Each block loads its own 128 rows of q and one half of the tile's rows of w, which the copy engine (TMA) writes to
/// the shared memory of both blocks (multicast).
///
/// Stage. A tile is computed in steps of 128 elements of depth k. A stage holds one step: 128 rows of q (16 KiB) and
/// 256 rows of w (32 KiB). A block has a ring of 4 stages, with two barriers each:
///
///     warpgroup 2, one thread   -- TMA -->   stage 0 | 1 | 2 | 3   -- wgmma -->   warpgroups 0 and 1
///       waits for `empty`                                                           wait for `full`
///
///   full   the 48 KiB of the stage have arrived: from this block, and the other half of w from the other block
///   empty  all 16 multiplying warps of the cluster have read the stage; they arrive at the barriers of both blocks,
///          because each block writes to both
namespace mmfree::cuda {
namespace {

using namespace hopper;
using namespace ternary;

constexpr int kStages = 4;
constexpr int kThreads = kGroup * (1 + kGroups);
constexpr int kRowBytes = kRows * kDepth, kColBytes = kCols * kDepth;
constexpr int kBandRows = 2048;  // see Plan
/// Offsets in shared memory. Tiles are swizzled in atoms of 1024 bytes and start at multiples of them.
constexpr int kColsAt = kStages * kRowBytes;
constexpr int kBarriersAt = kColsAt + kStages * kColBytes;
constexpr int kSharedBytes = kBarriersAt + 2 * kStages * 8;
static_assert(kSharedBytes <= 227 * 1024);

/// How y is divided into tiles, and their order: bands of `band` rows of tiles, and inside a band column after column.
/// The rows of q of a band then stay in the L2 cache while all of w is read once.
struct Plan {
  int rows, cols;  // of the grid of tiles
  int band;        // rows of tiles in a band
  int depth;       // steps of kDepth in a tile
  int n, o;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kParts = 4;  // parts in which a tile is stored, see Finished

struct Tile {
  int row, col;
};

__device__ Tile tile_at(const Plan& plan, int index) {
  const int in_band = plan.band * plan.cols;
  const int first = index / in_band * plan.band;
  const int height = max(1, min(plan.band, plan.rows - first));  // at least 1 for an index past the last tile, not used
  const int rest = index % in_band;
  return {first + rest % height, rest / height};
}

/// Starts a copy of rows of w from `row` on to the same address in every block of the cluster. The bytes count at the
/// barrier of each block.
template <bool Direct>
__device__ void load_cols(uint32_t to, const CUtensorMap& map, int x, int row, uint32_t barrier) {
  if constexpr (Direct)
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3, %3, %3, %4}], [%5], %6;" ::"r"(to),
        "l"(&map), "r"(x), "r"(0), "r"(row / 32), "r"(barrier), "h"(uint16_t((1 << kCluster) - 1))
        : "memory");
  else
    load_box_everywhere(to, map, x, row, barrier);
}

struct Shared {
  uint32_t at;  // address of the start of shared memory
  __device__ uint32_t rows(int stage) const { return at + stage * kRowBytes; }
  __device__ uint32_t cols(int stage) const { return at + kColsAt + stage * kColBytes; }
  __device__ uint32_t full(int stage) const { return at + kBarriersAt + stage * 8; }
  __device__ uint32_t empty(int stage) const { return at + kBarriersAt + (kStages + stage) * 8; }
};

/// The loading thread: all tiles of the cluster, stage after stage.
template <bool Direct>
__device__ void load_tiles(const CUtensorMap& q_map, const CUtensorMap& w_map, const Plan& plan, Shared shared,
                           int block) {
  constexpr int kShare = kCols / kCluster;
  Ring<kStages> ring;
  for (int index = blockIdx.x / kCluster; index < plan.rows * plan.cols; index += gridDim.x / kCluster) {
    const Tile tile = tile_at(plan, index);
    const int row = (tile.row * kCluster + block) * kRows, col = tile.col * kCols + block * kShare;
    for (int l = 0; l < plan.depth; ++l, ring.next()) {
      barrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
      const uint32_t full = shared.full(ring.stage);
      barrier_expect(full, kRowBytes + kColBytes);
      load_box(shared.rows(ring.stage), q_map, l * kDepth, row, full);
      const uint32_t to = shared.cols(ring.stage) + block * kShare * kDepth;
      load_cols<Direct>(to, w_map, l * kDepth, col, full);
    }
  }
}

/// The new elements plus beta times the old ones, as pairs of bf16.
__device__ uint32_t sum_pair(uint32_t added, uint32_t old, float beta) {
  const float2 a = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(added)),
               b = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(old));
  const __nv_bfloat162 pair =
      __floats2bfloat162_rn(__fadd_rn(__fmul_rn(beta, b.x), a.x), __fadd_rn(__fmul_rn(beta, b.y), a.y));
  return reinterpret_cast<const uint32_t&>(pair);
}

/// A thread's elements of y of a finished tile. They are stored in kParts parts while the next tile is multiplied, so
/// that the products do not wait for the memory. The thread has two rows, 8 apart. Of each it has the columns 8 j +
/// lane % 4 * 2 + {0, 1} of the tile in shared memory; with `Direct`, eight of these are neighbours in y, because
/// shuffled_rows_map has permuted the rows of w. With `Adds` beta times the old elements are added.
template <bool Direct, bool Adds>
struct Finished {
  static constexpr int kBlocks = kCols / 32;
  uint32_t pairs[kBlocks][2][4];
  __nv_bfloat16* to;  // the upper row at the tile's first column
  int o, cols;        // row length of y; columns from `to` to the end of its row
  int rows = 0;       // rows from `to` to the end of y: 0 stores nothing
  float beta;

  __device__ void take(const int (&sums)[kSums], float upper, float lower) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int* s = sums + 16 * b + 4 * j;
        pairs[b][0][j] = scaled_pair(s[0], s[1], upper);
        pairs[b][1][j] = scaled_pair(s[2], s[3], lower);
      }
  }
  /// Stores pairs in one access.
  template <class Word>
  __device__ void put(__nv_bfloat16* at, Word x) const {
    if constexpr (Adds) {
      Word old = *reinterpret_cast<const Word*>(at);
#pragma unroll
      for (int i = 0; i < int(sizeof(Word) / 4); ++i) {
        uint32_t& added = reinterpret_cast<uint32_t*>(&x)[i];
        added = sum_pair(added, reinterpret_cast<const uint32_t*>(&old)[i], beta);
      }
    }
    *reinterpret_cast<Word*>(at) = x;
  }
  __device__ void store(int part) const {
#pragma unroll
    for (int b = part * kBlocks / kParts; b < (part + 1) * kBlocks / kParts; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (8 * half >= rows) continue;
        const uint32_t* x = pairs[b][half];
        __nv_bfloat16* at = to + half * 8 * int64_t(o) + 32 * b;
        const int t = threadIdx.x % 4;
        if constexpr (Direct) {
          if (32 * b < cols) put(at + 8 * t, uint4{x[0], x[1], x[2], x[3]});
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j)
            if (32 * b + 8 * j < cols) put(at + 8 * j + 2 * t, x[j]);
        }
      }
  }
};

/// A multiplying warpgroup: its 64 rows of all tiles of the block.
template <bool Direct, bool Adds>
__device__ void multiply_tiles(__nv_bfloat16* y, const float* step, float scale, float beta, const Plan& plan,
                               Shared shared, int block, int group) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  Ring<kStages> ring;
  int sums[kSums];
  const auto release = [&](int stage) {
    if (lane < kCluster) barrier_arrive(shared.empty(stage), lane);
  };
  Finished<Direct, Adds> finished;
  finished.beta = beta;
  int index = blockIdx.x / kCluster;
  Tile tile = tile_at(plan, index);
  for (; index < plan.rows * plan.cols; index += gridDim.x / kCluster) {
    const int row = (tile.row * kCluster + block) * kRows + group * 64 + warp * 16;
    const int upper = row + lane / 4, lower = upper + 8, col = tile.col * kCols;
    const float upper_step = upper < plan.n ? step[upper] : 0.0f, lower_step = lower < plan.n ? step[lower] : 0.0f;
    int before = 0;
    for (int l = 0; l < plan.depth; ++l) {
      barrier_wait(shared.full(ring.stage), ring.parity);
      const uint64_t a = matrix(shared.rows(ring.stage) + group * 64 * kDepth), b = matrix(shared.cols(ring.stage));
      multiply_begin();
#pragma unroll
      for (int k = 0; k < kDepth / 32; ++k) multiply(sums, a + 2 * k, b + 2 * k, l + k > 0);
      multiply_commit();
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (l == part) finished.store(part);
      multiply_wait<1>();
      if (l > 0) release(before);
      before = ring.stage;
      ring.next();
    }
    tile = tile_at(plan, index + gridDim.x / kCluster);
    multiply_wait_all(sums);
    release(before);
#pragma unroll
    for (int part = 1; part < kParts; ++part)
      if (part >= plan.depth) finished.store(part);
    finished.take(sums, __fmul_rn(upper_step, scale), __fmul_rn(lower_step, scale));
    finished.to = y + int64_t(upper) * plan.o + col;
    finished.o = plan.o, finished.cols = plan.o - col, finished.rows = plan.n - upper;
  }
#pragma unroll
  for (int part = 0; part < kParts; ++part) finished.store(part);
}

#endif

template <bool Direct, bool Adds>
__global__ void __launch_bounds__(kThreads, 1)
    ternary_mma_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap w_map,
                       __nv_bfloat16* y, const float* step, const float* scale, float beta, Plan plan) {
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
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == kGroup * kGroups) load_tiles<Direct>(q_map, w_map, plan, shared, block);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    multiply_tiles<Direct, Adds>(y, step, *scale, beta, plan, shared, block, group);
  }
  // No block may exit while the other can still write to its shared memory.
  cluster_sync();
#endif
}

template <bool Direct, bool Adds>
void launch(const int8_t* q, const float* step, const int8_t* w, const float* scale, __nv_bfloat16* y, int64_t n,
            int64_t o, int64_t k, float beta, cudaStream_t stream) {
  const auto tiles = [](int64_t size, int tile) { return int((size + tile - 1) / tile); };
  const CUtensorMap q_map = rows_map(q, n, k, kRows);
  const CUtensorMap w_map = (Direct ? shuffled_rows_map : rows_map)(w, o, k, kCols / kCluster);
  const Plan plan{tiles(n, kRows * kCluster), tiles(o, kCols), kBandRows / (kRows * kCluster),
                  tiles(k, kDepth),           int(n),          int(o)};
  launch_clusters(ternary_mma_kernel<Direct, Adds>, std::min(plan.rows * plan.cols, multiprocessors() / kCluster),
                  kThreads, kSharedBytes, stream, q_map, w_map, y, step, scale, beta, plan);
  check_launch("ternary_mma");
}

}  // namespace

bool ternary_mma_fits(int64_t n, int64_t o, int64_t k) {
  constexpr int64_t kMost = int64_t(1) << 24;  // keeps |sum| <= 128 k below 2^31, and numbers of tiles and rows in int
  return n >= 1 && o >= 1 && k >= 1 && n <= kMost && o <= kMost && k < kMost && k % 16 == 0 && o % 8 == 0 &&
         is_hopper();
}

void ternary_mma(const int8_t* q, const float* step, const int8_t* w, const float* scale, __nv_bfloat16* y, int64_t n,
                 int64_t o, int64_t k, float beta, cudaStream_t stream) {
  MMFREE_CHECK(ShapeError, ternary_mma_fits(n, o, k), "ternary_mma: n ", n, ", o ", o, ", k ", k,
               ": expected a Hopper GPU, sizes from 1 to 2^24, k a multiple of 16 and o of 8");
  for (const void* p : {static_cast<const void*>(q), static_cast<const void*>(w), static_cast<const void*>(y)})
    MMFREE_CHECK(ShapeError, reinterpret_cast<uintptr_t>(p) % 16 == 0,
                 "ternary_mma: q, w and y must start at multiples of 16 bytes");
  if (beta == 0 && ternary_mma_short_pays(n, o, k)) return ternary_mma_short(q, step, w, scale, y, n, o, k, stream);
  const bool direct = o % 32 == 0, adds = beta != 0;
  const auto run =
      direct ? (adds ? launch<true, true> : launch<true, false>) : (adds ? launch<false, true> : launch<false, false>);
  run(q, step, w, scale, y, n, o, k, beta, stream);
}

}  // namespace mmfree::cuda
