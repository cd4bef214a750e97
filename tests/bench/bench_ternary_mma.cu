// The Hopper product of int8 activations and ternary weights: its bits beside a plain kernel's, then its rate beside
// cuBLASLt's. Needs an idle GPU; exits with 1 if any bit differs.
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "core/cuda/ternary_mma.h"

namespace {

using Bf16 = __nv_bfloat16;
using mmfree::cuda::ternary_mma;

void ok(int status, const char* what) {
  if (status == 0) return;
  std::fprintf(stderr, "%s: error %d\n", what, status);
  std::exit(2);
}
#define OK(call) ok(int(call), #call)

/// Device memory of `size` elements.
template <class T>
struct Buffer {
  T* data = nullptr;
  size_t size;
  explicit Buffer(size_t n) : size(n) { OK(cudaMalloc(reinterpret_cast<void**>(&data), n * sizeof(T))); }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  void poison() { OK(cudaMemset(data, 0xff, size * sizeof(T))); }
};

struct Sizes {
  int64_t n, o, k;
};

__device__ uint32_t hash(uint64_t i, uint32_t seed) {
  uint64_t x = i * 0x9e3779b97f4a7c15u + seed * 0xd1b54a32d192ed03u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  return uint32_t(x >> 32);
}

/// Codes -128..127. With `extremes`, rows 0 and 1 hold the smallest and the largest code alone.
__global__ void fill_codes(int8_t* q, int64_t size, int64_t k, uint32_t seed, bool extremes) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < size; i += int64_t(gridDim.x) * blockDim.x)
    q[i] = extremes && i < 2 * k ? (i < k ? -128 : 127) : int8_t(hash(i, seed) >> 24);
}
/// -1, 0, 1, a third each. With `extremes`, rows 0, 1 and 2 hold 1, -1 and 0 alone.
__global__ void fill_weights(int8_t* w, int64_t size, int64_t k, uint32_t seed, bool extremes) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < size; i += int64_t(gridDim.x) * blockDim.x)
    w[i] = extremes && i < 3 * k ? (i < k ? 1 : i < 2 * k ? -1 : 0) : int8_t(hash(i, seed) % 3) - 1;
}
/// Steps of different binades. With `extremes`, some overflow or vanish.
__global__ void fill_steps(float* step, int64_t n, uint32_t seed, bool extremes) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    step[i] = ldexpf(1.0f + hash(i, seed) * 0x1p-32f, -int(hash(i, seed + 1) % 12));
    if (extremes && i % 16 == 5) step[i] = 3e38f;
    if (extremes && i % 16 == 6) step[i] = 1e-40f;
  }
}
template <class To, class From>
__global__ void convert(To* to, const From* from, int64_t size) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < size; i += int64_t(gridDim.x) * blockDim.x)
    to[i] = To(float(from[i]));
}

/// The formula, one thread an element.
__global__ void reference(const int8_t* q, const float* step, const int8_t* w, const float* scale, Bf16* y, Sizes s) {
  const int64_t i = blockIdx.y * int64_t(blockDim.y) + threadIdx.y, j = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= s.n || j >= s.o) return;
  const int* a = reinterpret_cast<const int*>(q + i * s.k);
  const int* b = reinterpret_cast<const int*>(w + j * s.k);
  int sum = 0;
  for (int64_t l = 0; l < s.k / 4; ++l) sum = __dp4a(a[l], b[l], sum);
  y[i * s.o + j] = __float2bfloat16_rn(__fmul_rn(__int2float_rn(sum), __fmul_rn(step[i], *scale)));
}
__global__ void count_differences(const uint16_t* a, const uint16_t* b, int64_t size, unsigned long long* count) {
  unsigned long long mine = 0;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < size; i += int64_t(gridDim.x) * blockDim.x)
    mine += a[i] != b[i];
  if (mine) atomicAdd(count, mine);
}

/// What follows an int32 product of cuBLASLt: 8 elements a thread.
__global__ void scaling_pass(const int* sums, const float* step, const float* scale, Bf16* y, int64_t n, int64_t o) {
  const int64_t at = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) * 8;
  if (at >= n * o) return;
  const float s = __fmul_rn(step[at / o], *scale);
  int from[8];
  *reinterpret_cast<int4*>(from) = *reinterpret_cast<const int4*>(sums + at);
  *reinterpret_cast<int4*>(from + 4) = *reinterpret_cast<const int4*>(sums + at + 4);
  alignas(16) Bf16 to[8];
  for (int i = 0; i < 8; ++i) to[i] = __float2bfloat16_rn(__fmul_rn(float(from[i]), s));
  *reinterpret_cast<int4*>(y + at) = *reinterpret_cast<const int4*>(to);
}

