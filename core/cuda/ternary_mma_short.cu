#include <algorithm>

#include "core/cuda/ternary_mma.cuh"

/// y = q wᵀ on Hopper's tensor cores where the depth k is at most 512 and y is wide: a tile then stores about as many
/// bytes as it loads, and there are few products to hide that behind. A block computes tiles of 128 x 256 one below the
/// other. It loads their 256 rows of w once, and copies finished tiles to y through shared memory in whole lines.
///
/// Tiles are numbered down the columns of the grid of tiles, and each block has a run of neighbours. Warpgroup g
/// multiplies rows 64 g .. 64 g + 63 of every tile. The two take turns: one multiplies while the other one stores.
///
/// Shared memory:
///
///   slices    4 of w, each 256 rows x 128 elements of depth (32 KiB)
///   stages    a ring of kStages for each warpgroup, each 64 rows of q x 128 elements (8 KiB)
///   boxes     2 for each warpgroup, each 64 rows of y x 64 columns in bf16 (8 KiB), with the 128-byte swizzle
///
/// Three threads load, one w and one each ring. Barriers:
///
///   full, empty       of each stage: its bytes have arrived; the four warps of its warpgroup have read it
///   w_full, w_empty   of each slice: its bytes have arrived; all eight warps have read it for the last tile of a
///   column
namespace mmfree::cuda::ternary {
namespace {

using namespace hopper;

constexpr int kSlices = 4, kStages = 4, kBoxes = 2;
constexpr int kGroupRows = kRows / kGroups, kBoxCols = 64;
constexpr int kThreads = kGroup * (1 + kGroups);
constexpr int kSliceBytes = kCols * kDepth, kStageBytes = kGroupRows * kDepth, kBoxBytes = kGroupRows * kBoxCols * 2;
/// Offsets in shared memory. Tiles are swizzled in atoms of 1024 bytes and start at multiples of them.
constexpr int kStagesAt = kSlices * kSliceBytes;
constexpr int kBoxesAt = kStagesAt + kGroups * kStages * kStageBytes;
constexpr int kBarriersAt = kBoxesAt + kGroups * kBoxes * kBoxBytes;
constexpr int kSharedBytes = kBarriersAt + (2 * kGroups * kStages + 2 * kSlices) * 8;
static_assert(kSharedBytes <= 227 * 1024);

struct Plan {
  int rows, cols;  // of the grid of tiles
  int depth;       // steps of kDepth in a tile, at most kSlices
  int n, o;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// The tiles of this block: first .. last - 1.
struct Run {
  int first, last;
  __device__ explicit Run(const Plan& plan) {
    const int64_t tiles = int64_t(plan.rows) * plan.cols;
    first = int(tiles * blockIdx.x / gridDim.x), last = int(tiles * (blockIdx.x + 1) / gridDim.x);
  }
};

struct Shared {
  uint32_t at;  // address of the start of shared memory
  __device__ uint32_t slice(int l) const { return at + l * kSliceBytes; }
  __device__ uint32_t stage(int group, int i) const { return at + kStagesAt + (group * kStages + i) * kStageBytes; }
  __device__ uint32_t box(int group, int i) const { return at + kBoxesAt + (group * kBoxes + i) * kBoxBytes; }
  __device__ uint32_t full(int group, int i) const { return at + kBarriersAt + (group * kStages + i) * 8; }
  __device__ uint32_t empty(int group, int i) const { return full(kGroups + group, i); }
  __device__ uint32_t w_full(int l) const { return full(2 * kGroups, l); }
  __device__ uint32_t w_empty(int l) const { return w_full(kSlices + l); }
};

/// Starts a copy of kCols rows of w from `row` on, of the map that shuffled_rows_map makes.
__device__ void load_slice(uint32_t to, const CUtensorMap& map, int x, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %3, %3, %4}], [%5];" ::"r"(to),
      "l"(&map), "r"(x), "r"(0), "r"(row / 32), "r"(barrier)
      : "memory");
}

