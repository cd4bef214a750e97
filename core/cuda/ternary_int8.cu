#include "core/cuda/block_mma.h"
#include "core/cuda/bytes.cuh"
#include "core/cuda/code_blocks.h"
#include "core/cuda/rows.cuh"
#include "core/cuda/ternary_mma.h"
#include "core/ops/ternary_int8.h"

namespace mmfree::cuda {
namespace {

// Rows of a gradient.

/// One block per row at a time, kVectors vectors of W columns a thread; 0: any number, and the row is read twice.
template <class A, int kVectors, int W>
__global__ void __launch_bounds__(512) quantise_rows(const A* dy, int8_t* codes, float* steps, int64_t n, int64_t o) {
  __shared__ RowReduction<0, 1> reduce;
  reduce.clear();
  begin_kernel();
  constexpr int kHeld = kVectors ? kVectors : 1;
  int turn = 0;
  for (int64_t row = blockIdx.x; row < n; row += gridDim.x, turn ^= 1) {
    Loaded<A, W> in[kHeld];
    uint32_t most[1] = {};
    each_vector<kVectors, W>(o, [&](int v, int64_t k) {
      in[v].load(dy + row * o + k);
#pragma unroll
      for (int i = 0; i < W; ++i) most[0] = max(most[0], magnitude(in[v][i]));
    });
    reduce(turn, nullptr, most);
    const ActivationScale<float> scale = gradient_scale(__uint_as_float(most[0]));
    if (threadIdx.x == 0) steps[row] = scale.step;
    each_vector<kVectors, W>(o, [&](int v, int64_t k) {
      if constexpr (kVectors == 0) in[v].load(dy + row * o + k);
      Pack<int8_t, W> out;
#pragma unroll
      for (int i = 0; i < W; ++i) out.at[i] = activation_code(in[v][i], scale.inverse);
      *reinterpret_cast<Pack<int8_t, W>*>(codes + row * o + k) = out;
    });
  }
}

template <class A, int kVectors, int W>
void launch_rows(const GradientRowsArgs& g) {
  constexpr auto kernel = quantise_rows<A, kVectors, W>;
  const int threads = threads_for(ceil_div(g.o, W * std::max(kVectors, 1)), 512);
  launch_kernel(kernel, {unsigned(persistent_blocks<kernel>(threads, g.n)), unsigned(threads)},
                static_cast<const A*>(g.dy), g.codes, static_cast<float*>(g.steps), g.n, g.o);
  check_launch("gradient_rows");
}

// Codes of Wᵀ. The tensor cores want both operands contiguous along the depth. The copy lives for one product: it is
// read and written at 1 byte a weight, less than the bf16 copy that a product in bf16 needs.

constexpr int kTurnRows = 64, kTurnCols = 128, kTurnThreads = 128;

/// to [cols, rows] = from [rows, cols]ᵀ. A block turns 64 x 128 bytes, a thread 16 x 4. rows % 16 == 0, cols % 4 == 0.
__global__ void __launch_bounds__(kTurnThreads) turn_tiles(const int8_t* from, int8_t* to, int64_t rows, int64_t cols) {
  __shared__ uint4 turned[kTurnCols * kTurnRows / 16];
  begin_kernel();
  const int lane = threadIdx.x % kWarp, part = threadIdx.x / kWarp;
  const int64_t row = int64_t(blockIdx.x) * kTurnRows, col = int64_t(blockIdx.y) * kTurnCols;
  if (row + part * 16 < rows && col + lane * 4 < cols) {
    const int8_t* at = from + (row + part * 16) * cols + col + lane * 4;
    uint32_t words[4][4];
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      uint32_t four[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) four[i] = *reinterpret_cast<const uint32_t*>(at + (4 * g + i) * cols);
      transpose(four);
#pragma unroll
      for (int c = 0; c < 4; ++c) words[c][g] = four[c];
    }
#pragma unroll
    for (int c = 0; c < 4; ++c)
      turned[(4 * lane + c) * 4 + (part ^ lane % 4)] = {words[c][0], words[c][1], words[c][2], words[c][3]};
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTurnCols * kTurnRows / 16 / kTurnThreads; ++i) {
    const int at = i * kTurnThreads + int(threadIdx.x), c = at / 4, chunk = at % 4;
    if (col + c < cols && row + chunk * 16 < rows)
      *reinterpret_cast<uint4*>(to + (col + c) * rows + row + chunk * 16) = turned[c * 4 + (chunk ^ c / 4 % 4)];
  }
}

void turn(const int8_t* from, int8_t* to, int64_t rows, int64_t cols) {
  const dim3 grid(unsigned(ceil_div(rows, kTurnRows)), unsigned(ceil_div(cols, kTurnCols)));
  launch_kernel(turn_tiles, {grid, kTurnThreads}, from, to, rows, cols);
  check_launch("ternary_dx_int8");
}

// The product on any chip and for any size.

constexpr int kPlainRows = 8, kPlainThreads = 256;

/// kPlainRows rows of dx by one column a thread.
template <class A>
__global__ void __launch_bounds__(kPlainThreads) plain_dx(const TernaryDxInt8Args g) {
  begin_kernel();
  const int64_t first = int64_t(blockIdx.x) * kPlainRows, col = int64_t(blockIdx.y) * kPlainThreads + threadIdx.x;
  if (col >= g.k) return;
  const int8_t* codes = static_cast<const int8_t*>(g.codes) + col;
  int32_t sums[kPlainRows] = {};
  for (int64_t o = 0; o < g.o; ++o) {
    const int32_t weight = codes[o * g.k];
#pragma unroll
    for (int r = 0; r < kPlainRows; ++r)
      if (first + r < g.n) sums[r] += weight * g.rows[(first + r) * g.o + o];
  }
  A* to = static_cast<A*>(g.dx) + first * g.k + col;
#pragma unroll
  for (int r = 0; r < kPlainRows; ++r) {
    if (first + r >= g.n) break;
    const float factor = __fmul_rn(static_cast<const float*>(g.steps)[first + r], *static_cast<const float*>(g.scale));
    const A value = from_float<A>(__fmul_rn(float(sums[r]), factor));
    const float beta = float(g.beta);
    to[r * g.k] = beta == 0 ? value : from_float<A>(__fadd_rn(__fmul_rn(beta, to_float(to[r * g.k])), to_float(value)));
  }
}

template <class A>
void launch_plain_dx(const TernaryDxInt8Args& g) {
  const dim3 grid(unsigned(ceil_div(g.n, kPlainRows)), unsigned(ceil_div(g.k, kPlainThreads)));
  launch_kernel(plain_dx<A>, {grid, kPlainThreads}, g);
  check_launch("ternary_dx_int8");
}

/// Whether the tensor cores can compute dx.
bool fits(const TernaryDxInt8Args& g) {
  return ternary_mma_fits(g.n, g.k, g.o) && is_aligned(g.rows) && is_aligned(g.codes) && is_aligned(g.turned) &&
         is_aligned(g.dx);
}

}  // namespace