struct Inputs {
  Buffer<int8_t> q, w;
  Buffer<float> step, scale;
  Inputs(Sizes s, uint32_t seed, bool extremes) : q(s.n * s.k), w(s.o * s.k), step(s.n), scale(1) {
    fill_codes<<<1024, 256>>>(q.data, s.n * s.k, s.k, seed, extremes);
    fill_weights<<<1024, 256>>>(w.data, s.o * s.k, s.k, seed + 1, extremes);
    fill_steps<<<64, 256>>>(step.data, s.n, seed + 2, extremes);
    fill_steps<<<1, 1>>>(scale.data, 1, seed + 4, false);
    OK(cudaGetLastError());
  }
};

unsigned long long differences(const Buffer<Bf16>& a, const Buffer<Bf16>& b) {
  Buffer<unsigned long long> count(1);
  OK(cudaMemset(count.data, 0, sizeof(unsigned long long)));
  count_differences<<<1024, 256>>>(reinterpret_cast<uint16_t*>(a.data), reinterpret_cast<uint16_t*>(b.data), a.size,
                                   count.data);
  unsigned long long result;
  OK(cudaMemcpy(&result, count.data, sizeof(result), cudaMemcpyDeviceToHost));
  return result;
}

using Product = std::function<void(const Inputs&, Bf16* y, Sizes, cudaStream_t)>;

void ours(const Inputs& in, Bf16* y, Sizes s, cudaStream_t stream) {
  ternary_mma(in.q.data, in.step.data, in.w.data, in.scale.data, y, s.n, s.o, s.k, 0, stream);
}

/// Launched plainly and from a graph, into poisoned memory, with a margin behind y that must stay as it was.
bool check(Sizes s, uint32_t seed, bool graph, const Product& product) {
  const Inputs in(s, seed, true);
  const size_t margin = 4096;
  Buffer<Bf16> expected(s.n * s.o + margin), got(s.n * s.o + margin);
  expected.poison();
  const dim3 threads(32, 8);
  reference<<<dim3((s.o + 31) / 32, (s.n + 7) / 8), threads>>>(in.q.data, in.step.data, in.w.data, in.scale.data,
                                                               expected.data, s);
  OK(cudaGetLastError());
  got.poison();
  product(in, got.data, s, nullptr);
  unsigned long long wrong = differences(expected, got);
  if (graph) {
    cudaStream_t stream;
    cudaGraph_t captured;
    cudaGraphExec_t exec;
    OK(cudaStreamCreate(&stream));
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    product(in, got.data, s, stream);
    OK(cudaStreamEndCapture(stream, &captured));
    OK(cudaGraphInstantiate(&exec, captured, 0));
    for (int replay = 0; replay < 2; ++replay) {
      got.poison();
      OK(cudaGraphLaunch(exec, stream));
      OK(cudaStreamSynchronize(stream));
      wrong += differences(expected, got);
    }
    OK(cudaGraphExecDestroy(exec));
    OK(cudaGraphDestroy(captured));
    OK(cudaStreamDestroy(stream));
  }
  OK(cudaDeviceSynchronize());
  if (wrong)
    std::printf("%lld x %lld x %lld: %llu elements differ\n", (long long)s.n, (long long)s.o, (long long)s.k, wrong);
  return wrong == 0;
}

/// Median microseconds of `runs` launches of body(i), queued together after a few others.
double median_us(int runs, const std::function<void(int)>& body) {
  std::vector<cudaEvent_t> events(runs + 1);
  for (cudaEvent_t& e : events) OK(cudaEventCreate(&e));
  for (int i = 0; i < 3; ++i) body(i);
  for (int i = 0; i < runs; ++i) {
    OK(cudaEventRecord(events[i]));
    body(i);
  }
  OK(cudaEventRecord(events[runs]));
  OK(cudaDeviceSynchronize());
  std::vector<float> ms(runs);
  for (int i = 0; i < runs; ++i) OK(cudaEventElapsedTime(&ms[i], events[i], events[i + 1]));
  for (cudaEvent_t e : events) OK(cudaEventDestroy(e));
  std::nth_element(ms.begin(), ms.begin() + runs / 2, ms.end());
  return ms[runs / 2] * 1e3;
}

