#pragma once
#include <set>
#include <vector>

#include "core/ops/sample.h"

/// Sampling in tests.
namespace mmfree {

/// Settings that use each cut alone and together.
inline std::vector<SampleSettings> sample_settings() {
  return {{},
          {.temperature = 1},
          {.temperature = 0.05},
          {.temperature = 30},
          {.temperature = 0.8, .top_k = 7},
          {.temperature = 0.8, .top_p = 0.95},
          {.temperature = 1.5, .min_p = 0.1},
          {.temperature = 1, .repetition_penalty = 1.3},
          {.repetition_penalty = 1.3},
          {.temperature = 1.1, .top_k = 40, .top_p = 0.7, .min_p = 0.02}};
}

inline Tensor sample_rows(const std::vector<SampleRow>& rows) {
  return Tensor::from({int64_t(rows.size() * sizeof(SampleRow))}, reinterpret_cast<const uint8_t*>(rows.data()));
}

/// A token for each row of logits [R, V], where they are; row i is request s.request + i, and each sequence has `seen`.
inline Tensor sampled(const Tensor& logits, SampleSettings s, const std::vector<int32_t>& seen) {
  const int64_t r = logits.dim(0), words = (logits.dim(1) + 31) / 32;
  std::vector<SampleRow> settings;
  for (int64_t i = 0; i < r; ++i) settings.push_back(sample_row(s)), ++s.request;
  Tensor bits = Tensor::zeros({r, words}, DType::i32);
  for (int64_t i = 0; i < r; ++i)
    for (int32_t id : seen) bits.mut<int32_t>()[i * words + id / 32] |= int32_t(uint32_t(1) << id % 32);
  Tensor rows = sample_rows(settings).to(logits.device()), tokens({r}, DType::i32, logits.device());
  bits = bits.to(logits.device());
  sample(logits, rows, bits, tokens);
  return tokens.to(Device::cpu);
}

}  // namespace mmfree
