#pragma once
#include "core/ops/attention.h"

namespace mmfree::cuda {

/// cuDNN's fused attention. False: it does not do this case, or there is no cuDNN, and nothing was launched.
bool fused_attention(const AttentionArgs&);
/// Backward, by the deterministic algorithm.
bool fused_attention_backward(const AttentionBackwardArgs&);

}  // namespace mmfree::cuda
