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
  explicit DecodeState(int64_t layers = 0) : layers_(size_t(layers)) {}
  LayerState& layer(int64_t l) { return layers_[size_t(l)]; }
  bool empty() const { return layers_.empty(); }
  /// Calls visit(layer, index, tensor) for every tensor.
  template <class Visit>
  void for_each(Visit&& visit) const {
    for (size_t l = 0; l < layers_.size(); ++l)
      for (size_t i = 0; i < layers_[l].tensors.size(); ++i)
        if (const Tensor& t = layers_[l].tensors[i]; t.defined()) visit(int64_t(l), i, t);
  }
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
    for_each([&](int64_t, size_t, const Tensor& t) { sum += t.bytes(); });
    return sum;
  }

 private:
  std::vector<LayerState> layers_;
};

}  // namespace mmfree