/// y [n, o] = q [n, k] wᵀ of cuBLASLt with the fastest of its first eight heuristics.
struct BlasProduct {
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t w, q, y;
  Buffer<char> workspace{size_t(64) << 20};
  cublasLtMatmulHeuristicResult_t found[8];
  int count = 0, best = 0;

  BlasProduct(Sizes s, cudaDataType in, cudaDataType out, cublasComputeType_t compute, cudaDataType scalar) {
    OK(cublasLtCreate(&handle));
    OK(cublasLtMatmulDescCreate(&operation, compute, scalar));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    OK(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
    OK(cublasLtMatrixLayoutCreate(&w, in, s.k, s.o, s.k));
    OK(cublasLtMatrixLayoutCreate(&q, in, s.k, s.n, s.k));
    OK(cublasLtMatrixLayoutCreate(&y, out, s.o, s.n, s.o));
    cublasLtMatmulPreference_t preference;
    OK(cublasLtMatmulPreferenceCreate(&preference));
    OK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace.size,
                                            sizeof(workspace.size)));
    OK(cublasLtMatmulAlgoGetHeuristic(handle, operation, w, q, y, y, preference, 8, found, &count));
    OK(cublasLtMatmulPreferenceDestroy(preference));
  }
  ~BlasProduct() {
    cublasLtMatrixLayoutDestroy(w);
    cublasLtMatrixLayoutDestroy(q);
    cublasLtMatrixLayoutDestroy(y);
    cublasLtMatmulDescDestroy(operation);
    cublasLtDestroy(handle);
  }
  void operator()(const void* q_data, const void* w_data, void* y_data) const {
    const int32_t whole[] = {1, 0};
    const float real[] = {1.0f, 0.0f};
    cudaDataType scalar;
    OK(cublasLtMatmulDescGetAttribute(operation, CUBLASLT_MATMUL_DESC_SCALE_TYPE, &scalar, sizeof(scalar), nullptr));
    const bool integer = scalar == CUDA_R_32I;
    const void* one = integer ? static_cast<const void*>(whole) : real;
    const void* zero = integer ? static_cast<const void*>(whole + 1) : real + 1;
    OK(cublasLtMatmul(handle, operation, one, w_data, w, q_data, q, zero, y_data, y, y_data, y, &found[best].algo,
                      workspace.data, workspace.size, nullptr));
  }
  /// Keeps the heuristic with which body(i) is fastest, and returns its time.
  double tune(const std::function<void(int)>& body) {
    std::vector<double> times;
    for (best = 0; best < count; ++best) times.push_back(median_us(5, body));
    best = int(std::min_element(times.begin(), times.end()) - times.begin());
    return median_us(25, body);
  }
};

constexpr int kSets = 3;  // of buffers, used in turn: no run finds its inputs in the cache

