#pragma once
#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <typeindex>

#include "core/ops/adamw.h"
#include "core/ops/elementwise.h"
#include "core/ops/embedding.h"
#include "core/ops/gate_norm.h"
#include "core/ops/head_loss.h"
#include "core/ops/matmul.h"
#include "core/ops/mlgru_scan.h"
#include "core/ops/norm_quant.h"
#include "core/ops/ternary.h"
#include "core/ops/ternary_int8.h"

namespace mmfree {

/// What one call of an op must do: operations of a product (two per multiply-add), or bytes read and written, each
/// array once. Neither is known of an op that has no entry.
struct OpWork {
  enum Kind { passes, f32, bf16, int8 } kind = passes;
  double operations = 0, bytes = 0;
  int64_t side = 0;  ///< the largest side of a product: the vocabulary's tells the head
};

namespace op_work {

inline OpWork product(OpWork::Kind kind, int64_t m, int64_t n, int64_t k) {
  return {kind, 2.0 * double(m) * double(n) * double(k), 0, std::max({m, n, k})};
}
inline OpWork pass(int64_t elements, DType dtype, double bytes = 0) {
  return {OpWork::passes, 0, double(elements) * double(size_of(dtype)) + bytes, 0};
}

/// Elements of a norm's source that are read.
inline int64_t source_elements(const NormArgs& a) {
  const bool two =
      a.source.kind == RowSource::sum || a.source.kind == RowSource::gate || a.source.kind == RowSource::glu;
  return a.n * a.d * (two ? 2 : 1);
}
inline OpWork norm(const NormArgs& a, int64_t elements) {
  double codes = 0;
  for (int b = 0; b < a.count; ++b) {
    if (!a.branches[b].out) continue;
    if (a.branches[b].step)
      codes += double(a.n * a.d);
    else
      elements += a.n * a.d;
  }
  return pass(elements, a.dtype, codes);
}

inline OpWork of(const MatmulArgs& a) { return product(a.round ? OpWork::bf16 : OpWork::f32, a.m, a.n, a.k); }
inline OpWork of(const LinearArgs& a) { return product(OpWork::f32, a.n, a.o, a.k); }
inline OpWork of(const TernaryLinearArgs& a) { return product(OpWork::int8, a.n, a.o, a.k); }
inline OpWork of(const TernaryDxInt8Args& a) { return product(OpWork::int8, a.n, a.o, a.k); }
inline OpWork of(const TernaryDwInt8Args& a) { return product(OpWork::int8, a.n, a.o, a.k); }
inline OpWork of(const NormQuantArgs& a) { return norm(a, source_elements(a) + (a.x ? a.n * a.d : 0)); }
inline OpWork of(const NormQuantBackwardArgs& a) {
  const bool two = a.source.kind == RowSource::gate || a.source.kind == RowSource::glu;
  int64_t reads = source_elements(a) + (a.incoming ? a.n * a.d : 0);
  for (int b = 0; b < a.count; ++b) reads += a.n * a.d;  // dout
  return norm(a, reads + a.n * a.d * (two ? 2 : 1));
}
inline OpWork of(const MlgruScanArgs& a) { return pass(3 * a.b * a.t * a.d, a.dtype); }
inline OpWork of(const MlgruScanBackwardArgs& a) { return pass(6 * a.b * a.t * a.d, a.dtype); }
inline OpWork of(const SoftmaxNllArgs& a) { return pass((a.gradient ? 2 : 1) * a.n * a.v, a.dtype); }
inline OpWork of(const AdamwArgs& a) { return pass(7 * a.blocks * kParamBlock, a.dtype); }
inline OpWork of(const TernaryQuantiseFlatArgs& a) {
  int64_t elements = 0;
  for (const auto& job : a.jobs) elements += job.rows * job.cols;
  return pass(elements, a.type, double(elements) / 4);
}
inline OpWork of(const TernaryDequantiseArgs& a) { return pass(a.rows * a.cols, a.type, double(a.rows * a.cols) / 4); }
inline OpWork of(const ScaleCodesArgs& a) { return pass(a.n * a.k, a.type, double(a.n * a.k)); }
inline OpWork of(const EmbeddingArgs& a) { return pass(2 * a.n * a.d, a.dtype); }
inline OpWork of(const GateNormArgs& a) { return pass(3 * a.n * a.d, a.dtype); }
inline OpWork of(const GateNormBackwardArgs& a) { return pass(5 * a.n * a.d, a.dtype); }
inline OpWork of(const ElementwiseArgs& a) {
  return pass(a.n, a.type_a, double(a.n * size_of(a.type_y)) + (a.b ? double(a.n * size_of(a.type_b)) : 0));
}
inline OpWork of(const FillArgs& a) { return pass(a.n, a.dtype); }
inline OpWork of(const SumArgs& a) { return pass(a.n, a.dtype); }

template <class... Args>
std::map<std::type_index, std::function<OpWork(const void*)>> table() {
  return {{typeid(Args), [](const void* args) { return of(*static_cast<const Args*>(args)); }}...};
}

}  // namespace op_work

/// The work of one call, from the arguments of its kernel.
inline OpWork work_of(const std::type_info& type, const void* args) {
  static const auto known =
      op_work::table<MatmulArgs, LinearArgs, TernaryLinearArgs, TernaryDxInt8Args, TernaryDwInt8Args, NormQuantArgs,
                     NormQuantBackwardArgs, MlgruScanArgs, MlgruScanBackwardArgs, SoftmaxNllArgs, AdamwArgs,
                     TernaryQuantiseFlatArgs, TernaryDequantiseArgs, ScaleCodesArgs, EmbeddingArgs, GateNormArgs,
                     GateNormBackwardArgs, ElementwiseArgs, FillArgs, SumArgs>();
  const auto found = known.find(type);
  return found == known.end() ? OpWork() : found->second(args);
}

}  // namespace mmfree
