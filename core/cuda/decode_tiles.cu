#include "core/cuda/copies.cuh"
#include "core/cuda/decode_finish.cuh"

/// Ternary products of many rows on the tensor cores, from codes in memory and packed weights, which are unpacked in
/// registers.
///
///   A block computes 16 kM rows by 32 kN outputs of each of its kParts matrices, in steps of 256 columns. Warps 0 to 3
///   have 8 kN outputs each and the first half of the columns of a step (words 0 and 1 of each lane), warps 4 to 7 the
///   same outputs and the other half. The codes of some steps are on their way to shared memory, and the weights of
///   some to registers; those of the first ones before the block waits for the kernel before it. In the end the halves
///   are added.
///
/// A lane multiplies 16 neighbouring columns in two instructions: the order of columns is the same in both operands, so
/// the sums, which are exact, are the same.
namespace mmfree::cuda::decode {
namespace {

constexpr int kLine = kBlockColumns + 64;  // bytes of a code row in shared memory: no bank conflicts
constexpr int kAcross = 4;                 // warps beside each other

struct TilesArgs {
  Group group;
  int first[kMostMatrices];  ///< Finish::store: first column of blocks of each matrix
  int rows;
};

/// kM pieces of 16 rows, kN of 8 outputs per warp, kParts matrices.
template <int kM, int kN, int kParts>
struct Tile {
  static constexpr int rows = 16 * kM, outputs = 8 * kN, across = kAcross * outputs;
  static constexpr int stage = kParts * rows * kLine;  // bytes
  static constexpr int stages = stage <= 20 << 10 ? 4 : stage <= 40 << 10 ? 3 : 2;
  static constexpr int sums = kParts * kM * kN * 4;  // of a thread
  /// Steps whose weights a thread holds: of a small tile as many as a wait for the memory takes.
  static constexpr int weights_ahead = kParts * kN <= 3 ? 4 : 2;
  static constexpr int shared = stages * stage > sums * 128 * 4 ? stages* stage : sums * 128 * 4;
};

/// What a block computes.
template <class T, int kParts>
struct Work {
  int row, output;  ///< first of the block
  int matrix;       ///< of one part
  __device__ explicit Work(const TilesArgs& g) : row(int(blockIdx.y) * T::rows), matrix(0) {
    if constexpr (kParts == 1) {
#pragma unroll
      for (int i = 1; i < kMostMatrices; ++i) matrix += i < g.group.count && int(blockIdx.x) >= g.first[i];
    }
    output = (int(blockIdx.x) - (kParts == 1 ? g.first[matrix] : 0)) * T::across;
  }
  __device__ const Matrix& of(const TilesArgs& g, int part) const {
    return g.group.matrices[kParts == 1 ? matrix : part];
  }
};

/// Starts the copies of step `step` of the codes.
template <class T, int kParts>
__device__ void stage_codes(const TilesArgs& g, const Work<T, kParts>& work, int step, int8_t* to) {
  constexpr int kPieces = kBlockColumns / 16;
  const int64_t stride = int64_t(g.group.words) * 16;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int8_t* from = work.of(g, part).q + int64_t(step) * kBlockColumns;
    for (int i = int(threadIdx.x); i < T::rows * kPieces; i += kThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      const bool wanted = work.row + row < g.rows;
      copy_async(to + (part * T::rows + row) * kLine + piece * 16,
                 from + (wanted ? work.row + row : 0) * stride + piece * 16, wanted);
    }
  }
}

/// A thread's weights of a step: two words for each piece of 8 outputs.
template <int kN, int kParts>
struct StepWeights {
  uint2 words[kParts][kN];
  template <class T>
  __device__ void load(const TilesArgs& g, const Work<T, kParts>& work, int step) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const Matrix& m = work.of(g, part);
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const int output = min(work.output + warp % kAcross * T::outputs + n * 8 + lane / 4, m.rows - 1);
        const uint32_t* row = m.codes + int64_t(output) * g.group.words + step * kBlockWords;
        words[part][n] = __ldg(reinterpret_cast<const uint2*>(row + lane % 4 * 4 + warp / kAcross * 2));
      }
    }
  }
};

template <int kM, int kN, int kParts>
using Sums = int[kParts][kM][kN][4];

template <class T, int kM, int kN, int kParts>
__device__ void multiply_step(const int8_t* codes, const StepWeights<kN, kParts>& weights, Sums<kM, kN, kParts>& sums) {
  const int lane = threadIdx.x % kWarp, half = int(threadIdx.x) / kWarp / kAcross;
#pragma unroll
  for (int part = 0; part < kParts; ++part)
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      const int8_t* at = codes + (part * T::rows + lane / 4) * kLine + 64 * (2 * half + word) + lane % 4 * 16;
      uint4 upper[kM], lower[kM];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        upper[m] = *reinterpret_cast<const uint4*>(at + 16 * m * kLine);
        lower[m] = *reinterpret_cast<const uint4*>(at + (16 * m + 8) * kLine);
      }
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const Weights16 w(word ? weights.words[part][n].y : weights.words[part][n].x);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          multiply(sums[part][m][n], upper[m].x, lower[m].x, upper[m].y, lower[m].y, w.at[0], w.at[1]);
          multiply(sums[part][m][n], upper[m].z, lower[m].z, upper[m].w, lower[m].w, w.at[2], w.at[3]);
        }
      }
    }
}