/// The thread that loads w: the slices of each column that the block's tiles are in.
__device__ void load_slices(const CUtensorMap& map, const Plan& plan, Shared shared) {
  const Run run(plan);
  int parity = 0;
  for (int col = run.first / plan.rows; int64_t(col) * plan.rows < run.last; ++col, parity ^= 1)
    for (int l = 0; l < plan.depth; ++l) {
      barrier_wait(shared.w_empty(l), parity ^ 1);
      barrier_expect(shared.w_full(l), kSliceBytes);
      load_slice(shared.slice(l), map, l * kDepth, col * kCols, shared.w_full(l));
    }
}

/// The thread that loads q for a warpgroup.
__device__ void load_stages(const CUtensorMap& map, const Plan& plan, Shared shared, int group) {
  const Run run(plan);
  Ring<kStages> ring;
  for (int tile = run.first; tile < run.last; ++tile)
    for (int l = 0; l < plan.depth; ++l, ring.next()) {
      const uint32_t full = shared.full(group, ring.stage);
      barrier_wait(shared.empty(group, ring.stage), ring.parity ^ 1);
      barrier_expect(full, kStageBytes);
      load_box(shared.stage(group, ring.stage), map, l * kDepth, tile % plan.rows * kRows + group * kGroupRows, full);
    }
}

/// Waits for the warps of a warpgroup, at a named barrier behind those of Turns.
__device__ void group_sync(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + kGroups + group), "n"(kGroup) : "memory");
}

/// Stores the sums of a warpgroup's 64 x 256 elements of y, from column `col`, row `row` on. A thread has the rows
/// `mine` and `mine` + 8 of them, and in each the columns 32 b + 8 (lane % 4) + 0..7 for b < 8: see shuffled_rows_map.
__device__ void store_tile(const CUtensorMap& y_map, const int (&sums)[kSums], float upper, float lower, Shared shared,
                           int group, int mine, int row, int col, int o) {
  const int lane = threadIdx.x % 32;
  const bool leads = threadIdx.x % kGroup == 0;
#pragma unroll
  for (int i = 0; i < kCols / kBoxCols; ++i) {
    const uint32_t box = shared.box(group, i % kBoxes);
    if (leads) wait_stores_read<kBoxes - 1>();
    group_sync(group);
#pragma unroll
    for (int b = 2 * i; b < 2 * i + 2; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = mine + 8 * half, chunk = (b % 2 * 4 + lane % 4) ^ (at % 8);
        uint32_t x[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int* s = sums + 16 * b + 4 * j + 2 * half;
          x[j] = scaled_pair(s[0], s[1], half ? lower : upper);
        }
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(box + at * 128 + chunk * 16), "r"(x[0]),
                     "r"(x[1]), "r"(x[2]), "r"(x[3])
                     : "memory");
      }
    show_to_copies();
    group_sync(group);
    if (leads && col + kBoxCols * i < o) store_box(y_map, 2 * (col + kBoxCols * i), row, box);
    if (leads) commit_stores();  // a box is a group even if it lies past the last column
  }
}

