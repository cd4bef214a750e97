#include "core/ops/sample.h"

#include <cmath>

#include "core/dispatch.h"
#include "core/ops/check.h"
#include "core/rng.h"
#include "core/sampling.h"

namespace mmfree {

SampleRow sample_row(const SampleSettings& s, uint64_t index) {
  MMFREE_CHECK(UsageError, s.temperature >= 0 && s.temperature < 1e9, "sample: the temperature must be 0 or more");
  MMFREE_CHECK(UsageError, s.top_k >= 0, "sample: top_k must be 0 or more");
  MMFREE_CHECK(UsageError, s.top_p >= 0 && s.top_p <= 1, "sample: top_p must be from 0 to 1");
  MMFREE_CHECK(UsageError, s.min_p >= 0 && s.min_p <= 1, "sample: min_p must be from 0 to 1");
  MMFREE_CHECK(UsageError, s.repetition_penalty > 0 && s.repetition_penalty < 1e9,
               "sample: the repetition penalty must be above 0");
  const RandomStream random(s.seed, s.request, "sample");
  SampleRow row{random.key(), random.stream(), index, 0, float(s.repetition_penalty), 0, kFarthest, s.top_p};
  if (s.temperature > 0) row.per_unit = float(std::min(1.4426950408889634 / s.temperature, 1e30));
  row.top_k = uint32_t(std::min<int64_t>(s.top_k, int64_t(1) << 30));
  if (s.min_p > 0)
    row.farthest = uint32_t(std::min(-std::log2(s.min_p) * double(1 << kDistanceBits), double(kFarthest)));
  return row;
}

void sample(const Tensor& logits, Tensor& rows, Tensor& seen, Tensor& tokens) {
  check_float("sample", "logits", logits, 2);
  const int64_t r = logits.dim(0), v = logits.dim(1);
  check_tensor("sample", "logits", logits, {r, v}, DType::f32);
  MMFREE_CHECK(ShapeError, v > 0 && v < int64_t(1) << 17, "sample: ", v, " tokens, expected 1 to 131071");
  check_tensor("sample", "rows", rows, {r * int64_t(sizeof(SampleRow))}, DType::u8);
  check_optional("sample", "seen", seen, {r, (v + 31) / 32}, DType::i32);
  check_tensor("sample", "tokens", tokens, {r}, DType::i32);
  check_device("sample", logits.device(), {&rows, &seen, &tokens});
  if (r == 0) return;
  const SampleArgs args{logits.data<float>(),
                        reinterpret_cast<SampleRow*>(rows.raw_mut()),
                        reinterpret_cast<uint32_t*>(seen.raw_mut()),
                        tokens.mut<int32_t>(),
                        r,
                        v,
                        nullptr,
                        nullptr,
                        nullptr,
                        0};
  MMFREE_DISPATCH(logits.device(), sample, args);
}

}  // namespace mmfree
