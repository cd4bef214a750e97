#include "core/ops/matmul.h"

#include <dnnl.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>

#include "core/cpu/bf16_product.h"
#include "core/cpu/dots.h"
#include "core/parallel.h"

namespace mmfree::cpu {
namespace {

/// Guards a call of oneDNN on this thread. OpenMP regions inside have one thread: otherwise oneDNN would split a tile
/// by the number of threads, and the bits would depend on it. Signals are blocked: before version 3.11.2, oneDNN's
/// products without packing point the stack pointer at the start of a heap buffer (its issue 4845), so a signal frame
/// would overwrite the memory before that buffer.
class InOneDnn {
 public:
  InOneDnn() : threads_(omp_get_max_threads()) {
    omp_set_num_threads(1);
    sigset_t blocked;
    sigfillset(&blocked);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}) sigdelset(&blocked, fault);
    pthread_sigmask(SIG_BLOCK, &blocked, &signals_);
  }
  ~InOneDnn() {
    pthread_sigmask(SIG_SETMASK, &signals_, nullptr);
    omp_set_num_threads(threads_);
  }
  InOneDnn(const InOneDnn&) = delete;

 private:
  int threads_;
  sigset_t signals_;
};

/// Calls body(row_begin, rows, col_begin, cols) for fixed tiles that cover an [m, n] matrix, in parallel.
template <class Body>
void for_tiles(int64_t m, int64_t n, int64_t tile_m, int64_t tile_n, Body&& body) {
  const int64_t across = (n + tile_n - 1) / tile_n, down = (m + tile_m - 1) / tile_m;
  parallel_for(across * down, 1, [&](int64_t t, int64_t) {
    const int64_t i = t / across * tile_m, j = t % across * tile_n;
    body(i, std::min(tile_m, m - i), j, std::min(tile_n, n - j));
  });
}

struct TileShape {
  int64_t m, n;
};

/// The tile size of a product. It depends on the shape alone, so the bits do too.
///   - At most 512 x 1024. Each tile packs both operands again; at this size that costs at most 7 % of the speed.
///   - At least four tiles, if each side keeps 128 or more.
///   - All tiles are equal, so that no thread waits for the last tile of another.
/// If an operand is stored as [K, ...] with a row stride that is a multiple of 4 KiB, the tile is always 512 x 1024:
/// for smaller tiles oneDNN does not pack, the rows evict each other from the cache, and the speed halves.
TileShape tile_shape(const MatmulArgs& p) {
  constexpr TileShape kMost{512, 1024};
  if ((!p.transpose_b && p.ldb % 1024 == 0) || (p.transpose_a && p.lda % 1024 == 0)) return kMost;
  int64_t down = (p.m + kMost.m - 1) / kMost.m, across = (p.n + kMost.n - 1) / kMost.n;
  while (down * across < 4 && std::max(p.m / down, p.n / across) >= 256)
    (p.m / down >= p.n / across ? down : across) *= 2;
  const auto extent = [](int64_t size, int64_t parts) { return ((size + parts - 1) / parts + 15) / 16 * 16; };
  return {extent(p.m, down), extent(p.n, across)};
}

void sgemm(const MatmulArgs& p, const float* a, const float* b, float* c) {
  if (p.k == 0) {  // oneDNN would not write C
    for (int64_t i = 0; i < p.m * p.n; ++i) c[i] = p.beta != 0 ? float(p.beta) * c[i] : 0;
    return;
  }
  const TileShape tile = tile_shape(p);
  std::atomic<bool> done = true;
  for_tiles(p.m, p.n, tile.m, tile.n, [&](int64_t i, int64_t rows, int64_t j, int64_t cols) {
    const InOneDnn guard;
    if (dnnl_sgemm(p.transpose_a ? 'T' : 'N', p.transpose_b ? 'T' : 'N', rows, cols, p.k, float(p.alpha),
                   a + (p.transpose_a ? i : i * p.lda), p.lda, b + (p.transpose_b ? j * p.ldb : j), p.ldb,
                   float(p.beta), c + i * p.n + j, p.n) != dnnl_success)
      done = false;
  });
  // The arguments are valid, so the only cause is no memory for packed operands.
  MMFREE_CHECK(OutOfMemory, done, "matmul: out of memory for a product of [", p.m, ", ", p.k, "] and [", p.k, ", ", p.n,
               "]");
}

