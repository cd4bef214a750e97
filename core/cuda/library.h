#pragma once
#include <string>

namespace mmfree::cuda {

/// Opens a shared library of NVIDIA's that is not linked: `name` from the loader's path, from CUDA_HOME, from where the
/// toolkit and the distribution install it, or from a Python environment's packages, in folders nvidia/*/lib. nullptr
/// if it is in none of these places.
void* open_library(const std::string& name);

}  // namespace mmfree::cuda
