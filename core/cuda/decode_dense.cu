#include "core/cuda/decode_finish.cuh"
#include "core/cuda/hopper.cuh"

/// Ternary products of many rows on Hopper's tensor cores (wgmma), from codes and weights of a byte each: where there
/// are many rows, unpacking weights for each of them costs more than reading four times as many bytes.
///
///   A block computes 64 kGroups rows by kN outputs of each of its kParts matrices, in steps of 128 columns. One thread
///   starts copies of a step's codes and weights to a ring of stages in shared memory (TMA), a warpgroup multiplies 64
///   rows. Weights of the first stages are on their way before the block waits for the kernel before it.
namespace mmfree::cuda::decode {
namespace {

using namespace hopper;

constexpr int kDepth = 128;  // columns of a step = bytes of a row in shared memory

struct DenseArgs {
  CUtensorMap q[kMostMatrices], w[kMostMatrices];
  Group group;
  int first[kMostMatrices];  ///< Finish::store: first column of blocks of each matrix
  int rows, steps;
  bool same_codes;  ///< the parts multiply the same codes
};

template <int kGroups, int kN, int kParts>
struct DenseTile {
  static constexpr int rows = 64 * kGroups;
  static constexpr int code_bytes = rows * kDepth, weight_bytes = kN * kDepth;
  static constexpr int stage = kParts * (code_bytes + weight_bytes);
  /// Two blocks on a multiprocessor, so that one multiplies while the other stores; or one, if its stages are large.
  static constexpr int blocks = stage <= 36 << 10 ? 2 : 1;
  static constexpr int room = (blocks == 2 ? 108 << 10 : 216 << 10) / stage, stages = room < 8 ? room : 8;
  static constexpr int shared = stages * stage + 2 * stages * 8;
  static constexpr int threads = kGroup * kGroups + kWarp;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// Addresses in shared memory: stages of [parts][codes], [parts][weights], then the barriers.
template <class T, int kParts>
struct Stages {
  uint32_t at;
  __device__ uint32_t codes(int stage, int part) const { return at + stage * T::stage + part * T::code_bytes; }
  __device__ uint32_t weights(int stage, int part) const {
    return at + stage * T::stage + kParts * T::code_bytes + part * T::weight_bytes;
  }
  __device__ uint32_t full(int stage) const { return at + T::stages * T::stage + stage * 8; }
  __device__ uint32_t empty(int stage) const { return full(stage) + T::stages * 8; }
};

/// Starts the copies of a step's weights, behind which those of its codes must follow.
template <class T, int kParts>
__device__ void load_weights(const DenseArgs& g, Stages<T, kParts> shared, int matrix, int output, int stage,
                             int step) {
  const int codes = g.same_codes ? 1 : kParts;
  barrier_expect(shared.full(stage), codes * T::code_bytes + kParts * T::weight_bytes);
  for (int part = 0; part < kParts; ++part)
    load_box(shared.weights(stage, part), g.w[matrix + part], step * kDepth, output, shared.full(stage));
}

/// All other copies; `ahead` steps have their weights.
template <class T, int kParts>
__device__ void load_steps(const DenseArgs& g, Stages<T, kParts> shared, int matrix, int row, int output, int ahead) {
  Ring<T::stages> ring;
  for (int step = 0; step < g.steps; ++step, ring.next()) {
    if (step >= ahead) {
      barrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
      load_weights(g, shared, matrix, output, ring.stage, step);
    }
    for (int part = 0; part < (g.same_codes ? 1 : kParts); ++part)
      load_box(shared.codes(ring.stage, part), g.q[matrix + part], step * kDepth, row, shared.full(ring.stage));
  }
}

/// A warpgroup's products: 64 rows from group · 64 on.
template <class T, int kN, int kParts>
__device__ void multiply_steps(const DenseArgs& g, Stages<T, kParts> shared, int group, int (&sums)[kParts][kN / 2]) {
  Ring<T::stages> ring;
  int before = 0;
  const auto release = [&](int stage) {
    if (threadIdx.x % kWarp == 0) barrier_arrive(shared.empty(stage), 0);
  };
  for (int step = 0; step < g.steps; ++step) {
    barrier_wait(shared.full(ring.stage), ring.parity);
    multiply_begin();
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const uint64_t a = matrix(shared.codes(ring.stage, g.same_codes ? 0 : part) + group * 64 * kDepth),
                     b = matrix(shared.weights(ring.stage, part));
#pragma unroll
      for (int k = 0; k < kDepth / 32; ++k) multiply(sums[part], a + 2 * k, b + 2 * k, step + k > 0);
    }
    multiply_commit();
    multiply_wait<1>();
    if (step > 0) release(before);
    before = ring.stage;
    ring.next();
  }
#pragma unroll
  for (int part = 0; part < kParts; ++part) multiply_wait_all(sums[part]);
}

template <Finish kFinish, int kN, int kParts, class Gate>
__device__ void finish_rows(const Gate& gate, const DenseArgs& g, int matrix, int first_row, int first_output,
                            const int (&sums)[kParts][kN / 2]) {
  const int lane = threadIdx.x % kWarp;
  const Matrix* const m = g.group.matrices + matrix;
  float scale[kParts];
#pragma unroll
  for (int part = 0; part < kParts; ++part) scale[part] = *m[part].scale;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + int(threadIdx.x) / kWarp * 16 + 8 * half + lane / 4;
    if (row >= g.rows) continue;
    float step[kParts];
#pragma unroll
    for (int part = 0; part < kParts; ++part) step[part] = m[part].step[row];
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      const int output = first_output + 8 * j + lane % 4 * 2;
      if (output >= m[0].rows) continue;
      float y[2][kParts];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          y[i][part] = scaled(sums[part][4 * j + 2 * half + i], step[part], scale[part]);
      finish_pair<kFinish>(gate, g.group, m[0], row, output, y);
    }
  }
}

