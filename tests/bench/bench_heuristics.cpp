// The bf16 products of the backward pass by cuBLASLt: its heuristic's first choice, which the program takes, beside the
// fastest of the first eight, with workspaces of several sizes. Needs an idle GPU.
//   bench_heuristics    one line per shape and workspace; at the end of each model the milliseconds of a step
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace {

void ok(int status, const char* what) {
  if (status == 0) return;
  std::fprintf(stderr, "%s: error %d\n", what, status);
  std::exit(2);
}
#define OK(call) ok(int(call), #call)

constexpr size_t kWorkspaces[] = {size_t(32) << 20, size_t(64) << 20, size_t(128) << 20};
constexpr int kChoices = 8, kCalls = 15;

/// Row-major c[m, n] = op(a) op(b), as core/cuda/matmul.cpp calls it: as column-major cᵀ = op(b)ᵀ op(a)ᵀ.
struct Product {
  int64_t m, n, k;
  bool transpose_a, f32;  ///< dw: aᵀ b in f32; dx: a b in bf16
};

struct Memory {
  void *a, *b, *c, *workspace;
};

cublasLtMatrixLayout_t layout(cudaDataType_t type, int64_t rows, int64_t cols) {
  cublasLtMatrixLayout_t made;
  OK(cublasLtMatrixLayoutCreate(&made, type, uint64_t(rows), uint64_t(cols), rows));
  return made;
}

/// Microseconds of each choice, in the heuristic's order.
std::vector<double> times(cublasLtHandle_t handle, const Product& p, size_t bytes, const Memory& memory) {
  cublasLtMatmulDesc_t op;
  OK(cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t plain = CUBLAS_OP_N, turned = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  OK(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &plain, sizeof plain));
  OK(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSB, &turned, sizeof turned));
  const auto first = layout(CUDA_R_16BF, p.n, p.k);
  const auto second = p.transpose_a ? layout(CUDA_R_16BF, p.m, p.k) : layout(CUDA_R_16BF, p.k, p.m);
  const auto out = layout(p.f32 ? CUDA_R_32F : CUDA_R_16BF, p.n, p.m);
  cublasLtMatmulPreference_t preference;
  OK(cublasLtMatmulPreferenceCreate(&preference));
  const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  OK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
  OK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                          sizeof schemes));
  cublasLtMatmulHeuristicResult_t found[kChoices];
  int count = 0;
  OK(cublasLtMatmulAlgoGetHeuristic(handle, op, first, second, out, out, preference, kChoices, found, &count));
  cudaEvent_t begin, end;
  OK(cudaEventCreate(&begin));
  OK(cudaEventCreate(&end));
  const float alpha = 1, beta = 0;
  std::vector<double> medians;
  for (int i = 0; i < count; ++i) {
    std::vector<float> calls;
    for (int call = 0; call < kCalls + 3; ++call) {
      float ms = 0;
      OK(cudaEventRecord(begin));
      OK(cublasLtMatmul(handle, op, &alpha, memory.b, first, memory.a, second, &beta, memory.c, out, memory.c, out,
                        &found[i].algo, memory.workspace, bytes, nullptr));
      OK(cudaEventRecord(end));
      OK(cudaEventSynchronize(end));
      OK(cudaEventElapsedTime(&ms, begin, end));
      if (call >= 3) calls.push_back(ms);
    }
    std::nth_element(calls.begin(), calls.begin() + kCalls / 2, calls.end());
    medians.push_back(1e3 * calls[kCalls / 2]);
  }
  OK(cudaEventDestroy(begin));
  OK(cudaEventDestroy(end));
  cublasLtMatmulPreferenceDestroy(preference);
  for (auto l : {first, second, out}) cublasLtMatrixLayoutDestroy(l);
  cublasLtMatmulDescDestroy(op);
  return medians;
}

struct Model {
  const char* name;
  int64_t rows, width, inner, layers;
};
constexpr int64_t kVocabulary = 32000, kHeadRows = 4096;

void measure(cublasLtHandle_t handle, const Model& model, const Memory& memory) {
  struct Shape {
    const char* name;
    int64_t n, o, k, count;  ///< dy [n, o], w [o, k], products of this shape in a step
  };
  const int64_t d = model.width, i = model.inner;
  const Shape shapes[] = {{"i, f, g, o", model.rows, d, d, 4 * model.layers},
                          {"gate-up", model.rows, 2 * i, d, model.layers},
                          {"down", model.rows, d, i, model.layers},
                          {"head", kHeadRows, kVocabulary, d, model.rows / kHeadRows}};
  for (const size_t bytes : kWorkspaces) {
    double first = 0, best = 0;
    for (const Shape& s : shapes)
      for (bool dw : {false, true}) {
        const Product p = dw ? Product{s.o, s.k, s.n, true, true} : Product{s.n, s.k, s.o, false, false};
        const std::vector<double> t = times(handle, p, bytes, memory);
        const auto fastest = std::min_element(t.begin(), t.end());
        const double operations = 2.0 * double(s.n) * double(s.o) * double(s.k);
        std::printf("%s, %zu MiB, %-10s %s: first %7.1f us (%3.0f TFLOP/s), best %7.1f us (number %d of %zu)\n",
                    model.name, bytes >> 20, s.name, dw ? "dw" : "dx", t[0], operations / t[0] * 1e-6, *fastest,
                    int(fastest - t.begin()), t.size());
        first += t[0] * double(s.count), best += *fastest * double(s.count);
      }
    std::printf("%s, %zu MiB: a step %.1f ms with the first choices, %.1f with the best\n", model.name, bytes >> 20,
                first * 1e-3, best * 1e-3);
  }
}

/// Fills `to` with numbers of both signs around 0.01: equal numbers would take less power and so give higher clocks.
void fill(void* to, size_t bytes) {
  std::mt19937 random(1);
  std::vector<uint16_t> numbers(size_t(1) << 20);
  for (uint16_t& x : numbers) x = uint16_t(0x3c00 | (random() & 0x81ff));
  const size_t part = numbers.size() * sizeof numbers[0];
  for (size_t at = 0; at < bytes; at += part)
    OK(cudaMemcpy(static_cast<char*>(to) + at, numbers.data(), std::min(part, bytes - at), cudaMemcpyHostToDevice));
}

}  // namespace

int main() {
  cublasLtHandle_t handle;
  OK(cublasLtCreate(&handle));
  Memory memory{};
  constexpr size_t kMost = size_t(1) << 30;  // the largest operand: 65,536 rows of 2,816, or 16,384 of 11,264, bf16
  for (void** p : {&memory.a, &memory.b, &memory.c, &memory.workspace}) {
    OK(cudaMalloc(p, kMost));
    fill(*p, kMost);
  }
  for (const Model& model : {Model{"370M, 16", 32768, 1024, 2816, 24}, Model{"1.3B, 8", 16384, 2048, 5632, 24},
                             Model{"50M, 32", 65536, 512, 1408, 12}})
    measure(handle, model, memory);
  return 0;
}
