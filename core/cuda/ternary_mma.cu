#include <cuda.h>
#include <cudaTypedefs.h>

#include <algorithm>

#include "core/cuda/launch.cuh"
#include "core/cuda/ternary_mma.h"

/// y = q wᵀ on Hopper's tensor cores. The grid is persistent: clusters of two blocks, one block per multiprocessor.
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

constexpr int kRows = 128, kCols = 256, kDepth = 128;  // of a block's tile; depth in elements = bytes
constexpr int kCluster = 2;                            // blocks of a cluster
constexpr int kStages = 4;
constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kGroups = 2;   // warpgroups that multiply
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

constexpr int kSums = kCols / 2;  // sums of a thread: 64 x kCols over 128 threads
constexpr int kParts = 4;         // parts in which a tile is stored, see Finished

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

__device__ uint32_t address(const void* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }

__device__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/// Arrives at the barrier at the same place in block `block` of the cluster.
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

/// Starts a copy of the box of `map` at column x, row y to shared memory. Its bytes count at `barrier`.
__device__ void load_box(uint32_t to, const CUtensorMap& map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
/// Starts a copy of rows of w from `row` on to the same address in every block of the cluster. The bytes count at the
/// barrier of each block.
template <bool Direct>
__device__ void load_cols(uint32_t to, const CUtensorMap& map, int x, int row, uint32_t barrier) {
  const uint16_t blocks = (1 << kCluster) - 1;
  if constexpr (Direct)
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3, %3, %3, %4}], [%5], %6;" ::"r"(to),
        "l"(&map), "r"(x), "r"(0), "r"(row / 32), "r"(barrier), "h"(blocks)
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(&map), "r"(x), "r"(row), "r"(barrier), "h"(blocks)
        : "memory");
}

/// The wgmma descriptor of a tile in shared memory: rows of 128 bytes along the depth, 128-byte swizzle.
__device__ uint64_t matrix(uint32_t shared) {
  constexpr uint64_t kSwizzle128 = uint64_t(1) << 62, kEightRows = uint64_t(1024 >> 4) << 32;
  return kSwizzle128 | kEightRows | (uint64_t(1) << 16) | ((shared & 0x3ffff) >> 4);
}

#define MMFREE_SUMS_4(d, i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define MMFREE_SUMS_16(d, i) \
  MMFREE_SUMS_4(d, i), MMFREE_SUMS_4(d, i + 4), MMFREE_SUMS_4(d, i + 8), MMFREE_SUMS_4(d, i + 12)
#define MMFREE_SUMS_64(d, i) \
  MMFREE_SUMS_16(d, i), MMFREE_SUMS_16(d, i + 16), MMFREE_SUMS_16(d, i + 32), MMFREE_SUMS_16(d, i + 48)

/// sums = 64 rows of a times 256 rows of b over 32 elements of depth, added to the old sums if `add`.
__device__ void multiply(int (&sums)[kSums], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred add;\n"
      "setp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63,"
      " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,"
      " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95,"
      " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111,"
      " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, add; }"
      : MMFREE_SUMS_64(sums, 0), MMFREE_SUMS_64(sums, 64)
      : "l"(a), "l"(b), "r"(int(add)));
}
#undef MMFREE_SUMS_4
#undef MMFREE_SUMS_16
#undef MMFREE_SUMS_64

/// Waits until at most `Left` of the warpgroup's committed products are unfinished.
template <int Left>
__device__ void multiply_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}
/// Waits for all of them. The compiler cannot move a read of the sums before this.
__device__ void multiply_wait_all(int (&sums)[kSums]) {
  multiply_wait<0>();
#pragma unroll
  for (int& sum : sums) asm volatile("" : "+r"(sum)::"memory");
}

struct Shared {
  uint32_t at;  // address of the start of shared memory
  __device__ uint32_t rows(int stage) const { return at + stage * kRowBytes; }
  __device__ uint32_t cols(int stage) const { return at + kColsAt + stage * kColBytes; }
  __device__ uint32_t full(int stage) const { return at + kBarriersAt + stage * 8; }
  __device__ uint32_t empty(int stage) const { return at + kBarriersAt + (kStages + stage) * 8; }
};

