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
};

/// The keys and values of an attention.
struct EngineCache {
  Tensor keys, values;        ///< [slots, C, G, W]
  int64_t window;             ///< as AttentionShape
  std::vector<int64_t> held;  ///< on the CPU, per slot: tokens in the cache, from its beginning on

  int64_t width() const { return keys.dim(2) * keys.dim(3); }
  float* at(Tensor& t, int64_t slot) { return t.mut<float>() + slot * t.dim(1) * width(); }
  /// Tokens that the next token may see, of `position` before it.
  int64_t seen_of(int64_t position) const { return window ? std::min(window - 1, position) : position; }
  /// Calls body(first place, tokens) for the places in the cache of what the token after `position` others sees, in
  /// order. On a GPU the token at position p is at place p modulo C; on the CPU the last is at held - 1.
  template <class Body>
  void for_seen(int64_t slot, int64_t position, Body&& body) const {
    const int64_t seen = seen_of(position);
    if (keys.device() == Device::cpu) return body(held[size_t(slot)] - seen, seen);
    const int64_t first = (position - seen) % keys.dim(1), until_end = std::min(seen, keys.dim(1) - first);
    body(first, until_end);
    if (seen > until_end) body(0, seen - until_end);
  }
  /// On the CPU: moves what is still seen to the beginning if `count` more tokens do not fit behind it.
  void make_room(int64_t slot, int64_t count) {
    int64_t& n = held[size_t(slot)];
    if (n + count <= keys.dim(1)) return;
    const int64_t kept = seen_of(n), first = (n - kept) * width();
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
