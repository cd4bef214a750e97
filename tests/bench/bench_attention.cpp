// Attention on a GPU: cuDNN's fused kernels beside the plain ones, forward and backward, then decoding and rotary
// positions. Needs an idle GPU.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "core/cuda/context.h"
#include "core/gpu.h"
#include "core/ops/attention.h"
#include "core/ops/elementwise.h"

using namespace mmfree;

namespace {

struct Sizes {
  int64_t b, t, heads, kv_heads, width;
};

/// Normal numbers, bf16, on the GPU: a block of them, repeated.
Tensor random_on_gpu(Shape shape, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(size_t(shape.size()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = i < 1000003 ? normal(rng) : values[i - 1000003];
  Tensor narrow(shape, DType::bf16);
  cast(Tensor::from(shape, values.data()), narrow);
  return narrow.to(Device::cuda);
}

Tensor empty(Shape shape, DType type = DType::bf16) { return Tensor(shape, type, Device::cuda); }

/// Median milliseconds of `runs` calls, queued together after two others.
double median_ms(int runs, const std::function<void()>& body) {
  std::vector<cudaEvent_t> events(size_t(runs) + 1);
  for (cudaEvent_t& e : events) MMFREE_CUDA_CHECK(cudaEventCreate(&e));
  for (int i = 0; i < 2; ++i) body();
  for (int i = 0; i < runs; ++i) {
    MMFREE_CUDA_CHECK(cudaEventRecord(events[size_t(i)], cuda::stream()));
    body();
  }
  MMFREE_CUDA_CHECK(cudaEventRecord(events.back(), cuda::stream()));
  gpu::synchronize();
  std::vector<float> ms(static_cast<size_t>(runs));
  for (size_t i = 0; i < ms.size(); ++i) MMFREE_CUDA_CHECK(cudaEventElapsedTime(&ms[i], events[i], events[i + 1]));
  for (cudaEvent_t e : events) MMFREE_CUDA_CHECK(cudaEventDestroy(e));
  std::ranges::sort(ms);
  return double(ms[ms.size() / 2]);
}

/// What a case reads and writes. Documents that all begin at 0 make the plain kernels compute the same as cuDNN.
struct Problem {
  Sizes s;
  Shape own{s.b, s.t, s.heads, s.width}, keys{s.b, s.t, s.kv_heads, s.width};
  Tensor q = random_on_gpu(own, 1), k = random_on_gpu(keys, 2), v = random_on_gpu(keys, 3);
  Tensor dout = random_on_gpu(own, 4), o = empty(own), lse = empty({s.b, s.heads, s.t}, DType::f32);
  Tensor dq = empty(own), dk = empty(keys), dv = empty(keys);

  void forward(bool plain) {
    Positions positions;
    if (plain) positions.begins = Tensor::zeros({s.b, s.t}, DType::i32, Device::cuda);
    attention(q, k, v, s.t, positions, 0, o, lse);
  }
  /// Of `at_once` sequences a call.
  void backward(bool plain, int64_t at_once) {
    for (int64_t i = 0; i < s.b; i += at_once) {
      const int64_t end = std::min(s.b, i + at_once);
      Positions positions;
      if (plain) positions.begins = Tensor::zeros({end - i, s.t}, DType::i32, Device::cuda);
      Tensor part_q = dq.slice(i, end), part_k = dk.slice(i, end), part_v = dv.slice(i, end);
      attention_backward(q.slice(i, end), k.slice(i, end), v.slice(i, end), s.t, positions, 0, o.slice(i, end),
                         lse.slice(i, end), dout.slice(i, end), part_q, part_k, part_v);
    }
  }
};

void time_case(const Sizes& s) {
  Problem p{s};
  // Half of the pairs are seen; two products forward, five backward.
  const double pairs = double(s.b) * double(s.heads) * double(s.t) * double(s.t) / 2,
               product = 2 * pairs * double(s.width);
  const auto line = [&](const char* what, double products, double ms) {
    std::printf("%4lld %5lld %3lld/%-3lld %4lld | %-32s %9.3f ms %7.1f TFLOP/s\n", (long long)s.b, (long long)s.t,
                (long long)s.heads, (long long)s.kv_heads, (long long)s.width, what, ms,
                products * product / ms * 1e-9);
    std::fflush(stdout);
  };
  line("forward", 2, median_ms(20, [&] { p.forward(false); }));
  line("forward, plain", 2, median_ms(5, [&] { p.forward(true); }));
  line("backward", 5, median_ms(20, [&] { p.backward(false, s.b); }));
  for (int64_t at_once = 1; at_once < s.b && at_once <= 4; at_once *= 2)
    line(concat("backward, calls of ", at_once).c_str(), 5, median_ms(10, [&] { p.backward(false, at_once); }));
  line("backward, plain", 5, median_ms(5, [&] { p.backward(true, s.b); }));
  const AttentionArgs args{nullptr, nullptr,    nullptr, nullptr, nullptr, nullptr, s.b, s.t,
                           s.heads, s.kv_heads, s.width, s.t,     s.t,     0,       0,   DType::bf16};
  const AttentionScratch scratch = attention_scratch(args);
  std::printf("     memory of the backward pass: %.0f MiB, %lld sequences at once\n", double(scratch.bytes()) / 1048576,
              (long long)scratch.at_once);
  if (const std::string why = gpu::attention_problem(); !why.empty()) std::printf("     %s\n", why.c_str());
}

/// One token a sequence after `keys` others.
void time_decoding(int64_t b, int64_t keys, int64_t heads, int64_t kv_heads, int64_t width) {
  const Tensor q = random_on_gpu({b, 1, heads, width}, 1), k = random_on_gpu({b, keys + 64, kv_heads, width}, 2);
  const Tensor v = random_on_gpu(k.shape(), 3);
  Tensor o = empty(q.shape()), none;
  const double ms = median_ms(50, [&] { attention(q, k, v, keys, {keys - 1, {}}, 0, o, none); });
  const double bytes = 4.0 * double(b) * double(keys) * double(kv_heads) * double(width);
  std::printf("decoding B %lld S %lld H %lld/%lld W %lld: %.1f us, %.0f GB/s\n", (long long)b, (long long)keys,
              (long long)heads, (long long)kv_heads, (long long)width, ms * 1e3, bytes / ms * 1e-6);
}

void time_rope(int64_t b, int64_t t, int64_t heads, int64_t width) {
  Tensor x = random_on_gpu({b, t, heads, width}, 1);
  const double ms = median_ms(20, [&] { rope(x, {}, 10000, x); });
  std::printf("rope [%lld, %lld, %lld, %lld]: %.1f us, %.0f GB/s read and written\n", (long long)b, (long long)t,
              (long long)heads, (long long)width, ms * 1e3, 2 * double(x.bytes()) / ms * 1e-6);
}

}  // namespace

int main() {
  if (const std::string why = gpu::problem(); !why.empty()) {
    std::printf("skipped: %s\n", why.c_str());
    return 0;
  }
  std::printf("%s\n   B     T  H/G    W\n", gpu::info().name.c_str());
  for (const Sizes& s : {Sizes{32, 2048, 8, 8, 64}, {16, 2048, 16, 16, 64}, {8, 2048, 16, 4, 128}}) time_case(s);
  for (int64_t b : {1, 32}) time_decoding(b, 2048, 16, 16, 64);
  time_decoding(1, 2048, 32, 8, 128);
  time_rope(32, 2048, 8, 64);
  time_rope(16, 2048, 16, 64);
  return 0;
}