/// A position in the ring of stages, and the parity of the barriers' phase there.
struct Ring {
  int stage = 0, parity = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

/// The loading thread: all tiles of the cluster, stage after stage.
template <bool Direct>
__device__ void load_tiles(const CUtensorMap& q_map, const CUtensorMap& w_map, const Plan& plan, Shared shared,
                           int block) {
  constexpr int kShare = kCols / kCluster;
  Ring ring;
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

/// Two scaled sums as a pair of bf16, the first in the low half.
__device__ uint32_t scaled_pair(int a, int b, float scale) {
  const __nv_bfloat162 pair =
      __floats2bfloat162_rn(__fmul_rn(__int2float_rn(a), scale), __fmul_rn(__int2float_rn(b), scale));
  return reinterpret_cast<const uint32_t&>(pair);
}

/// A thread's elements of y of a finished tile. They are stored in kParts parts while the next tile is multiplied, so
/// that the products do not wait for the memory. The thread has two rows, 8 apart. Of each it has the columns 8 j +
/// lane % 4 * 2 + {0, 1} of the tile in shared memory; with `Direct`, eight of these are neighbours in y, because
/// shuffled_rows_map has permuted the rows of w.
template <bool Direct>
struct Finished {
  static constexpr int kBlocks = kCols / 32;
  uint32_t pairs[kBlocks][2][4];
  __nv_bfloat16* to;  // the upper row at the tile's first column
  int o, cols;        // row length of y; columns from `to` to the end of its row
  int rows = 0;       // rows from `to` to the end of y: 0 stores nothing

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
          if (32 * b < cols) *reinterpret_cast<uint4*>(at + 8 * t) = {x[0], x[1], x[2], x[3]};
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j)
            if (32 * b + 8 * j < cols) *reinterpret_cast<uint32_t*>(at + 8 * j + 2 * t) = x[j];
        }
      }
  }
};

/// A multiplying warpgroup: its 64 rows of all tiles of the block.
template <bool Direct>
__device__ void multiply_tiles(__nv_bfloat16* y, const float* step, float scale, const Plan& plan, Shared shared,
                               int block, int group) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  Ring ring;
  int sums[kSums];
  const auto release = [&](int stage) {
    if (lane < kCluster) barrier_arrive(shared.empty(stage), lane);
  };
  Finished<Direct> finished;
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
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int k = 0; k < kDepth / 32; ++k) multiply(sums, a + 2 * k, b + 2 * k, l + k > 0);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
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

template <bool Direct>
__global__ void __launch_bounds__(kThreads, 1)
    ternary_mma_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap w_map,
                       __nv_bfloat16* y, const float* step, const float* scale, Plan plan) {
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
  begin_kernel();
  const int group = threadIdx.x / kGroup;
  if (group == kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == kGroup * kGroups) load_tiles<Direct>(q_map, w_map, plan, shared, block);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    multiply_tiles<Direct>(y, step, *scale, plan, shared, block, group);
  }
  // No block may exit while the other can still write to its shared memory.
  cluster_sync();
#endif
}

/// The driver's encoder of tensor maps. Looked up at run time, because the driver is not linked.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  MMFREE_CUDA_CHECK(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
  MMFREE_CHECK(DeviceError, found == cudaDriverEntryPointSuccess,
               "ternary_mma: the driver has no cuTensorMapEncodeTiled; install a driver for CUDA 12 or later");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

/// A tensor map for the copy engine: bytes at `data` in `rank` dimensions, the first contiguous, the others with the
/// strides `stride` in bytes. They are copied in boxes of shape `box`, with the 128-byte swizzle. Elements outside the
/// tensor are loaded as zero.
CUtensorMap tensor_map(const void* data, int rank, const cuuint64_t* shape, const cuuint64_t* stride,
                       const cuuint32_t* box) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = encoder();
  const cuuint32_t every[] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, rank, const_cast<void*>(data), shape, stride, box,
                                 every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  MMFREE_CHECK(DeviceError, status == CUDA_SUCCESS, "ternary_mma: no tensor map of ", shape[0], " x ", shape[1],
               " bytes: the driver says error ", int(status));
  return map;
}

