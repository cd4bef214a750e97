#pragma once
#include "core/ops/rope.h"

namespace mmfree {

/// Causal softmax attention with grouped heads: head h of H reads the keys and values of head h·G/H of G. Query t of
/// sequence b has the index i = first + t in its sequence, with `first` and begins of `positions`. Key j of the call
/// has the index first + T − S + j, so the last T keys belong to the queries' own tokens. Query i sees the keys from
/// max(begins[b, t], i − window + 1) to i:
///   s_j = q·k_j / sqrt(W),  lse = log Σ_j exp(s_j),  o = Σ_j exp(s_j − lse) v_j
/// No T × S matrix is stored. On the CPU a query's bits depend on the keys that it sees alone: keys are taken in tiles
/// from begins[b, t] on, so training, prefill and decoding agree to the bit. On a GPU they agree up to rounding.
///
/// @param q          [B, T, H, W] A, W a multiple of 8
/// @param k, v       [B, C, G, W] A, C >= S, of which the first S are read. G divides H
/// @param keys       S >= T
/// @param positions  first >= S − T
/// @param window     most keys that a query sees, its own among them; 0: all
/// @param o          [B, T, H, W] A, out
/// @param lse        [B, H, T] P, out, for the backward pass; may be undefined: not wanted
/// @throws ShapeError, DTypeError, DeviceError. Source: Vaswani et al. 2017 (arXiv:1706.03762), tiled as Dao et al.
/// 2022 (arXiv:2205.14135); groups: Ainslie et al. 2023 (arXiv:2305.13245).
void attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t keys, const Positions& positions,
               int64_t window, Tensor& o, Tensor& lse);

/// Backward: the exact derivative. q, k, v, keys, positions, window, o and lse as in the forward call.
///   p_j = exp(s_j − lse),  ds_j = p_j (do·v_j − do·o)
///   dq = Σ_j ds_j k_j / sqrt(W),  dk_j = Σ ds_j q / sqrt(W),  dv_j = Σ p_j do    (over the queries that see j)
///
/// @param dout    [B, T, H, W] A: gradient of o
/// @param dq      [B, T, H, W] A, out
/// @param dk, dv  [B, T, G, W] A, out: of the last T keys; those before get no gradient
/// @throws ShapeError, DTypeError, DeviceError
void attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, int64_t keys, const Positions& positions,
                        int64_t window, const Tensor& o, const Tensor& lse, const Tensor& dout, Tensor& dq, Tensor& dk,
                        Tensor& dv);

/// Arguments of both directions.
struct AttentionArgs {
  const void *q, *k, *v;
  const int32_t* begins;  ///< or null
  void *o, *lse;          ///< out in the forward pass, in in the backward pass; lse may be null there
  int64_t b, t, heads, kv_heads, width;
  int64_t keys, capacity;  ///< S and C
  int64_t first, window;
  DType dtype;
};
struct AttentionBackwardArgs : AttentionArgs {
  const void* dout;
  void *dq, *dk, *dv;
  void* scratch;  ///< on a GPU: AttentionScratch::bytes, else null
};

/// Memory of attention_backward on a GPU: do·o of each query, and what cuDNN stores of ds. cuDNN's deterministic
/// algorithm stores ds of every pair of a query and a key, so it gets `at_once` sequences at a time.
struct AttentionScratch {
  int64_t sums;          ///< bytes of do·o, [B, H, T] f32
  int64_t per_sequence;  ///< bytes for cuDNN; 0: it does not do this case
  int64_t at_once;
  int64_t bytes() const { return sums + at_once * per_sequence; }
};
AttentionScratch attention_scratch(const AttentionArgs&);

namespace cpu {
void attention(const AttentionArgs&);
void attention_backward(const AttentionBackwardArgs&);
}  // namespace cpu
namespace cuda {
void attention(const AttentionArgs&);
void attention_backward(const AttentionBackwardArgs&);
}  // namespace cuda

}  // namespace mmfree
