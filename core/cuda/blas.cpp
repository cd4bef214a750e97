#include "core/cuda/blas.h"

#include <dlfcn.h>

#include "core/cuda/library.h"
#include "core/error.h"

namespace mmfree::cuda {
namespace {

Blas open_blas() {
  Blas b{};
  const std::string name = concat("libcublasLt.so.", CUBLAS_VER_MAJOR);
  void* library = open_library(name);
  if (!library) {
    b.problem = concat("gpu: ", name, " was not found; install CUDA toolkit ", CUBLAS_VER_MAJOR,
                       " (its libraries are enough), or name its folder in CUDA_HOME or LD_LIBRARY_PATH");
    return b;
  }
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (!function) b.problem = concat("gpu: this libcublasLt has no ", name, "; another version is needed");
  };
  find(b.create, "cublasLtCreate");
  find(b.status_string, "cublasLtGetStatusString");
  find(b.layout_create, "cublasLtMatrixLayoutCreate");
  find(b.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(b.desc_create, "cublasLtMatmulDescCreate");
  find(b.desc_destroy, "cublasLtMatmulDescDestroy");
  find(b.desc_set, "cublasLtMatmulDescSetAttribute");
  find(b.preference_create, "cublasLtMatmulPreferenceCreate");
  find(b.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(b.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(b.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(b.matmul, "cublasLtMatmul");
  return b;
}

}  // namespace

const Blas& blas_library() {
  static const Blas library = open_blas();
  return library;
}

}  // namespace mmfree::cuda