/// The map of a row-major matrix, in boxes of `box_rows` rows.
CUtensorMap rows_map(const int8_t* data, int64_t rows, int64_t cols, int box_rows) {
  const cuuint64_t shape[] = {cuuint64_t(cols), cuuint64_t(rows)}, stride[] = {cuuint64_t(cols)};
  const cuuint32_t box[] = {kDepth, cuuint32_t(box_rows)};
  return tensor_map(data, 2, shape, stride, box);
}

/// The same for rows % 32 == 0, with every 32 rows permuted: row 8 j + 2 t + e in shared memory is row 8 t + 2 j + e of
/// the matrix (t, j < 4, e < 2). In a product, thread t of four gets the columns 8 j + 2 t + e, which are then eight
/// neighbouring columns of y: it stores them in one access.
CUtensorMap shuffled_rows_map(const int8_t* data, int64_t rows, int64_t cols, int box_rows) {
  const cuuint64_t line = cols, shape[] = {line, 2, 4, 4, cuuint64_t(rows / 32)};
  const cuuint64_t stride[] = {line, 8 * line, 2 * line, 32 * line};
  const cuuint32_t box[] = {kDepth, 2, 4, 4, cuuint32_t(box_rows / 32)};
  return tensor_map(data, 5, shape, stride, box);
}

template <bool Direct>
void launch(const int8_t* q, const float* step, const int8_t* w, const float* scale, __nv_bfloat16* y, int64_t n,
            int64_t o, int64_t k, cudaStream_t stream) {
  const auto tiles = [](int64_t size, int tile) { return int((size + tile - 1) / tile); };
  const CUtensorMap q_map = rows_map(q, n, k, kRows);
  const CUtensorMap w_map = (Direct ? shuffled_rows_map : rows_map)(w, o, k, kCols / kCluster);
  const Plan plan{tiles(n, kRows * kCluster), tiles(o, kCols), kBandRows / (kRows * kCluster),
                  tiles(k, kDepth),           int(n),          int(o)};
  const auto kernel = ternary_mma_kernel<Direct>;
  MMFREE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  cudaLaunchAttribute attributes[2] = {{}, overlap_attribute()};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {kCluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = kCluster * unsigned(std::min(plan.rows * plan.cols, multiprocessors() / kCluster));
  config.blockDim = kThreads;
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = can_overlap() ? 2 : 1;
  MMFREE_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, q_map, w_map, y, step, scale, plan));
  check_launch("ternary_mma");
}

}  // namespace

bool ternary_mma_fits(int64_t n, int64_t o, int64_t k) {
  constexpr int64_t kMost = int64_t(1) << 24;  // keeps |sum| <= 128 k below 2^31, and numbers of tiles and rows in int
  return n >= 1 && o >= 1 && k >= 1 && n <= kMost && o <= kMost && k < kMost && k % 16 == 0 && o % 8 == 0 &&
         is_hopper();
}

void ternary_mma(const int8_t* q, const float* step, const int8_t* w, const float* scale, __nv_bfloat16* y, int64_t n,
                 int64_t o, int64_t k, cudaStream_t stream) {
  MMFREE_CHECK(ShapeError, ternary_mma_fits(n, o, k), "ternary_mma: n ", n, ", o ", o, ", k ", k,
               ": expected a Hopper GPU, sizes from 1 to 2^24, k a multiple of 16 and o of 8");
  for (const void* p : {static_cast<const void*>(q), static_cast<const void*>(w), static_cast<const void*>(y)})
    MMFREE_CHECK(ShapeError, reinterpret_cast<uintptr_t>(p) % 16 == 0,
                 "ternary_mma: q, w and y must start at multiples of 16 bytes");
  (o % 32 == 0 ? launch<true> : launch<false>)(q, step, w, scale, y, n, o, k, stream);
}

}  // namespace mmfree::cuda
