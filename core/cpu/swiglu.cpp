#include "core/ops/swiglu.h"

#include "core/cpu/vec.h"
#include "core/parallel.h"

namespace mmfree::cpu {

void swiglu(const SwigluArgs& g) {
  dispatch_float(g.dtype, "swiglu", [&]<class T>() {
    parallel_for(g.n, 16, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* gate = static_cast<const T*>(g.x) + n * 2 * g.i;
        const T* up = gate + g.i;
        T* y = static_cast<T*>(g.out) + n * g.i;
        for (int64_t k = 0; k < g.i; ++k) y[k] = silu(gate[k], sigmoid(gate[k])) * up[k];
      }
    });
  });
}

void swiglu_backward(const SwigluArgs& g) {
  dispatch_float(g.dtype, "swiglu_backward", [&]<class T>() {
    parallel_for(g.n, 16, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* gate = static_cast<const T*>(g.x) + n * 2 * g.i;
        const T* up = gate + g.i;
        const T* dy = static_cast<const T*>(g.dy) + n * g.i;
        T* dgate = static_cast<T*>(g.out) + n * 2 * g.i;
        T* dup = dgate + g.i;
        for (int64_t k = 0; k < g.i; ++k) {
          const T s = sigmoid(gate[k]);
          dgate[k] = dy[k] * up[k] * silu_slope(gate[k], s);
          dup[k] = dy[k] * silu(gate[k], s);
        }
      }
    });
  });
}

}  // namespace mmfree::cpu