/// A multiplying warpgroup: its 64 rows of all tiles of the block.
__device__ void multiply_tiles(const CUtensorMap& y_map, const float* step, float scale, const Plan& plan,
                               Shared shared, int group) {
  const int lane = threadIdx.x % 32, mine = threadIdx.x / 32 % 4 * 16 + lane / 4;
  const Run run(plan);
  Ring<kStages> ring;
  int sums[kSums], parity = 0;
  const Turns turns(group);
  for (int tile = run.first; tile < run.last; ++tile) {
    const int row = tile % plan.rows * kRows + group * kGroupRows, upper = row + mine, lower = upper + 8;
    const bool begins = tile == run.first || tile % plan.rows == 0, ends = (tile + 1) % plan.rows == 0;
    const float upper_step = upper < plan.n ? step[upper] : 0.0f, lower_step = lower < plan.n ? step[lower] : 0.0f;
    const auto release = [&](int l, int stage) {
      if (lane == 0) barrier_arrive(shared.empty(group, stage), 0);
      if (lane == 0 && ends) barrier_arrive(shared.w_empty(l), 0);
    };
    int before = 0;
    turns.begin();
    for (int l = 0; l < plan.depth; ++l, ring.next()) {
      if (begins) barrier_wait(shared.w_full(l), parity);
      barrier_wait(shared.full(group, ring.stage), ring.parity);
      const uint64_t a = matrix(shared.stage(group, ring.stage)), b = matrix(shared.slice(l));
      multiply_begin();
#pragma unroll
      for (int k = 0; k < kDepth / 32; ++k) multiply(sums, a + 2 * k, b + 2 * k, l + k > 0);
      multiply_commit();
      if (l + 1 == plan.depth) turns.pass();
      multiply_wait<1>();
      if (l > 0) release(l - 1, before);
      before = ring.stage;
    }
    multiply_wait_all(sums);
    release(plan.depth - 1, before);
    if (ends) parity ^= 1;
    store_tile(y_map, sums, __fmul_rn(upper_step, scale), __fmul_rn(lower_step, scale), shared, group, mine, row,
               tile / plan.rows * kCols, plan.o);
  }
  turns.end();
  wait_stores_read<0>();  // shared memory lasts as long as the block
}

#endif

__global__ void __launch_bounds__(kThreads, 1)
    ternary_mma_short_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap w_map,
                             const __grid_constant__ CUtensorMap y_map, const float* step, const float* scale,
                             Plan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t memory[];
  const Shared shared{address(memory)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kGroups * kStages; ++i) {
      barrier_init(shared.full(0, i), 1);
      barrier_init(shared.empty(0, i), 4);
    }
    for (int l = 0; l < kSlices; ++l) {
      barrier_init(shared.w_full(l), 1);
      barrier_init(shared.w_empty(l), kGroups * 4);
    }
    barrier_init_done();
  }
  __syncthreads();
  begin_kernel();
  const int group = threadIdx.x / kGroup;
  if (group == kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    const int warp = threadIdx.x / 32 % 4;
    if (threadIdx.x % 32 == 0 && warp < kGroups) load_stages(q_map, plan, shared, warp);
    if (threadIdx.x % 32 == 0 && warp == kGroups) load_slices(w_map, plan, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    multiply_tiles(y_map, step, *scale, plan, shared, group);
  }
#endif
}

}  // namespace

bool ternary_mma_short_pays(int64_t n, int64_t o, int64_t k) {
  // A block waits for all of its rows of w before its first tile, so it needs several; narrow y were slower.
  constexpr int64_t kTiles = 4, kWide = 5 * kCols;
  return k <= kSlices * kDepth && o % 32 == 0 && o >= kWide && (n / kRows) * (o / kCols) >= kTiles * multiprocessors();
}

void ternary_mma_short(const int8_t* q, const float* step, const int8_t* w, const float* scale, __nv_bfloat16* y,
                       int64_t n, int64_t o, int64_t k, cudaStream_t stream) {
  const auto tiles = [](int64_t size, int tile) { return int((size + tile - 1) / tile); };
  const Plan plan{tiles(n, kRows), tiles(o, kCols), tiles(k, kDepth), int(n), int(o)};
  const CUtensorMap q_map = rows_map(q, n, k, kGroupRows), w_map = shuffled_rows_map(w, o, k, kCols);
  const CUtensorMap y_map = rows_map(reinterpret_cast<const int8_t*>(y), n, 2 * o, kGroupRows);
  launch_blocks(ternary_mma_short_kernel, multiprocessors(), 1, kThreads, kSharedBytes, stream, q_map, w_map, y_map,
                step, scale, plan);
  check_launch("ternary_mma_short");
}

}  // namespace mmfree::cuda::ternary
