#include <algorithm>

#include "core/cuda/abs_sum.cuh"
#include "core/cuda/product.h"
#include "core/cuda/ternary_mma.h"
#include "core/ops/ternary.h"
#include "core/quantize.h"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

bool aligned(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// Quantisation in three kernels: Σ |w| of each block of weights, then one scale per matrix, then the codes.

/// The matrices of one launch. Passed by value, so that a recorded launch keeps them.
constexpr int kMaxJobs = 512;
struct Jobs {
  struct Job {
    const float* weights;
    const double* sums;  // Σ |w| of each of its blocks
    int8_t* codes;
    float* scale;
    int64_t size;
  };
  Job jobs[kMaxJobs];
  unsigned first_block[kMaxJobs + 1];  // index of each job's first block; the last entry is the number of blocks
  int count;
};

/// sums[block] = Σ |x| over kParamBlock elements; the last block may be shorter.
__global__ void __launch_bounds__(kThreads) sum_abs_blocks(const float* x, int64_t n, double* sums, bool wide) {
  begin_kernel();
  __shared__ float sizes[kParamBlock];
  const int64_t first = int64_t(blockIdx.x) * kParamBlock;
  if (wide && n - first >= kParamBlock) {
#pragma unroll
    for (int i = 0; i < kParamBlock / (4 * kThreads); ++i) {
      float w[4];
      const int at = (i * kThreads + int(threadIdx.x)) * 4;
      load<4>(w, x + first + at);
      store<4>(sizes + at, w);
    }
  } else {
    for (int at = threadIdx.x; at < kParamBlock; at += kThreads) sizes[at] = first + at < n ? x[first + at] : 0;
  }
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  const double sum = ordered_abs_sum(sizes);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/// One block per job. One thread adds the sums in index order, as on the CPU; the others only load them.
__global__ void __launch_bounds__(kThreads) scale_jobs(const __grid_constant__ Jobs g) {
  begin_kernel();
  constexpr int kChunk = 2048;
  __shared__ double sums[kChunk];
  const Jobs::Job& job = g.jobs[blockIdx.x];
  const int count = int(g.first_block[blockIdx.x + 1] - g.first_block[blockIdx.x]);
  double total = 0;
  for (int begin = 0; begin < count; begin += kChunk) {
    const int chunk = min(kChunk, count - begin);
    for (int i = threadIdx.x; i < chunk; i += kThreads) sums[i] = job.sums[begin + i];
    __syncthreads();
    if (threadIdx.x == 0)
#pragma unroll 16
      for (int i = 0; i < chunk; ++i) total += sums[i];
    __syncthreads();
  }
  if (threadIdx.x == 0) *job.scale = weight_scale<float>(job.size ? __ddiv_rn(total, double(job.size)) : 0);
}

/// The job that `block` belongs to, by bisection.
__device__ int job_of(const Jobs& g, unsigned block) {
  int low = 0, high = g.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (g.first_block[middle] <= block)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

/// One block of threads per kParamBlock weights.
__global__ void __launch_bounds__(kThreads) code_blocks(const __grid_constant__ Jobs g, bool wide) {
  begin_kernel();
  constexpr int kBatch = int(kParamBlock) / (4 * kThreads);
  const int index = job_of(g, blockIdx.x);
  const int64_t first = int64_t(blockIdx.x - g.first_block[index]) * kParamBlock;
  const float* weights = g.jobs[index].weights + first;
  int8_t* codes = g.jobs[index].codes + first;
  const int64_t left = g.jobs[index].size - first;
  if (wide && left >= kParamBlock) {
    float w[kBatch][4];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) load<4>(w[i], weights + (i * kThreads + threadIdx.x) * 4);
    const float inverse = __fdiv_rn(1, *g.jobs[index].scale);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      uint32_t four = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) four |= (uint32_t(weight_code(w[i][k], inverse)) & 0xffu) << (8 * k);
      reinterpret_cast<uint32_t*>(codes)[i * kThreads + threadIdx.x] = four;
    }
  } else {
    const float inverse = __fdiv_rn(1, *g.jobs[index].scale);
    for (int i = threadIdx.x; i < left && i < kParamBlock; i += kThreads)
      codes[i] = int8_t(weight_code(weights[i], inverse));
  }
}

/// Quantises up to kMaxJobs matrices whose sums are known. `wide`: all pointers are aligned to 16 bytes.
void quantise_jobs(const Jobs& g, bool wide, const char* op) {
  launch_kernel(scale_jobs, {unsigned(g.count), kThreads}, g);
  check_launch(op);
  if (const unsigned blocks = g.first_block[g.count]) {
    launch_kernel(code_blocks, {blocks, kThreads}, g, wide);
    check_launch(op);
  }
}