template <class In, class Out>
void copy_as(const In* from, Out* to, int64_t n) {
  parallel_for(n, 1 << 16, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = Out(float(from[i]));
  });
}

void matmul_bf16(const MatmulArgs& p) {
  Tensor a({p.m, p.k}, DType::f32), b({p.k, p.n}, DType::f32);
  copy_as(static_cast<const bf16*>(p.a), a.mut<float>(), a.size());
  copy_as(static_cast<const bf16*>(p.b), b.mut<float>(), b.size());
  if (p.type_c == DType::f32) return sgemm(p, a.data<float>(), b.data<float>(), static_cast<float*>(p.c));
  Tensor c({p.m, p.n}, DType::f32);
  if (p.beta != 0) copy_as(static_cast<const bf16*>(p.c), c.mut<float>(), c.size());
  sgemm(p, a.data<float>(), b.data<float>(), c.mut<float>());
  copy_as(c.data<float>(), static_cast<bf16*>(p.c), c.size());
}

/// f32 operands rounded to bf16. Sums are f32 in both ways.
void matmul_rounded(const MatmulArgs& p) {
  if (fast_bf16_products() && has_bf16_product() && !p.transpose_b) return bf16_product(p);
  Tensor a({p.m, p.k}, DType::f32), b({p.k, p.n}, DType::f32);
  const auto round = [](const void* from, Tensor& to) {
    const float* x = static_cast<const float*>(from);
    float* y = to.mut<float>();
    parallel_for(to.size(), 1 << 16, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y[i] = float(bf16(x[i]));
    });
  };
  round(p.a, a), round(p.b, b);
  sgemm(p, a.data<float>(), b.data<float>(), static_cast<float*>(p.c));
}

/// For dtypes without a fast path: sums of type `Sum`, in the order of k.
template <class In, class Sum>
void matmul_plain(const MatmulArgs& p) {
  constexpr int64_t kCols = 64;
  const int64_t a_row = p.transpose_a ? 1 : p.lda, a_k = p.transpose_a ? p.lda : 1;
  const int64_t b_col = p.transpose_b ? p.ldb : 1, b_k = p.transpose_b ? 1 : p.ldb;
  for_tiles(p.m, p.n, 64, kCols, [&](int64_t i0, int64_t rows, int64_t j, int64_t cols) {
    for (int64_t i = i0; i < i0 + rows; ++i) {
      Sum sums[kCols] = {};
      const In* a = static_cast<const In*>(p.a) + i * a_row;
      const In* b = static_cast<const In*>(p.b) + j * b_col;
      for (int64_t k = 0; k < p.k; ++k)
        for (int64_t t = 0; t < cols; ++t) sums[t] += Sum(a[k * a_k]) * Sum(b[k * b_k + t * b_col]);
      Sum* c = static_cast<Sum*>(p.c) + i * p.n + j;
      for (int64_t t = 0; t < cols; ++t) c[t] = Sum(p.alpha) * sums[t] + (p.beta != 0 ? Sum(p.beta) * c[t] : Sum(0));
    }
  });
}

template <class T>
void linear(const LinearArgs& p) {
  for_tiles(p.n, p.o, 128, 24, [&](int64_t i, int64_t rows, int64_t j, int64_t cols) {
    const RowsOf<T> x{static_cast<const T*>(p.x) + i * p.k, p.k}, w{static_cast<const T*>(p.w) + j * p.k, p.k};
    dot_products(x, rows, w, cols, p.k, static_cast<T*>(p.y) + i * p.o + j, p.o);
  });
}

}  // namespace

void matmul(const MatmulArgs& p) {
  if (p.type_ab == DType::bf16) return matmul_bf16(p);
  if (p.type_ab == DType::f64) return matmul_plain<double, double>(p);
  if (p.type_ab == DType::i8) return matmul_plain<int8_t, int32_t>(p);
  if (p.round) return matmul_rounded(p);
  sgemm(p, static_cast<const float*>(p.a), static_cast<const float*>(p.b), static_cast<float*>(p.c));
}

void linear_forward(const LinearArgs& p) {
  dispatch_float(p.type, "linear_forward", [&]<class T>() { linear<T>(p); });
}

}  // namespace mmfree::cpu
