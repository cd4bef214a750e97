#pragma once
#include "core/cuda/cudnn.h"

namespace mmfree::cuda {

/// What an attention graph of cuDNN depends on. S = T = C, and there are no documents.
struct AttentionShape {
  int64_t b, t, heads, kv_heads, width;
  int64_t window;  ///< less than T, or 0
  auto operator<=>(const AttentionShape&) const = default;
};

/// Numbers of the tensors in memory: those of core/ops/attention.h, do·o of each query [B, H, T] f32, and scalars f32:
/// 1/sqrt(W), −infinity, the window and 1.
enum AttentionTensor : int64_t {
  kQ = 1,
  kK,
  kV,
  kO,
  kLse,
  kDout,
  kDq,
  kDk,
  kDv,
  kDelta,
  kScale,
  kMinusInfinity,
  kWindow,
  kOne
};

/// The graphs that cuDNN knows as fused attention, in bf16 with f32 sums and statistics. Its pattern of the backward
/// pass with dq as the output of a product, without a sum in memory, is the deterministic one.
/// @throws DeviceError
OperationGraph attention_graph(const AttentionShape&);
OperationGraph attention_backward_graph(const AttentionShape&);

}  // namespace mmfree::cuda