#endif

template <Finish kFinish, int kGroups, int kN>
__global__ void __launch_bounds__(DenseTile<kGroups, kN, parts_of(kFinish)>::threads,
                                  DenseTile<kGroups, kN, parts_of(kFinish)>::blocks)
    dense_products(const __grid_constant__ DenseArgs g) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kParts = parts_of(kFinish);
  using T = DenseTile<kGroups, kN, kParts>;
  extern __shared__ __align__(1024) uint8_t memory[];
  const Stages<T, kParts> shared{address(memory)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < T::stages; ++i) {
      barrier_init(shared.full(i), 1);
      barrier_init(shared.empty(i), kGroups * 4);
    }
    barrier_init_done();
  }
  __syncthreads();
  int first = 0;  // matrix
  if constexpr (kParts == 1) {
#pragma unroll
    for (int i = 1; i < kMostMatrices; ++i) first += i < g.group.count && int(blockIdx.x) >= g.first[i];
  }
  const int row = int(blockIdx.y) * T::rows, output = (int(blockIdx.x) - (kParts == 1 ? g.first[first] : 0)) * kN;
  const bool loads = threadIdx.x == kGroups * kGroup;
  const int ahead = min(T::stages, g.steps);
  if (loads)
    for (int step = 0; step < ahead; ++step) load_weights(g, shared, first, output, step, step);
  begin_kernel();
  if (const int group = int(threadIdx.x) / kGroup; group < kGroups) {
    int sums[kParts][kN / 2];
    multiply_steps<T, kN, kParts>(g, shared, group, sums);
    with_gate<kFinish>(g.group.f,
                       [&](auto gate) { finish_rows<kFinish, kN, kParts>(gate, g, first, row, output, sums); });
  } else if (loads) {
    load_steps(g, shared, first, row, output, ahead);
  }
#endif
}

template <Finish kFinish, int kGroups, int kN>
void launch(DenseArgs& g, int64_t across) {
  using T = DenseTile<kGroups, kN, parts_of(kFinish)>;
  const auto kernel = dense_products<kFinish, kGroups, kN>;
  static const bool prepared = [&] {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::shared), "decode");
    return true;
  }();
  (void)prepared;
  for (int i = 0; i < g.group.count; ++i) {
    const Matrix& m = g.group.matrices[i];
    g.q[i] = lines_map(m.q, g.rows, g.group.k, int64_t(g.group.words) * 16, T::rows);
    g.w[i] = rows_map(m.bytes, m.rows, g.group.k, kN);
  }
  launch_kernel(kernel, {dim3(unsigned(across), unsigned(ceil_div(g.rows, T::rows))), T::threads, size_t(T::shared)},
                g);
  check_launch("decode");
}

/// The largest tile that gives two thirds of the multiprocessors a block.
template <Finish kFinish>
void launch_shape(DenseArgs& g) {
  const int64_t least = multiprocessors() * 2 / 3;
  const auto across = [&](int outputs) { return block_columns_of<kFinish>(g.group, outputs, g.first); };
  const int64_t high = ceil_div(g.rows, 128);
  if (const int64_t n = across(128); n * high >= least) return launch<kFinish, 2, 128>(g, n);
  if (const int64_t n = across(64); n * high >= least) return launch<kFinish, 2, 64>(g, n);
  launch<kFinish, 1, 32>(g, across(32));
}

}  // namespace

bool fits_dense(const Group& group, int rows) {
  if (rows < kDenseRows || group.finish == Finish::scan || group.k % 16 || !is_hopper()) return false;
  for (int i = 0; i < group.count; ++i)
    if (!group.matrices[i].bytes || !is_aligned(group.matrices[i].bytes)) return false;
  return true;
}

void dense(const Group& group, int rows) {
  DenseArgs g{{}, {}, group, {}, rows, int(ceil_div(group.k, kDepth)), true};
  for (int i = 1; i < group.count; ++i) g.same_codes &= group.matrices[i].q == group.matrices[0].q;
  group.finish == Finish::glu ? launch_shape<Finish::glu>(g) : launch_shape<Finish::store>(g);
}

}  // namespace mmfree::cuda::decode
