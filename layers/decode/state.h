#pragma once
#include <vector>

#include "core/tensor.h"

namespace mmfree {

/// What generation carries from one token to the next, of a size that does not grow with the text. One entry per layer,
/// opaque to all but the mixer that owns it; an undefined entry is the state before the first token.
class DecodeState {
 public:
  explicit DecodeState(int64_t layers) : layers_(size_t(layers)) {}
  Tensor& layer(int64_t l) { return layers_[size_t(l)]; }
  void reset() {
    for (Tensor& t : layers_) t = Tensor();
  }
  DecodeState copy() const {
    DecodeState c(int64_t(layers_.size()));
    for (size_t l = 0; l < layers_.size(); ++l)
      if (layers_[l].defined()) c.layers_[l] = layers_[l].clone();
    return c;
  }
  int64_t bytes() const {
    int64_t sum = 0;
    for (const Tensor& t : layers_) sum += t.defined() ? t.bytes() : 0;
    return sum;
  }

 private:
  std::vector<Tensor> layers_;
};

}  // namespace mmfree
