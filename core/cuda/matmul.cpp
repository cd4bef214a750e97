#include "core/ops/matmul.h"

#include <bit>
#include <map>
#include <mutex>
#include <tuple>

#include "core/cuda/blas.h"
#include "core/cuda/context.h"
#include "core/cuda/product.h"

namespace mmfree::cuda {
namespace {

void check_blas(cublasStatus_t status, const char* what) {
  MMFREE_CHECK(DeviceError, status == CUBLAS_STATUS_SUCCESS, "gpu: ", what, ": ", blas_library().status_string(status));
}

cudaDataType_t type_of(DType t) {
  switch (t) {
    case DType::f32:
      return CUDA_R_32F;
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::i8:
      return CUDA_R_8I;
    case DType::i32:
      return CUDA_R_32I;
    default:
      throw DTypeError(concat("matmul: no product of ", name_of(t), " on a GPU"));
  }
}

/// A matrix for cuBLASLt, column-major.
struct Matrix {
  cublasLtMatrixLayout_t layout = nullptr;
  Matrix(DType t, int64_t rows, int64_t cols, int64_t stride) {
    check_blas(blas_library().layout_create(&layout, type_of(t), uint64_t(rows), uint64_t(cols), stride),
               "cublasLtMatrixLayoutCreate");
  }
  ~Matrix() { blas_library().layout_destroy(layout); }
  Matrix(const Matrix&) = delete;
};

/// The largest power of two up to 256 that divides the address. The choice of an algorithm depends on it.
uint32_t alignment(const void* p) {
  const auto bits = reinterpret_cast<uintptr_t>(p) | 256;
  return uint32_t(1) << std::countr_zero(bits);
}

using Key = std::tuple<int, int, bool, bool, int64_t, int64_t, int64_t, int64_t, int64_t, uint32_t, uint32_t, uint32_t>;

/// The first choice of cuBLASLt's heuristic, kept per key. Algorithms are not timed: a choice by time would change the
/// bits from run to run.
const cublasLtMatmulAlgo_t& algorithm(const Key& key, cublasLtMatmulDesc_t op, const Matrix& a, const Matrix& b,
                                      const Matrix& c) {
  static std::mutex mutex;
  static std::map<Key, cublasLtMatmulAlgo_t> chosen;
  std::lock_guard lock(mutex);
  if (const auto it = chosen.find(key); it != chosen.end()) return it->second;
  cublasLtMatmulPreference_t preference = nullptr;
  check_blas(blas_library().preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  const size_t bytes = kWorkspaceBytes;
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
    blas_library().preference_set(preference, name, &value, sizeof value);
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes);
  // With split K, the other reduction schemes add partial sums in the output's dtype, which may be bf16.
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      uint32_t(CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::get<9>(key));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, std::get<10>(key));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, std::get<11>(key));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, std::get<11>(key));
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const cublasStatus_t status = blas_library().heuristic(static_cast<cublasLtHandle_t>(blas()), op, a.layout, b.layout,
                                                         c.layout, c.layout, preference, 1, &found, &count);
  blas_library().preference_destroy(preference);
  MMFREE_CHECK(DeviceError, status == CUBLAS_STATUS_SUCCESS && count > 0, "gpu: cuBLASLt has no product for [",
               std::get<4>(key), ", ", std::get<6>(key), "] x [", std::get<6>(key), ", ", std::get<5>(key), "]");
  return chosen.emplace(key, found.algo).first->second;
}

/// 0 and 1 in device memory: if alpha is in device memory, beta must be there too.
const float* device_constants() {
  static const float* made = [] {
    void* p = nullptr;
    constexpr float values[2] = {0, 1};
    check(cudaMalloc(&p, sizeof values), "cudaMalloc");
    check(cudaMemcpy(p, values, sizeof values, cudaMemcpyHostToDevice), "cudaMemcpy");
    return static_cast<const float*>(p);
  }();
  return made;
}

}  // namespace

void matmul(const MatmulArgs& p) {
  if (p.k == 0) {
    if (p.beta == 0) check(cudaMemsetAsync(p.c, 0, size_t(p.m * p.n * size_of(p.type_c)), stream()), "cudaMemsetAsync");
    return;
  }
  // Row-major C = op(A) op(B) is column-major Cᵀ = op(B)ᵀ op(A)ᵀ: the operands are swapped and keep their flags.
  const Matrix first(p.type_ab, p.transpose_b ? p.k : p.n, p.transpose_b ? p.n : p.k, p.ldb);
  const Matrix second(p.type_ab, p.transpose_a ? p.m : p.k, p.transpose_a ? p.k : p.m, p.lda);
  const Matrix out(p.type_c, p.n, p.m, p.n);
  // CUBLAS_COMPUTE_32F multiplies in f32: TF32 would be CUBLAS_COMPUTE_32F_FAST_TF32.
  const bool integers = p.type_ab == DType::i8;
  cublasLtMatmulDesc_t op = nullptr;
  check_blas(blas_library().desc_create(&op, integers ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                                        integers ? CUDA_R_32I : CUDA_R_32F),
             "cublasLtMatmulDescCreate");
  const auto set = [&](cublasLtMatmulDescAttributes_t name, const auto& value) {
    check_blas(blas_library().desc_set(op, name, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  const float alpha = float(p.alpha), beta = float(p.beta);
  const int32_t alpha_i = 1, beta_i = 0;
  const void* alpha_at = integers ? static_cast<const void*>(&alpha_i) : &alpha;
  const void* beta_at = integers ? static_cast<const void*>(&beta_i) : &beta;
  if (p.scale) {
    set(CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
    alpha_at = p.scale;
    beta_at = device_constants() + int(p.beta);
  }
  const Key key{int(p.type_ab),
                int(p.type_c) * 2 + (p.scale ? 1 : 0),
                p.transpose_a,
                p.transpose_b,
                p.m,
                p.n,
                p.k,
                p.lda,
                p.ldb,
                alignment(p.b),
                alignment(p.a),
                alignment(p.c)};
  const cublasStatus_t status = blas_library().matmul(
      static_cast<cublasLtHandle_t>(blas()), op, alpha_at, p.b, first.layout, p.a, second.layout, beta_at, p.c,
      out.layout, p.c, out.layout, &algorithm(key, op, first, second, out), workspace(), kWorkspaceBytes, stream());
  blas_library().desc_destroy(op);
  check_blas(status, "cublasLtMatmul");
  check_launch("matmul");
}

void linear_forward(const LinearArgs& p) {
  matmul({p.x, p.w, p.y, p.type, p.type, false, true, p.n, p.o, p.k, p.k, p.k, 1, 0, false, nullptr});
}

void int8_product(const int8_t* q, const int8_t* w, int32_t* sums, int64_t n, int64_t o, int64_t k) {
  matmul({q, w, sums, DType::i8, DType::i32, false, true, n, o, k, k, k, 1, 0, false, nullptr});
}

}  // namespace mmfree::cuda
