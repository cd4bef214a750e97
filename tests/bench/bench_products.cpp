// Rates of the products at the shapes of the models: ternary_linear beside f32 and oneDNN's int8 product.
#include <dnnl.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <random>
#include <vector>

#include "core/ops/matmul.h"
#include "core/ops/ternary.h"

using namespace mmfree;

namespace {

/// Seconds: of processor time for one thread, so that a busy machine disturbs less, else of wall-clock time.
double now(int threads) {
  if (threads == 1) return double(std::clock()) / CLOCKS_PER_SEC;
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Billions of operations a second (two per multiply-add): the best of rounds of at least 10 ms that fill 0.4 s.
template <class Body>
double rate(int threads, double operations, Body&& body) {
  omp_set_num_threads(threads);
  body();
  const double start = now(threads);
  body();
  const int calls = 1 + int(0.01 / (now(threads) - start + 1e-6));
  double best = 1e30;
  for (double spent = 0; spent < 0.4;) {
    const double begin = now(threads);
    for (int i = 0; i < calls; ++i) body();
    const double seconds = now(threads) - begin;
    best = std::min(best, seconds / calls), spent += seconds;
  }
  return operations / best * 1e-9;
}

void bench(int64_t n, int64_t k, int64_t o) {
  std::mt19937 rng(1);
  std::vector<int8_t> codes(size_t(n * k)), weights(size_t(o * k));
  std::vector<float> x(codes.size()), w(weights.size()), steps(size_t(n), 0.01f);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(codes[i] = int8_t(int(rng() % 255) - 127));
  for (size_t i = 0; i < w.size(); ++i) w[i] = float(weights[i] = int8_t(int(rng() % 3) - 1));
  const Tensor q = Tensor::from({n, k}, codes.data()), step = Tensor::from({n}, steps.data());
  const Tensor dense_x = Tensor::from({n, k}, x.data()), dense_w = Tensor::from({o, k}, w.data());
  TernaryTensor ternary = make_ternary(o, k, DType::f32);
  ternary_quantise(dense_w, ternary);
  Tensor y({n, o}, DType::f32), sums({n, o}, DType::i32), dx({n, k}, DType::f32), dw({o, k}, DType::f32);
  const double operations = 2.0 * double(n) * double(o) * double(k);
  for (int threads : {1, 2}) {
    const double fast = rate(threads, operations, [&] { ternary_linear(q, step, ternary, y); });
    const double tiled = rate(threads, operations, [&] { matmul(dense_x, false, dense_w, true, y); });
    const double own = rate(threads, operations, [&] { linear_forward(dense_x, dense_w, y); });
    const double whole = rate(threads, operations, [&] {
      dnnl_sgemm('N', 'T', n, o, k, 1, dense_x.data<float>(), k, dense_w.data<float>(), k, 0, y.mut<float>(), o);
    });
    const int32_t zero = 0;
    const double int8 = rate(threads, operations, [&] {
      dnnl_gemm_s8s8s32('N', 'T', 'F', n, o, k, 1, codes.data(), k, 0, weights.data(), k, 0, 0, sums.mut<int32_t>(), o,
                        &zero);
    });
    const double back_x = rate(threads, operations, [&] { ternary_linear_dx(y, ternary, dx, 0); });
    const double back_w = rate(threads, operations, [&] { ternary_linear_dw(y, q, step, dw, 0); });
    std::printf("%5ld %5ld %6ld  %d | %8.1f | %7.1f %7.1f %7.1f | %7.1f | %7.1f %7.1f\n", long(n), long(k), long(o),
                threads, fast, tiled, whole, own, int8, back_x, back_w);
    std::fflush(stdout);
  }
}

}  // namespace

int main() {
  std::puts("    N     K      O  threads | ternary | matmul  dnnl f32  linear_forward | dnnl s8 | dx  dw   (Gop/s)");
  bench(2048, 256, 768);
  bench(2048, 256, 32000);
  bench(2048, 704, 256);
  bench(1024, 1024, 5632);
  bench(1, 1024, 5632);
}
