#include "train/inference/random_model.h"

#include <cmath>

#include "core/parallel.h"
#include "core/rng.h"
#include "layers/parameters.h"

namespace mmfree {
namespace {

/// Weights -1, 0 and 1, a third each.
TernaryTensor random_ternary(const std::string& name, int64_t rows, int64_t cols) {
  TernaryTensor w = make_ternary(rows, cols, DType::f32);
  w.cols = cols;
  *w.scale.mut<float>() = 1 / std::sqrt(float(cols));
  const RandomStream random(1, 0, name);
  uint8_t* codes = w.codes.mut<uint8_t>();
  parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    std::vector<int8_t> row(static_cast<size_t>(cols));
    for (int64_t o = begin; o < end; ++o) {
      uint64_t bits = uint64_t(random.uniform(uint64_t(o)) * 0x1p53);
      for (int8_t& weight : row) {
        bits = bits * 6364136223846793005u + 1442695040888963407u;
        weight = int8_t(int64_t((bits >> 32) % 3) - 1);
      }
      pack_ternary(row.data(), 1, cols, codes + o * ternary_row_bytes(cols));
    }
  });
  return w;
}

}  // namespace

Model random_model(const ModelConfig& config) {
  Model m;
  m.config = config;
  m.kind = "random weights";
  m.params = std::make_unique<ParamStore>(unpacked_specs(config), DType::f32);
  m.params->initialise(1);
  m.lm = std::make_unique<LM>(*m.params, m.config);
  std::vector<ProjectionSpec> specs = projections(config);
  size_t i = 0;
  m.lm->for_each_projection([&](const BitLinear& p) {
    const MatrixSpec& matrix = specs[i++].matrix;
    if (!p.weight.defined()) p.matrix->ternary = random_ternary(p.name, matrix.out, matrix.in);
  });
  return m;
}

}  // namespace mmfree