void gradient_rows(const GradientRowsArgs& g) {
  if (g.n == 0) return;
  dispatch_activation(g.type, "gradient_rows", [&]<class A>() {
    constexpr int64_t kWide = 8 * 512;  // columns of a block with one vector a thread
    if (g.o % 8 != 0 || !is_aligned(g.dy) || !is_aligned(g.codes)) return launch_rows<A, 0, 1>(g);
    if (g.o <= kWide) return launch_rows<A, 1, 8>(g);
    if (g.o <= 3 * kWide) return launch_rows<A, 3, 8>(g);
    launch_rows<A, 0, 8>(g);
  });
}

void ternary_dx_int8(const TernaryDxInt8Args& g) {
  dispatch_activation(g.type, "ternary_dx_int8", [&]<class A>() {
    if constexpr (std::is_same_v<A, Bf16>)
      if (fits(g)) {
        turn(static_cast<const int8_t*>(g.codes), g.turned, g.o, g.k);
        return ternary_mma(g.rows, static_cast<const float*>(g.steps), g.turned, static_cast<const float*>(g.scale),
                           static_cast<Bf16*>(g.dx), g.n, g.k, g.o, float(g.beta), stream());
      }
    launch_plain_dx<A>(g);
  });
}

void ternary_dw_int8(const TernaryDwInt8Args& g) {
  MMFREE_CHECK(DTypeError, g.type == DType::f32, "ternary_dw_int8: expected dw of f32 on a GPU, got ", name_of(g.type));
  const BlockProduct product{g.rows, g.blocks, g.scales, g.parts,      static_cast<float*>(g.dw),
                             g.o,    g.k,      g.n,      float(g.beta)};
  if (g.n == 0) return block_product(product);
  code_blocks(g.q, static_cast<const float*>(g.step), static_cast<const float*>(g.row_steps), g.blocks, g.scales, g.n,
              g.k);
  block_mma_fits(product) ? block_mma(product) : block_product(product);
}

}  // namespace mmfree::cuda
