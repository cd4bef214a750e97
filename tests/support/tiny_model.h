#pragma once
#include <vector>

#include "core/rng.h"
#include "layers/lm.h"
#include "layers/parameters.h"

namespace mmfree {

/// A model small enough for any test, of sizes that fit no vector or block.
inline ModelConfig tiny_model_config() {
  ModelConfig c;
  c.vocab_size = 61;
  c.hidden_size = 37;
  c.num_hidden_layers = 3;
  c.intermediate_size = 53;
  c.initializer_range = 0.3;
  return c;
}

/// Every precision at once, by rules: layer 0 all ternary, others partly bf16 and f32.
inline void mix_precisions(ModelConfig& c) {
  c.precision_rules = {{{1}, {"i_proj", "gate_proj"}, Precision::bf16},
                       {{1}, {"f_proj", "down_proj"}, Precision::f32},
                       {{2}, {}, Precision::bf16},
                       {{2}, {"o_proj"}, Precision::ternary}};
}

/// Initialises, then moves the parameters that start as constants, so that norm weights and bounds matter.
inline void randomise(ParamStore& params, uint64_t seed) {
  params.initialise(seed);
  for (size_t i = 0; i < params.specs().size(); ++i) {
    const ParamSpec& spec = params.specs()[i];
    if (spec.init.kind != Init::constant) continue;
    const RandomStream random(seed, 1, spec.name);
    Tensor values = params.view(params.values(), i);
    dispatch_float(values.dtype(), "randomise", [&]<class T>() {
      for (int64_t k = 0; k < values.size(); ++k) values.mut<T>()[k] += T(0.6 * random.uniform(uint64_t(k)) - 0.3);
    });
  }
}

/// Token ids [n] below `vocab`.
inline Tensor random_ids(int64_t n, int64_t vocab, uint64_t seed) {
  const RandomStream random(seed, 0, "ids");
  Tensor ids({n}, DType::i32);
  for (int64_t i = 0; i < n; ++i) ids.mut<int32_t>()[i] = int32_t(random.uniform(uint64_t(i)) * double(vocab));
  return ids;
}

/// Columns [begin, end) of ids [batch, steps].
inline Tensor columns(const Tensor& ids, int64_t batch, int64_t begin, int64_t end) {
  const int64_t steps = ids.size() / batch;
  std::vector<int32_t> part;
  for (int64_t b = 0; b < batch; ++b)
    part.insert(part.end(), ids.data<int32_t>() + b * steps + begin, ids.data<int32_t>() + b * steps + end);
  return Tensor::from({int64_t(part.size())}, part.data());
}

}  // namespace mmfree