/// Adds the sums of the second four warps to those of the first.
template <int kSums>
__device__ void add_halves(int* sums, int* shared) {
  const int thread = int(threadIdx.x) % (kAcross * kWarp);
  __syncthreads();
  if (int(threadIdx.x) != thread)
#pragma unroll
    for (int i = 0; i < kSums; ++i) shared[i * kAcross * kWarp + thread] = sums[i];
  __syncthreads();
  if (int(threadIdx.x) == thread)
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] += shared[i * kAcross * kWarp + thread];
}

template <Finish kFinish, class T, int kM, int kN, int kParts, class Gate>
__device__ void finish_tile(const Gate& gate, const TilesArgs& g, const Work<T, kParts>& work,
                            const Sums<kM, kN, kParts>& sums) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float scale[kParts];
#pragma unroll
  for (int part = 0; part < kParts; ++part) scale[part] = *work.of(g, part).scale;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = work.row + 16 * m + 8 * half + lane / 4;
      if (row >= g.rows) continue;
      float step[kParts];
#pragma unroll
      for (int part = 0; part < kParts; ++part) step[part] = work.of(g, part).step[row];
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const int output = work.output + warp * T::outputs + n * 8 + lane % 4 * 2;
        if (output >= work.of(g, 0).rows) continue;
        float y[2][kParts];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int part = 0; part < kParts; ++part)
            y[i][part] = scaled(sums[part][m][n][2 * half + i], step[part], scale[part]);
        finish_pair<kFinish>(gate, g.group, work.of(g, 0), row, output, y);
      }
    }
}

template <Finish kFinish, int kM, int kN, int kParts>
__global__ void __launch_bounds__(kThreads) tile_products(const __grid_constant__ TilesArgs g) {
  using T = Tile<kM, kN, kParts>;
  extern __shared__ uint4 shared[];
  int8_t* const codes = reinterpret_cast<int8_t*>(shared);
  const Work<T, kParts> work(g);
  const int steps = g.group.words / kBlockWords;
  constexpr int kAhead = T::weights_ahead;
  StepWeights<kN, kParts> weights[kAhead];
#pragma unroll
  for (int s = 0; s < kAhead; ++s)
    if (s < steps) weights[s].load(g, work, s);
  begin_kernel();
#pragma unroll
  for (int s = 0; s < T::stages - 1; ++s) {
    if (s < steps) stage_codes(g, work, s, codes + s * T::stage);
    commit_copies();
  }
  Sums<kM, kN, kParts> sums = {};
  for (int first = 0; first < steps; first += kAhead)
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      const int step = first + s;
      if (step >= steps) break;
      wait_copies<T::stages - 2>();
      __syncthreads();  // step's codes are there, and all threads are past the step before it
      if (const int ahead = step + T::stages - 1; ahead < steps)
        stage_codes(g, work, ahead, codes + ahead % T::stages * T::stage);
      commit_copies();
      multiply_step<T>(codes + step % T::stages * T::stage, weights[s], sums);
      if (step + kAhead < steps) weights[s].load(g, work, step + kAhead);
    }
  wait_copies<0>();
  add_halves<T::sums>(&sums[0][0][0][0], reinterpret_cast<int*>(shared));
  if (threadIdx.x < kAcross * kWarp)
    with_gate<kFinish>(g.group.f, [&](auto gate) { finish_tile<kFinish>(gate, g, work, sums); });
}

template <Finish kFinish, int kM, int kN>
void launch(const TilesArgs& g, int64_t across) {
  constexpr int kParts = parts_of(kFinish);
  using T = Tile<kM, kN, kParts>;
  const auto kernel = tile_products<kFinish, kM, kN, kParts>;
  static const bool prepared = [&] {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::shared), "decode");
    return true;
  }();
  (void)prepared;
  launch_kernel(kernel, {dim3(unsigned(across), unsigned(ceil_div(g.rows, T::rows))), kThreads, size_t(T::shared)}, g);
  check_launch("decode");
}

template <Finish kFinish>
void launch_shape(TilesArgs g) {
  const auto across = [&](int outputs) { return block_columns_of<kFinish>(g.group, outputs, g.first); };
  // The largest tile that gives every multiprocessor a block. Wide ones read the codes less often.
  const int64_t least = multiprocessors() * 3 / 4;
  const auto fits = [&](int64_t n, int height) { return n * ceil_div(g.rows, height) >= least; };
  if constexpr (kFinish == Finish::store)
    if (const int64_t n = across(128); fits(n, 64)) return launch<kFinish, 4, 4>(g, n);
  if constexpr (kFinish == Finish::glu)
    if (const int64_t n = across(128); fits(n, 32)) return launch<kFinish, 2, 4>(g, n);
  if constexpr (kFinish != Finish::scan)  // it would take more shared memory than every GPU has
    if (const int64_t n = across(64); fits(n, 64)) return launch<kFinish, 4, 2>(g, n);
  if (const int64_t n = across(64); fits(n, 32)) return launch<kFinish, 2, 2>(g, n);
  const int64_t n = across(32);
  launch<kFinish, 1, 1>(g, n);
}

}  // namespace

void tiles(const Group& group, int rows) {
  const TilesArgs g{group, {}, rows};
  switch (group.finish) {
    case Finish::store:
      return launch_shape<Finish::store>(g);
    case Finish::glu:
      return launch_shape<Finish::glu>(g);
    case Finish::scan:
      return launch_shape<Finish::scan>(g);
  }
}

}  // namespace mmfree::cuda::decode
