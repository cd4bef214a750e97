#pragma once
#include "core/tensor.h"

namespace mmfree {

/// How the next token of a sequence is chosen.
struct SampleSettings {
  double temperature = 0;         ///< 0: the most likely token
  int64_t top_k = 0;              ///< keep the k most likely tokens; 0: all
  double top_p = 1;               ///< then keep the most likely ones that together reach this probability
  double min_p = 0;               ///< then drop those below this times the largest probability
  double repetition_penalty = 1;  ///< logits of tokens that the sequence has: positive ones divided by it, others times
  uint64_t seed = 1, request = 0;
};

/// The settings of a row for kernels, and how many random numbers it has used.
struct SampleRow {
  uint64_t key, stream, index;  ///< of RandomStream(seed, request, "sample")
  float per_unit;               ///< log2(e) / temperature; 0: the most likely token
  float penalty;
  uint32_t top_k;     ///< 0: all
  uint32_t farthest;  ///< distance of min_p (core/sampling.h)
  double top_p;
};

/// @throws UsageError for a setting that is NaN or out of its range
SampleRow sample_row(const SampleSettings& settings, uint64_t index = 0);

/// Chooses a token for each row of logits. With a temperature: logits are penalised, tokens are ranked by their
/// distance to the most likely one (core/sampling.h), equal ones by their id, and of those kept token i is chosen if
/// random number `index` falls into its part of the sum of all masses. Without: the largest penalised logit, the lowest
/// id of several. Each row's bits depend on that row alone, and equal logits give equal tokens on every device. Counts
/// `index` of each row up by one, and marks the token in `seen`.
///
/// @param logits  [R, V] f32, V < 2^17
/// @param rows    u8 [R · sizeof(SampleRow)]: a SampleRow per row
/// @param seen    [R, ceil(V / 32)] i32: a bit per token that the sequence has; or undefined: no penalty
/// @param tokens  [R] i32, out; -1 for a row with a NaN or an infinity of positive sign, or without a finite number
/// @throws ShapeError, DTypeError, DeviceError
void sample(const Tensor& logits, Tensor& rows, Tensor& seen, Tensor& tokens);

struct SampleArgs {
  const float* logits;
  SampleRow* rows;
  uint32_t* seen;  ///< or null
  int32_t* tokens;
  int64_t count, vocab;
  // Of a loop on a GPU; null: not wanted.
  int32_t* positions;  ///< [R], counted up
  int32_t* history;    ///< [steps, R] in memory that the host can read: the token of step `taken` modulo `steps`
  int32_t* taken;      ///< [R], counted up
  int64_t steps;
};
namespace cpu {
void sample(const SampleArgs&);
}
namespace cuda {
void sample(const SampleArgs&);
}

}  // namespace mmfree
