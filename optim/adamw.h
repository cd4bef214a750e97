#pragma once
#include "optim/optimizer.h"

namespace mmfree {

/// AdamW with decoupled weight decay: see `adamw`. The bias correction does not count skipped updates.
class AdamW final : public Optimizer {
 public:
  AdamW(ParamStore& params, const OptimConfig& config);

  void update(const Tensor& loss = Tensor(), const std::function<void(size_t)>& updated = {}) override;
  std::vector<OptimizerState> states() const override { return {{"adam_m", m_}, {"adam_v", v_}}; }
  void measure() override;

  Tensor& m() { return m_; }  ///< first moments
  Tensor& v() { return v_; }  ///< second moments

 private:
  Tensor m_, v_;
};

}  // namespace mmfree
