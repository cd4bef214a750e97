#pragma once
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/cuda/launch.cuh"

/// Instructions of Hopper that its products of bytes are made of, and how to launch them. Such a kernel runs in
/// clusters of two blocks. In each block one thread starts copies of tiles to a ring of stages in shared memory (TMA),
/// and two warpgroups multiply them (wgmma). A tile has rows of 128 bytes along the depth, with the 128-byte swizzle.
namespace mmfree::cuda::hopper {

constexpr int kCluster = 2;  // blocks of a cluster
constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kGroups = 2;   // warpgroups that multiply

/// A position in a ring of stages, and the parity of the barriers' phase there.
template <int kStages>
struct Ring {
  int stage = 0, parity = 0;
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ inline uint32_t address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ inline void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
/// Makes the barriers of this thread's block visible to the cluster and the copy engine.
__device__ inline void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/// Arrives at the barrier at the same place in block `block` of the cluster.
__device__ inline void barrier_arrive(uint32_t barrier, int block) {
  asm volatile(
      "{ .reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(barrier),
      "r"(block)
      : "memory");
}
__device__ inline void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ inline void cluster_sync() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// Starts a copy of the box of `map` at column x, row y to shared memory. Its bytes count at `barrier`.
__device__ inline void load_box(uint32_t to, const CUtensorMap& map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
/// The same to this address in every block of the cluster. The bytes count at the barrier of each block.
__device__ inline void load_box_everywhere(uint32_t to, const CUtensorMap& map, int x, int y, uint32_t barrier) {
  const uint16_t blocks = (1 << kCluster) - 1;
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
      : "memory");
}
/// Starts a copy of consecutive bytes, a multiple of 16.
__device__ inline void load_bytes(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
/// The same of bytes that will not be read again soon: they are the first to leave the L2 cache.
__device__ inline void load_bytes_once(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile(
      "{ .reg .b64 once;\n"
      "createpolicy.fractional.L2::evict_first.b64 once, 1.0;\n"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], once; "
      "}" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

/// Makes what this thread has written to shared memory visible to the copy engine.
__device__ inline void show_to_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/// Starts a copy of the box at `from` in shared memory to column x, row y of `map`.
__device__ inline void store_box(const CUtensorMap& map, int x, int y, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(x),
               "r"(y), "r"(from)
               : "memory");
}
/// Makes what this thread has started to store since the last group a group, which may be empty.
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Waits until all but the last `Left` groups of this thread's stores have read shared memory.
template <int Left>
__device__ void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Left) : "memory");
}

/// The wgmma descriptor of a tile in shared memory.
__device__ inline uint64_t matrix(uint32_t shared) {
  constexpr uint64_t kSwizzle128 = uint64_t(1) << 62, kEightRows = uint64_t(1024 >> 4) << 32;
  return kSwizzle128 | kEightRows | (uint64_t(1) << 16) | ((shared & 0x3ffff) >> 4);
}

#define MMFREE_SUMS_4(d, i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define MMFREE_SUMS_16(d, i) \
  MMFREE_SUMS_4(d, i), MMFREE_SUMS_4(d, i + 4), MMFREE_SUMS_4(d, i + 8), MMFREE_SUMS_4(d, i + 12)
#define MMFREE_SUMS_64(d, i) \
  MMFREE_SUMS_16(d, i), MMFREE_SUMS_16(d, i + 16), MMFREE_SUMS_16(d, i + 32), MMFREE_SUMS_16(d, i + 48)
#define MMFREE_NAMES_64                                                              \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"            \
  " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31," \
  " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47," \
  " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/// sums = 64 rows of a times 256 rows of b over 32 elements of depth, added to the old sums if `add`.
__device__ inline void multiply(int (&sums)[128], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred add;\n"
      "setp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {" MMFREE_NAMES_64
      ","
      " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,"
      " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95,"
      " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111,"
      " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, add; }"
      : MMFREE_SUMS_64(sums, 0), MMFREE_SUMS_64(sums, 64)
      : "l"(a), "l"(b), "r"(int(add)));
}
/// The same of 128 rows of b.
__device__ inline void multiply(int (&sums)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred add;\n"
      "setp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" MMFREE_NAMES_64 "}, %64, %65, add; }"
      : MMFREE_SUMS_64(sums, 0)
      : "l"(a), "l"(b), "r"(int(add)));
}
/// The same of 64 rows of b.
__device__ inline void multiply(int (&sums)[32], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred add;\n"
      "setp.ne.b32 add, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, add; }"
      : MMFREE_SUMS_16(sums, 0), MMFREE_SUMS_16(sums, 16)
      : "l"(a), "l"(b), "r"(int(add)));
}
/// The same of 32 rows of b.
__device__ inline void multiply(int (&sums)[16], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred add;\n"
      "setp.ne.b32 add, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, add; }"
      : MMFREE_SUMS_16(sums, 0)
      : "l"(a), "l"(b), "r"(int(add)));
}
/// The same of 128 rows of b with a in registers.
__device__ inline void multiply(int (&sums)[64], const uint32_t (&a)[4], uint64_t b, bool add) {
  asm volatile(
      "{ .reg .pred add;\n"
      "setp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" MMFREE_NAMES_64 "}, {%64, %65, %66, %67}, %68, add; }"
      : MMFREE_SUMS_64(sums, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));
}
#undef MMFREE_SUMS_4
#undef MMFREE_SUMS_16
#undef MMFREE_SUMS_64
#undef MMFREE_NAMES_64

