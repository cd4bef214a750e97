#pragma once
#include <cublasLt.h>

#include <string>

namespace mmfree::cuda {

/// The functions of cuBLASLt that are used. The library (half a gigabyte) is not linked but opened with the GPU, so the
/// program starts and runs on the CPU without it.
struct Blas {
  decltype(&::cublasLtCreate) create;
  decltype(&::cublasLtGetStatusString) status_string;
  decltype(&::cublasLtMatrixLayoutCreate) layout_create;
  decltype(&::cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&::cublasLtMatmulDescCreate) desc_create;
  decltype(&::cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&::cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&::cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&::cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&::cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&::cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&::cublasLtMatmul) matmul;
  std::string problem;  ///< why the library could not be opened; empty if it could
};

/// Opens the library on the first call (core/cuda/library.h says where it is looked for).
const Blas& blas_library();

}  // namespace mmfree::cuda
