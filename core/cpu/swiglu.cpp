#include "core/ops/swiglu.h"

#include "core/cpu/rows.h"
#include "core/parallel.h"

namespace mmfree::cpu {

void swiglu(const SwigluArgs& g) {
  dispatch_float(g.dtype, "swiglu", [&]<class T>() {
    parallel_for(g.n, 16, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* x = static_cast<const T*>(g.x) + n * 2 * g.i;
        swiglu_row(x, x + g.i, g.i, static_cast<T*>(g.out) + n * g.i);
      }
    });
  });
}

void swiglu_backward(const SwigluArgs& g) {
  dispatch_float(g.dtype, "swiglu_backward", [&]<class T>() {
    parallel_for(g.n, 16, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* x = static_cast<const T*>(g.x) + n * 2 * g.i;
        T* dx = static_cast<T*>(g.out) + n * 2 * g.i;
        swiglu_backward_row(x, x + g.i, static_cast<const T*>(g.dy) + n * g.i, g.i, dx, dx + g.i);
      }
    });
  });
}

}  // namespace mmfree::cpu
