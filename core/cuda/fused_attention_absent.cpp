#include "core/cuda/fused_attention.h"
#include "core/gpu.h"

namespace mmfree {

bool cuda::fused_attention(const AttentionArgs&) { return false; }
bool cuda::fused_attention_backward(const AttentionBackwardArgs&) { return false; }

std::string gpu::attention_problem() {
  return "attention: this build has no cuDNN (install its headers and configure again)";
}

}  // namespace mmfree
