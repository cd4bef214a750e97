#include "core/ops/adamw.h"

#include <algorithm>
#include <cmath>

#include "core/cpu/abs_sum.h"
#include "core/cpu/vec.h"
#include "core/parallel.h"

namespace mmfree::cpu {

void adamw_begin(const AdamwBeginArgs& g) {
  StepParams& s = *g.step;
  s.grad_norm = std::sqrt(g.sums[0]);
  const bool sound =
      s.grad_norm < kMostNorm && g.sums[1] < kMostNorm * kMostNorm && std::isfinite(g.sums[2] + s.lr + s.decay_factor);
  const bool outlier = s.outlier > 0 && s.norms >= kNormsNeeded && s.grad_norm > s.outlier * s.norm_mean;
  s.skip = !sound ? kSkipUnsound : outlier ? kSkipOutlier : 0;
  if (s.skip != 0) return;
  s.updates += 1;
  s.norms += 1;
  s.norm_mean += (s.grad_norm - s.norm_mean) / std::min(s.norms, kNormWindow);
  s.bias1 = 1 - std::pow(s.beta1, s.updates);
  s.bias2 = 1 - std::pow(s.beta2, s.updates);
  s.grad_scale = s.clip > 0 ? std::min(1.0, s.clip / (s.grad_norm + 1e-6)) : 1.0;
}

void adamw(const AdamwArgs& g) {
  const StepParams& s = *g.step;
  dispatch_float(g.dtype, "adamw", [&]<class T>() {
    const T scale = T(s.grad_scale), b1 = T(s.beta1), b2 = T(s.beta2), eps = T(s.eps);
    const T rest1 = T(1 - s.beta1), rest2 = T(1 - s.beta2), inv1 = T(1 / s.bias1), inv2 = T(1 / s.bias2);
    parallel_for(g.blocks, 16, [=, &g, &s](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const double rate = s.lr * g.rates[2 * block];
        const T lr = T(rate), keep = T(1 - rate * (s.decay_factor * g.rates[2 * block + 1]));
        const int64_t first = block * kParamBlock;
        T* p = static_cast<T*>(g.values) + first;
        T* m = static_cast<T*>(g.m) + first;
        T* v = static_cast<T*>(g.v) + first;
        const T* grad = static_cast<const T*>(g.grads) + first;
        for (int64_t i = 0; s.skip == 0 && i < kParamBlock; ++i) {
          const T d = grad[i] * scale;
          m[i] = b1 * m[i] + rest1 * d;
          v[i] = b2 * v[i] + rest2 * d * d;
          p[i] = p[i] * keep - lr * (m[i] * inv1) / (std::sqrt(v[i] * inv2) + eps);
        }
        if (!g.abs_sums) continue;
        g.abs_sums[block] = sum_abs(p, kParamBlock);
        g.moment_sums[block] = lane_sum<T>(kParamBlock, [=](int64_t i) { return m[i] * m[i] + std::abs(v[i]); });
      }
    });
  });
}

}  // namespace mmfree::cpu
