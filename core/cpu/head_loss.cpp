#include "core/ops/head_loss.h"

#include "core/cpu/vec.h"
#include "core/parallel.h"

namespace mmfree::cpu {

void softmax_nll(const SoftmaxNllArgs& g) {
  for (int64_t n = 0; n < g.n; ++n)
    MMFREE_CHECK(DataError, g.targets[n] == kIgnoreTarget || (g.targets[n] >= 0 && g.targets[n] < g.v),
                 "head_loss: target ", g.targets[n], " is neither ", kIgnoreTarget, " nor in 0..", g.v - 1,
                 "; was the data prepared with another tokenizer?");
  dispatch_float(g.dtype, "head_loss", [&]<class T>() {
    const T scale = g.gradient ? T(*g.scale) : T(0);
    parallel_for(g.n, 4, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        T* x = static_cast<T*>(g.logits) + n * g.v;
        const int32_t target = g.targets[n];
        T& nll = static_cast<T*>(g.nll)[n];
        if (target == kIgnoreTarget) {
          nll = 0;
          if (g.gradient) std::fill_n(x, g.v, T(0));
          continue;
        }
        const T hit = x[target];
        T largest = x[0];
        for (int64_t k = 0; k < g.v; ++k) largest = x[k] > largest ? x[k] : largest;
        if (!g.gradient) {
          nll = std::log(lane_sum<T>(g.v, [=](int64_t k) { return exp_of(x[k] - largest); })) + largest - hit;
          continue;
        }
        for (int64_t k = 0; k < g.v; ++k) x[k] = exp_of(x[k] - largest);
        const T sum = lane_sum<T>(g.v, [x](int64_t k) { return x[k]; });
        nll = std::log(sum) + largest - hit;
        const T factor = scale / sum;
        for (int64_t k = 0; k < g.v; ++k) x[k] *= factor;
        x[target] -= scale;
      }
    });
  });
}

}  // namespace mmfree::cpu
