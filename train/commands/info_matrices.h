#pragma once
#include <string>

#include "train/inference/model.h"

namespace mmfree {

/// Prints a line for each matrix of a model: its shape, how it is stored, and of a ternary one its bytes, density (the
/// share of weights that are not 0) and scale.
void print_matrices(const Model& model);

/// The same for the matrices of a GGUF file, whose scales may differ among the groups of a matrix; and whether the file
/// matches the hash that mmfree wrote into it. @throws DataError, DamagedError, IoError
void print_gguf_matrices(const std::string& path);

}  // namespace mmfree