/// Σ |x| of each block of x.
Tensor block_sums(const float* x, int64_t n, const char* op) {
  Tensor sums({ceil_div(n, kParamBlock)}, DType::f64, Device::cuda);
  if (n == 0) return sums;
  launch_kernel(sum_abs_blocks, {unsigned(sums.size()), kThreads}, x, n, sums.mut<double>(), aligned(x, 16));
  check_launch(op);
  return sums;
}

// Scaling of integer rows: activation codes, weights, sums of products.

/// y[r, c] = A(x[r, c] · (step[r] · scale)); a null factor is 1. One warp per row and span of columns.
template <int N, class From, class A>
__global__ void __launch_bounds__(kThreads)
    scale_rows(const From* x, const float* step, const float* scale, A* y, int64_t rows, int64_t cols) {
  begin_kernel();
  constexpr int kBatch = 4;
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int64_t first = (int64_t(blockIdx.y) * kBatch * kWarp + threadIdx.x % kWarp) * N;
  Pack<From, N> packs[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; ++i)
    if (const int64_t at = first + i * kWarp * N; at < cols)
      packs[i] = *reinterpret_cast<const Pack<From, N>*>(x + row * cols + at);
  const float factor = __fmul_rn(step ? step[row] : 1, scale ? *scale : 1);
#pragma unroll
  for (int i = 0; i < kBatch; ++i)
    if (const int64_t at = first + i * kWarp * N; at < cols) {
      float out[N];
#pragma unroll
      for (int k = 0; k < N; ++k) out[k] = __fmul_rn(float(packs[i].at[k]), factor);
      store<N>(y + row * cols + at, out);
    }
}

template <class From, class A>
void launch_scale_rows(const From* x, const void* step, const void* scale, A* y, int64_t rows, int64_t cols,
                       const char* op) {
  if (rows * cols == 0) return;
  constexpr int kWide = 16 / int(std::max(sizeof(A), sizeof(From)));
  const bool wide = cols % kWide == 0 && aligned(x, kWide * sizeof(From)) && aligned(y, kWide * sizeof(A));
  const int64_t span = 4 * kWarp * (wide ? kWide : 1);
  const dim3 grid(unsigned(ceil_div(rows, kWarps)), unsigned(ceil_div(cols, span)));
  launch_kernel(wide ? scale_rows<kWide, From, A> : scale_rows<1, From, A>, {grid, kThreads}, x,
                static_cast<const float*>(step), static_cast<const float*>(scale), y, rows, cols);
  check_launch(op);
}

// Products.

/// Bytes of the int32 sums of one product by cuBLASLt; more rows take several products.
constexpr int64_t kMaxSums = int64_t(64) << 20;
/// Up to this number of rows reading the weights limits the speed, so tensor cores do not help.
constexpr int64_t kFewRows = 4;

template <int N>
__device__ int32_t dot(const int8_t* a, const int8_t* b, int32_t sum) {
  if constexpr (N == 1) return sum + int32_t(*a) * int32_t(*b);
  const Pack<int32_t, (N + 3) / 4> x = *reinterpret_cast<const Pack<int32_t, (N + 3) / 4>*>(a);
  const Pack<int32_t, (N + 3) / 4> y = *reinterpret_cast<const Pack<int32_t, (N + 3) / 4>*>(b);
#pragma unroll
  for (int i = 0; i < N / 4; ++i) sum = __dp4a(x.at[i], y.at[i], sum);
  return sum;
}

/// One warp per output, N codes per access.
template <int N, class A>
__global__ void __launch_bounds__(kThreads) few_rows(TernaryLinearArgs g) {
  begin_kernel();
  const int64_t at = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (at >= g.n * g.o) return;
  const int64_t row = at / g.o, output = at % g.o;
  const int8_t *q = g.q + row * g.k, *w = static_cast<const int8_t*>(g.codes) + output * g.k;
  int32_t sum = 0;
#pragma unroll 4
  for (int64_t k = threadIdx.x % kWarp * N; k < g.k; k += kWarp * N) sum = dot<N>(q + k, w + k, sum);
#pragma unroll
  for (int width = kWarp / 2; width; width /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, width);
  if (threadIdx.x % kWarp) return;
  const float factor = __fmul_rn(static_cast<const float*>(g.step)[row], *static_cast<const float*>(g.scale));
  static_cast<A*>(g.y)[at] = from_float<A>(__fmul_rn(float(sum), factor));
}

template <class A>
void launch_few_rows(const TernaryLinearArgs& g) {
  const auto fits = [&](int width) { return g.k % width == 0 && aligned(g.q, width) && aligned(g.codes, width); };
  const auto kernel = fits(16) ? few_rows<16, A> : fits(4) ? few_rows<4, A> : few_rows<1, A>;
  launch_kernel(kernel, {unsigned(ceil_div(g.n * g.o, kWarps)), kThreads}, g);
  check_launch("ternary_linear");
}

