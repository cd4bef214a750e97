#include "core/op_work.h"

#include <algorithm>
#include <functional>
#include <map>
#include <typeindex>

#include "core/ops/adamw.h"
#include "core/ops/attention.h"
#include "core/ops/blocks.h"
#include "core/ops/code_bits.h"
#include "core/ops/elementwise.h"
#include "core/ops/embedding.h"
#include "core/ops/gate_norm.h"
#include "core/ops/head_loss.h"
#include "core/ops/matmul.h"
#include "core/ops/mlgru_scan.h"
#include "core/ops/norm_quant.h"
#include "core/ops/rope.h"
#include "core/ops/ternary.h"
#include "core/ops/ternary_int8.h"
#include "core/ops/tree_sum.h"

namespace mmfree {
namespace {

OpWork::Kind kind_of(DType t) { return t == DType::bf16 ? OpWork::bf16 : t == DType::i8 ? OpWork::int8 : OpWork::f32; }

OpWork product(OpWork::Kind kind, int64_t m, int64_t n, int64_t k, std::string variant = "") {
  return {kind, 2.0 * double(m) * double(n) * double(k), 0, k, std::max({m, n, k}), std::move(variant)};
}
OpWork pass(int64_t elements, DType dtype, double bytes = 0, int64_t width = 0, std::string variant = "") {
  return {OpWork::passes, 0, double(elements) * double(size_of(dtype)) + bytes, width, 0, std::move(variant)};
}

const char* name_of(RowSource::Kind kind) {
  switch (kind) {
    case RowSource::rows:
      return "rows";
    case RowSource::sum:
      return "sum";
    case RowSource::gate:
      return "gate";
    case RowSource::glu:
      return "glu";
    case RowSource::activation:
      return "activation";
  }
  return "?";
}

/// Elements of a norm's source that are read.
int64_t source_elements(const NormArgs& a) {
  const bool two =
      a.source.kind == RowSource::sum || a.source.kind == RowSource::gate || a.source.kind == RowSource::glu;
  return a.n * a.d * (two ? 2 : 1);
}
OpWork norm(const NormArgs& a, int64_t elements) {
  double codes = 0;
  int weights = 0;
  for (int b = 0; b < a.count; ++b) {
    weights += a.branches[b].weight != nullptr;
    if (!a.branches[b].out) continue;
    if (a.branches[b].step)
      codes += double(a.n * a.d);
    else
      elements += a.n * a.d;
  }
  return pass(elements, a.dtype, codes, a.d, concat(name_of(a.source.kind), ", ", weights, " of ", a.count));
}

OpWork of(const MatmulArgs& a) {
  const OpWork::Kind kind = a.round ? OpWork::bf16 : kind_of(a.type_ab);
  return product(kind, a.m, a.n, a.k, concat(a.transpose_a ? "t" : "n", a.transpose_b ? "t" : "n"));
}
OpWork of(const LinearArgs& a) { return product(kind_of(a.type), a.n, a.o, a.k); }
OpWork of(const TernaryLinearArgs& a) { return product(OpWork::int8, a.n, a.o, a.k); }
OpWork of(const TernaryDxInt8Args& a) { return product(OpWork::int8, a.n, a.k, a.o); }
OpWork of(const TernaryDwInt8Args& a) { return product(OpWork::int8, a.o, a.k, a.n); }
OpWork of(const GradientRowsArgs& a) { return pass(a.n * a.o, a.type, double(a.n * a.o), a.o); }
OpWork of(const NormQuantArgs& a) { return norm(a, source_elements(a) + (a.x ? a.n * a.d : 0)); }
OpWork of(const NormQuantBackwardArgs& a) {
  const bool two = a.source.kind == RowSource::gate || a.source.kind == RowSource::glu;
  int64_t reads = source_elements(a) + (a.incoming ? a.n * a.d : 0);
  for (int b = 0; b < a.count; ++b) reads += a.n * a.d;  // dout
  return norm(a, reads + a.n * a.d * (two ? 2 : 1));
}

/// Pairs of a query and a key that it sees, of all heads.
double pairs(const AttentionArgs& a) {
  const double sees = a.window > 0 ? double(std::min(a.window, a.keys)) : double(a.keys);
  return double(a.b * a.heads) * double(a.t) * (a.window > 0 || a.t == 1 ? sees : sees / 2);
}
OpWork attending(const AttentionArgs& a, double products) {
  OpWork work = product(kind_of(a.dtype), a.t, a.keys, a.width);
  work.operations = products * 2 * pairs(a) * double(a.width);
  return work;
}
OpWork of(const AttentionArgs& a) { return attending(a, 2); }
OpWork of(const AttentionBackwardArgs& a) { return attending(a, 5); }
OpWork of(const RopeArgs& a) { return pass(2 * a.b * a.t * a.heads * a.width, a.dtype, 0, a.heads * a.width); }
OpWork of(const MlgruScanArgs& a) { return pass(3 * a.b * a.t * a.d, a.dtype, 0, a.d); }
OpWork of(const MlgruScanBackwardArgs& a) { return pass(6 * a.b * a.t * a.d, a.dtype, 0, a.d); }
OpWork of(const SoftmaxNllArgs& a) { return pass((a.gradient ? 2 : 1) * a.n * a.v, a.dtype, 0, a.v); }
OpWork of(const AdamwArgs& a) { return pass(7 * a.blocks * kParamBlock, a.dtype); }
OpWork of(const SquaresArgs& a) { return pass(a.blocks * kParamBlock, a.dtype); }
OpWork of(const CopyBlocksArgs& a) { return {OpWork::passes, 0, 2 * double(a.count * a.bytes)}; }
OpWork of(const PackCodesArgs& a) { return {OpWork::passes, 0, 1.25 * double(a.count)}; }
OpWork of(const UnpackCodesArgs& a) { return {OpWork::passes, 0, 1.25 * double(a.count)}; }
OpWork of(const TreeSumArgs& a) { return pass((a.count + 1) * a.n, a.dtype); }
OpWork of(const TernaryQuantiseFlatArgs& a) {
  int64_t elements = 0;
  for (const auto& job : a.jobs) elements += job.rows * job.cols;
  return pass(elements, a.type, double(elements) / 4);
}
OpWork of(const TernaryDequantiseArgs& a) { return pass(a.rows * a.cols, a.type, double(a.rows * a.cols) / 4); }
OpWork of(const ScaleCodesArgs& a) { return pass(a.n * a.k, a.type, double(a.n * a.k)); }
OpWork of(const EmbeddingArgs& a) { return pass(2 * a.n * a.d, a.dtype, 0, a.d); }
OpWork of(const GateNormArgs& a) { return pass(3 * a.n * a.d, a.dtype, 0, a.d); }
OpWork of(const GateNormBackwardArgs& a) { return pass(5 * a.n * a.d, a.dtype, 0, a.d); }
OpWork of(const ElementwiseArgs& a) {
  return pass(a.n, a.type_a, double(a.n * size_of(a.type_y)) + (a.b ? double(a.n * size_of(a.type_b)) : 0));
}
OpWork of(const FillArgs& a) { return pass(a.n, a.dtype); }
OpWork of(const SumArgs& a) { return pass(a.n, a.dtype); }

template <class... Args>
std::map<std::type_index, std::function<OpWork(const void*)>> table() {
  return {{typeid(Args), [](const void* args) { return of(*static_cast<const Args*>(args)); }}...};
}

}  // namespace

OpWork work_of(const OpCall& call) {
  static const auto known =
      table<MatmulArgs, LinearArgs, TernaryLinearArgs, TernaryDxInt8Args, TernaryDwInt8Args, GradientRowsArgs,
            NormQuantArgs, NormQuantBackwardArgs, AttentionArgs, AttentionBackwardArgs, RopeArgs, MlgruScanArgs,
            MlgruScanBackwardArgs, SoftmaxNllArgs, AdamwArgs, SquaresArgs, CopyBlocksArgs, TreeSumArgs, PackCodesArgs,
            UnpackCodesArgs, TernaryQuantiseFlatArgs, TernaryDequantiseArgs, ScaleCodesArgs, EmbeddingArgs,
            GateNormArgs, GateNormBackwardArgs, ElementwiseArgs, FillArgs, SumArgs>();
  const auto found = known.find(call.type);
  return found == known.end() ? OpWork() : found->second(call.args);
}

std::string name_of(const OpCall& call, const OpWork& work) {
  constexpr const char* kKinds[] = {"", " f32", " bf16", " int8"};
  return concat(call.op, kKinds[work.kind], work.variant.empty() ? "" : " ", work.variant);
}

}  // namespace mmfree
