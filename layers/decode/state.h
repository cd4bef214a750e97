#pragma once
#include <vector>

#include "core/tensor.h"

namespace mmfree {

/// Decode state of one layer: tensors whose meaning only its mixer knows, and the number of tokens so far. No tensors:
/// the state before the first token.
struct LayerState {
  std::vector<Tensor> tensors;
  int64_t position = 0;

  /// Tensor i, undefined before the first token.
  Tensor& at(size_t i) {
    if (tensors.size() <= i) tensors.resize(i + 1);
    return tensors[i];
  }
};

/// Decode state of a model: one LayerState per layer.
class DecodeState {
 public:
  explicit DecodeState(int64_t layers) : layers_(size_t(layers)) {}
  LayerState& layer(int64_t l) { return layers_[size_t(l)]; }
  void reset() {
    for (LayerState& s : layers_) s = {};
  }
  /// A state that shares no memory with this one.
  DecodeState copy() const {
    DecodeState c = *this;
    for (LayerState& s : c.layers_)
      for (Tensor& t : s.tensors)
        if (t.defined()) t = t.clone();
    return c;
  }
  int64_t bytes() const {
    int64_t sum = 0;
    for (const LayerState& s : layers_)
      for (const Tensor& t : s.tensors) sum += t.defined() ? t.bytes() : 0;
    return sum;
  }

 private:
  std::vector<LayerState> layers_;
};

}  // namespace mmfree