/// The product by cuBLASLt, for blocks of rows: sums in int32, which a second kernel scales.
template <class A>
void product_and_scale(const TernaryLinearArgs& g) {
  const int64_t most = std::max<int64_t>(kMaxSums / (g.o * int64_t(sizeof(int32_t))) / 16 * 16, 16);
  Tensor scratch({std::min(most, g.n), g.o}, DType::i32, Device::cuda);
  int32_t* sums = scratch.mut<int32_t>();
  for (int64_t begin = 0; begin < g.n; begin += most) {
    const int64_t rows = std::min(most, g.n - begin);
    int8_product(g.q + begin * g.k, static_cast<const int8_t*>(g.codes), sums, rows, g.o, g.k);
    launch_scale_rows(sums, static_cast<const float*>(g.step) + begin, g.scale, static_cast<A*>(g.y) + begin * g.o,
                      rows, g.o, "ternary_linear");
  }
}

template <class A>
void linear(const TernaryLinearArgs& g) {
  if (g.n <= kFewRows) return launch_few_rows<A>(g);
  if constexpr (std::is_same_v<A, Bf16>)
    if (ternary_mma_fits(g.n, g.o, g.k))
      return ternary_mma(g.q, static_cast<const float*>(g.step), static_cast<const int8_t*>(g.codes),
                         static_cast<const float*>(g.scale), static_cast<Bf16*>(g.y), g.n, g.o, g.k, stream());
  if (g.k % 4 == 0 && g.k > 0 && g.o % 4 == 0) return product_and_scale<A>(g);
  launch_few_rows<A>(g);
}

void require_f32(DType type, const char* op) {
  MMFREE_CHECK(DTypeError, type == DType::f32, op, ": expected f32 weights on a GPU, got ", name_of(type));
}

}  // namespace

void ternary_quantise(const TernaryQuantiseArgs& g) {
  constexpr const char* op = "ternary_quantise";
  require_f32(g.type, op);
  const float* weights = static_cast<const float*>(g.weights);
  const int64_t size = g.rows * g.cols;
  const Tensor sums = block_sums(weights, size, op);
  Jobs jobs;
  jobs.jobs[0] = {weights, sums.data<double>(), static_cast<int8_t*>(g.codes), static_cast<float*>(g.scale), size};
  jobs.first_block[0] = 0;
  jobs.first_block[1] = unsigned(sums.size());
  jobs.count = 1;
  quantise_jobs(jobs, aligned(g.weights, 16) && aligned(g.codes, 16), op);
}

void ternary_quantise_flat(const TernaryQuantiseFlatArgs& g) {
  constexpr const char* op = "ternary_quantise_flat";
  require_f32(g.type, op);
  const float* values = static_cast<const float*>(g.values);
  Tensor computed;
  if (!g.abs_sums) computed = block_sums(values, g.blocks * kParamBlock, op);
  const double* sums = g.abs_sums ? g.abs_sums : computed.data<double>();
  for (size_t begin = 0; begin < g.jobs.size(); begin += kMaxJobs) {
    Jobs jobs;
    jobs.count = int(std::min<size_t>(kMaxJobs, g.jobs.size() - begin));
    jobs.first_block[0] = 0;
    bool wide = aligned(values, 16);
    for (int i = 0; i < jobs.count; ++i) {
      const TernaryQuantiseFlatArgs::Job& job = g.jobs[begin + size_t(i)];
      const int64_t size = job.rows * job.cols;
      jobs.jobs[i] = {values + job.offset, sums + job.offset / kParamBlock, static_cast<int8_t*>(job.codes),
                      static_cast<float*>(job.scale), size};
      jobs.first_block[i + 1] = jobs.first_block[i] + unsigned(ceil_div(size, kParamBlock));
      wide = wide && aligned(job.codes, 16);
    }
    quantise_jobs(jobs, wide, op);
  }
}

void ternary_dequantise(const TernaryDequantiseArgs& g) {
  dispatch_activation(g.type, "ternary_dequantise", [&]<class A>() {
    launch_scale_rows(static_cast<const int8_t*>(g.codes), nullptr, g.scale, static_cast<A*>(g.weights), g.rows, g.cols,
                      "ternary_dequantise");
  });
}

void ternary_linear(const TernaryLinearArgs& g) {
  if (g.n * g.o == 0) return;
  dispatch_activation(g.type, "ternary_linear", [&]<class A>() { linear<A>(g); });
}

void scale_codes(const ScaleCodesArgs& g) {
  dispatch_activation(g.type, "scale_codes", [&]<class A>() {
    launch_scale_rows(g.q, g.step, nullptr, static_cast<A*>(g.u), g.n, g.k, "scale_codes");
  });
}

}  // namespace mmfree::cuda