__device__ inline void multiply_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most `Left` of the warpgroup's committed products are unfinished.
template <int Left>
__device__ void multiply_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}
/// Waits for all of them. The compiler cannot move a read of the sums before this.
template <int kSums>
__device__ void multiply_wait_all(int (&sums)[kSums]) {
  multiply_wait<0>();
#pragma unroll
  for (int& sum : sums) asm volatile("" : "+r"(sum)::"memory");
}

/// The two multiplying warpgroups start their products in turns, warpgroup 0 first. What one does between two products
/// then overlaps a product of the other; otherwise both wait for the same copies, and multiply and rest together. Every
/// warpgroup of a block takes as many turns. Named barriers 1 and 2 are theirs.
struct Turns {
  int group;
  __device__ static void arrive(int whose) {
    asm volatile("bar.arrive %0, %1;" ::"r"(1 + whose), "n"(kGroup * kGroups) : "memory");
  }
  __device__ static void await(int whose) {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + whose), "n"(kGroup * kGroups) : "memory");
  }
  __device__ explicit Turns(int group) : group(group) {
    if (group == 1) arrive(0);
  }
  __device__ void begin() const { await(group); }
  __device__ void pass() const { arrive(group ^ 1); }
  /// Takes the last turn that was passed, so that no barrier is left half full.
  __device__ void end() const {
    if (group == 0) await(0);
  }
};

/// The operand a of a product over 32 rows of a tile, which is stored the other way: 128 rows along the depth, of 128
/// columns each. The warp gets 16 columns from the 16-byte chunk `chunk` on, rows 32 step .. 32 step + 31. Row r of the
/// operand is column 2 r, row r + 8 is column 2 r + 1 (r < 8). ldmatrix transposes pairs of bytes; rows are dealt to
/// its matrices so that no two share a bank.
__device__ inline void load_transposed(uint32_t (&a)[4], uint32_t tile, int chunk, int step) {
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

#endif

/// The driver's encoder of tensor maps. Looked up at run time, because the driver is not linked.
inline PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  MMFREE_CUDA_CHECK(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
  MMFREE_CHECK(DeviceError, found == cudaDriverEntryPointSuccess,
               "the driver has no cuTensorMapEncodeTiled; install a driver for CUDA 12 or later");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

/// A tensor map for the copy engine: bytes at `data` in `rank` dimensions, the first contiguous, the others with the
/// strides `stride` in bytes. They are copied in boxes of shape `box`, with the 128-byte swizzle. Elements outside the
/// tensor are loaded as zero.
inline CUtensorMap tensor_map(const void* data, int rank, const cuuint64_t* shape, const cuuint64_t* stride,
                              const cuuint32_t* box) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = encoder();
  const cuuint32_t every[] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, rank, const_cast<void*>(data), shape, stride, box,
                                 every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  MMFREE_CHECK(DeviceError, status == CUDA_SUCCESS, "no tensor map of ", shape[0], " x ", shape[1],
               " bytes: the driver says error ", int(status));
  return map;
}

/// The map of a matrix of bytes whose rows are `line` bytes apart, in boxes of `box_rows` rows and 128 columns.
inline CUtensorMap lines_map(const int8_t* data, int64_t rows, int64_t cols, int64_t line, int box_rows) {
  const cuuint64_t shape[] = {cuuint64_t(cols), cuuint64_t(rows)}, stride[] = {cuuint64_t(line)};
  const cuuint32_t box[] = {128, cuuint32_t(box_rows)};
  return tensor_map(data, 2, shape, stride, box);
}
/// The same of rows that follow each other.
inline CUtensorMap rows_map(const int8_t* data, int64_t rows, int64_t cols, int box_rows) {
  return lines_map(data, rows, cols, cols, box_rows);
}

/// Launches `blocks` blocks, in clusters of `cluster`, of `kernel`, which calls begin_kernel.
template <class... Parameters, class... Arguments>
void launch_blocks(void (*kernel)(Parameters...), int64_t blocks, int cluster, int threads, int shared_bytes,
                   cudaStream_t stream, Arguments&&... arguments) {
  MMFREE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  cudaLaunchAttribute attributes[2] = {{}, overlap_attribute()};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = unsigned(blocks);
  config.blockDim = unsigned(threads);
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = can_overlap() ? 2 : 1;
  MMFREE_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}
/// The same of `clusters` clusters of two blocks.
template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), int64_t clusters, int threads, int shared_bytes,
                     cudaStream_t stream, Arguments&&... arguments) {
  launch_blocks(kernel, kCluster * clusters, kCluster, threads, shared_bytes, stream,
                std::forward<Arguments>(arguments)...);
}

}  // namespace mmfree::cuda::hopper