void time_shape(Sizes s) {
  std::vector<std::unique_ptr<Inputs>> in;
  std::vector<std::unique_ptr<Buffer<Bf16>>> y;
  for (int i = 0; i < kSets; ++i) {
    in.push_back(std::make_unique<Inputs>(s, 100 + 10 * i, false));
    y.push_back(std::make_unique<Buffer<Bf16>>(s.n * s.o));
  }
  const double us = median_us(25, [&](int i) { ours(*in[i % kSets], y[i % kSets]->data, s, nullptr); });

  Buffer<int> sums(s.n * s.o), other(s.n * s.o);
  int* const to[] = {sums.data, other.data};
  BlasProduct int8(s, CUDA_R_8I, CUDA_R_32I, CUBLAS_COMPUTE_32I, CUDA_R_32I);
  const double blas = int8.tune([&](int i) { int8(in[i % kSets]->q.data, in[i % kSets]->w.data, to[i % 2]); });
  const double both = median_us(25, [&](int i) {
    const Inputs& x = *in[i % kSets];
    int8(x.q.data, x.w.data, to[i % 2]);
    scaling_pass<<<unsigned((s.n * s.o / 8 + 255) / 256), 256>>>(to[i % 2], x.step.data, x.scale.data,
                                                                 y[i % kSets]->data, s.n, s.o);
  });

  std::vector<std::unique_ptr<Buffer<Bf16>>> q, w;
  for (int i = 0; i < kSets; ++i) {
    q.push_back(std::make_unique<Buffer<Bf16>>(s.n * s.k));
    w.push_back(std::make_unique<Buffer<Bf16>>(s.o * s.k));
    convert<<<1024, 256>>>(q[i]->data, in[i]->q.data, s.n * s.k);
    convert<<<1024, 256>>>(w[i]->data, in[i]->w.data, s.o * s.k);
  }
  BlasProduct bf16(s, CUDA_R_16BF, CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  const double half = bf16.tune([&](int i) { bf16(q[i % kSets]->data, w[i % kSets]->data, y[i % kSets]->data); });

  const double operations = 2.0 * s.n * s.o * s.k, bytes = double(s.n) * s.k + double(s.o) * s.k + 2.0 * s.n * s.o;
  std::printf("%6lld %6lld %5lld | %8.1f %7.0f %7.0f %7.0f %7.0f | %5.2f %5.2f | %6.2f\n", (long long)s.n,
              (long long)s.o, (long long)s.k, us, operations / us * 1e-6, operations / both * 1e-6,
              operations / blas * 1e-6, operations / half * 1e-6, both / us, half / us, bytes / us * 1e-6);
  std::fflush(stdout);
}

void time_all(const std::vector<Sizes>& shapes) {
  const size_t bytes = size_t(1) << 30;
  Buffer<char> from(bytes), to(bytes);
  from.poison();
  const double us =
      median_us(20, [&](int) { OK(cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice)); });
  std::printf("copy on the device: %.0f GB/s, read and written\n", 2.0 * bytes / us * 1e-3);
  std::printf("                     |             ------------ Top/s ------------ | faster than  |\n");
  std::printf("     n      o     k |       us    ours int8+pass  int8    bf16   | int8+  bf16  |   TB/s\n");
  for (const Sizes& s : shapes) time_shape(s);
}

const std::vector<Sizes> kShapes = {{65536, 512, 512},    {65536, 1024, 512},  {65536, 2816, 512},  {65536, 512, 1408},
                                    {32768, 1024, 1024},  {65536, 1024, 1024}, {32768, 5632, 1024}, {16384, 5632, 1024},
                                    {32768, 1024, 2816},  {16384, 1024, 2816}, {65536, 2048, 2048}, {16384, 2048, 2048},
                                    {16384, 11264, 2048}, {16384, 2048, 5632}, {4096, 32000, 1024}, {4096, 32000, 512}};

bool check_all(const Product& product) {
  bool right = true;
  int shapes = 0;
  for (int64_t n : {1, 7, 127, 129, 1000})
    for (int64_t o : {8, 24, 136, 264, 1000})
      for (int64_t k : {16, 48, 112, 144, 400, 1040}) right &= check({n, o, k}, ++shapes, true, product);
  for (const Sizes& s : kShapes) right &= check(s, ++shapes, false, product);
  for (int64_t n : {5, 300})
    for (int64_t o : {32, 96, 288, 1056})
      for (int64_t k : {16, 400, 1040}) right &= check({n, o, k}, ++shapes, true, product);
  // Wide y of a short depth: columns of tiles that end inside a block's run, last ones of 1 to 4 boxes.
  for (int64_t k : {16, 112, 400, 512})
    for (int64_t o : {1312, 1376, 1408, 1504}) right &= check({40007, o, k}, ++shapes, true, product);
  // Several tiles a block of every depth around the number of stages, so that the ring wraps and warpgroups drift.
  for (int64_t k = 128; k <= 1152; k += 128)
    for (int64_t o : {1000, 1024}) right &= check({20000, o, k}, ++shapes, true, product);
  std::printf("%s: %d shapes, bit by bit\n", right ? "right" : "WRONG", shapes);
  return right;
}

}  // namespace

int main() {
  if (!mmfree::cuda::ternary_mma_fits(128, 128, 128)) {
    std::printf("skipped: this GPU is no Hopper\n");
    return 0;
  }
  if (!check_all(ours)) return 1;
  time_all(kShapes);
  return 0;
}
