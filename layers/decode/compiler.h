#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "layers/decode/engine.h"

namespace mmfree {

/// The state of a recurrence: a row per slot.
struct EngineRecurrence {
  Tensor state;  ///< [slots, D]
  int64_t width;
  float* at(int64_t slot) { return state.mut<float>() + slot * width; }
};

/// The keys and values of an attention.
struct EngineCache {
  Tensor keys, values;        ///< [slots, C, G, W]
  int64_t window;             ///< as AttentionShape
  std::vector<int64_t> held;  ///< per slot: tokens in the cache, from its beginning on

  int64_t width() const { return keys.dim(2) * keys.dim(3); }
  float* at(Tensor& t, int64_t slot) { return t.mut<float>() + slot * t.dim(1) * width(); }
  /// Tokens that the next token may see, of `position` before it.
  int64_t seen_of(int64_t position) const { return window ? std::min(window - 1, position) : position; }
  int64_t seen(int64_t slot) const { return seen_of(held[size_t(slot)]); }
  /// Moves what is still seen to the beginning if `count` more tokens do not fit behind it.
  void make_room(int64_t slot, int64_t count) {
    int64_t& n = held[size_t(slot)];
    if (n + count <= keys.dim(1)) return;
    const int64_t kept = seen(slot), first = (n - kept) * width();
    for (Tensor* t : {&keys, &values}) std::copy_n(at(*t, slot) + first, kept * width(), at(*t, slot));
    n = kept;
  }
};

/// A model as a program with its buffers and the states that it works on.
struct CompiledModel {
  DecodeProgram program;
  std::vector<Tensor> buffers;  ///< all memory of program and states
  std::vector<std::unique_ptr<EngineRecurrence>> recurrences;
  std::vector<std::unique_ptr<EngineCache>> caches;
  Tensor logits;  ///< [slots, V]
};

/// Runs LM::hidden under a Plan and gives each value a buffer of `chunk` rows; values that are not needed at the same
/// time share one. @throws DeviceError, DTypeError as Engine
CompiledModel compile_decode(const LM& lm, const EngineOptions& options);

}  // namespace mmfree
