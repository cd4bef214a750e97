#pragma once
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "tests/bench/int8_backward/device.cuh"

/// Times of bodies, and the bf16 product of cuBLASLt.
namespace mmfree::int8_backward {

/// Median of `runs` times of body(i) on the GPU, in microseconds.
inline double median_us(int runs, const std::function<void(int)>& body) {
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

/// d [cols, rows] (column-major) = a [cols, depth] · op(b) of cuBLASLt in bf16 with the fastest of its first eight
/// heuristics.
struct BlasProduct {
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t a, b, d;
  Buffer<char> workspace{size_t(32) << 20};
  cublasLtMatmulHeuristicResult_t found[8];
  int count = 0, best = 0;

  BlasProduct(int64_t cols, int64_t rows, int64_t depth, bool turn_b, cudaDataType out) {
    OK(cublasLtCreate(&handle));
    OK(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t turn = turn_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    OK(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSB, &turn, sizeof(turn)));
    OK(cublasLtMatrixLayoutCreate(&a, CUDA_R_16BF, cols, depth, cols));
    if (turn_b)
      OK(cublasLtMatrixLayoutCreate(&b, CUDA_R_16BF, rows, depth, rows));
    else
      OK(cublasLtMatrixLayoutCreate(&b, CUDA_R_16BF, depth, rows, depth));
    OK(cublasLtMatrixLayoutCreate(&d, out, cols, rows, cols));
    cublasLtMatmulPreference_t preference;
    OK(cublasLtMatmulPreferenceCreate(&preference));
    OK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace.size,
                                            sizeof(workspace.size)));
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    OK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                            sizeof(schemes)));
    OK(cublasLtMatmulAlgoGetHeuristic(handle, operation, a, b, d, d, preference, 8, found, &count));
    OK(cublasLtMatmulPreferenceDestroy(preference));
  }
  ~BlasProduct() {
    cublasLtMatrixLayoutDestroy(a);
    cublasLtMatrixLayoutDestroy(b);
    cublasLtMatrixLayoutDestroy(d);
    cublasLtMatmulDescDestroy(operation);
    cublasLtDestroy(handle);
  }
  void operator()(const void* a_data, const void* b_data, void* d_data) const {
    const float one = 1, zero = 0;
    OK(cublasLtMatmul(handle, operation, &one, a_data, a, b_data, b, &zero, d_data, d, d_data, d, &found[best].algo,
                      workspace.data, workspace.size, nullptr));
  }
  /// Chooses the fastest heuristic; returns its time.
  double tune(const std::function<void(int)>& body) {
    std::vector<double> times;
    for (best = 0; best < count; ++best) times.push_back(median_us(5, body));
    best = int(std::min_element(times.begin(), times.end()) - times.begin());
    return median_us(25, body);
  }
};

}  // namespace mmfree::int8_backward
