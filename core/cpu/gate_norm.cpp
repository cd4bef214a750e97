#include "core/ops/gate_norm.h"

#include "core/cpu/column_sums.h"
#include "core/cpu/rows.h"

namespace mmfree::cpu {
namespace {

template <class T>
void forward(const GateNormArgs& g) {
  const T* w = static_cast<const T*>(g.weight);
  parallel_for(g.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T* a = static_cast<const T*>(g.a) + n * g.d;
      const T r = w ? static_cast<T*>(g.r)[n] = rms_reciprocal(a, g.d, g.eps) : T(1);
      gate_row(a, static_cast<const T*>(g.b) + n * g.d, w, r, g.d, static_cast<T*>(g.y) + n * g.d);
    }
  });
}

template <class T>
void backward(const GateNormBackwardArgs& g) {
  const T* w = static_cast<const T*>(g.weight);
  const int64_t d = g.d;
  ColumnSums<T> sums(g.n, d, 1);
  ThreadRows<T> scratch(d, 2);
  parallel_for(g.n, ColumnSums<T>::kRows, [&](int64_t begin, int64_t end) {
    T* dw = sums.partial(begin / ColumnSums<T>::kRows, 0);
    for (int64_t n = begin; n < end; ++n) {
      const auto row = [=](const void* p) { return static_cast<const T*>(p) + n * d; };
      const auto out = [=](void* p) { return p ? static_cast<T*>(p) + n * d : nullptr; };
      const T r = w ? static_cast<const T*>(g.r)[n] : T(1);
      gate_backward_row(row(g.a), row(g.b), w, r, row(g.dy), d, out(g.da), g.beta_a, out(g.db), g.beta_b, dw,
                        scratch.row(0), scratch.row(1));
    }
  });
  sums.finish(0, static_cast<T*>(g.dweight), g.beta_weight);
}

}  // namespace

void gate_norm(const GateNormArgs& g) {
  dispatch_float(g.dtype, "gate_norm", [&]<class T>() { forward<T>(g); });
}

void gate_norm_backward(const GateNormBackwardArgs& g) {
  dispatch_float(g.dtype, "gate_norm_backward", [&]<class T>() { backward<T>(g); });
}

}  // namespace mmfree::cpu
