#include "core/cuda/attention_graph.h"

namespace mmfree::cuda {
namespace {

using Id = OperationGraph::Id;
using TensorShape = OperationGraph::TensorShape;

constexpr cudnnDataType_t kFloat = CUDNN_DATA_FLOAT, kBf16 = CUDNN_DATA_BFLOAT16;

/// [B, T, heads, W] in memory, seen as [B, heads, T, W].
TensorShape rows(const AttentionShape& s, int64_t heads) {
  return {{s.b, heads, s.t, s.width}, {s.t * heads * s.width, s.width, heads * s.width, 1}};
}
/// The same memory, seen as [B, heads, W, T].
TensorShape turned(TensorShape s) {
  std::swap(s.dims[2], s.dims[3]);
  std::swap(s.strides[2], s.strides[3]);
  return s;
}
TensorShape dense(int64_t b, int64_t heads, int64_t m, int64_t n) {
  return {{b, heads, m, n}, {heads * m * n, m * n, n, 1}};
}

/// What both graphs begin with.
struct Builder {
  explicit Builder(const AttentionShape& shape) : s(shape) {}

  const AttentionShape& s;
  OperationGraph graph;
  TensorShape scores_shape = dense(s.b, s.heads, s.t, s.t), row_shape = dense(s.b, s.heads, s.t, 1);
  Id q = graph.tensor(kQ, rows(s, s.heads), kBf16);
  Id k = graph.tensor(kK, turned(rows(s, s.kv_heads)), kBf16);
  Id scale = graph.scalar(kScale, kFloat), minus_infinity = graph.scalar(kMinusInfinity, kFloat);

  Id scores(cudnnDataType_t type = kFloat) { return graph.virtual_tensor(scores_shape, type); }
  Id row(cudnnDataType_t type = kFloat) { return graph.virtual_tensor(row_shape, type); }

  /// q·k / sqrt(W)
  Id scaled_scores() {
    const Id product = scores(), scaled = scores();
    graph.matmul(q, k, product);
    graph.binary(CUDNN_POINTWISE_MUL, product, scale, scaled);
    return scaled;
  }
  /// x where a key is at most the query, and at most a window before it; −infinity elsewhere.
  Id masked(Id x) {
    const Id query = scores(CUDNN_DATA_INT32), key = scores(CUDNN_DATA_INT32), seen = scores(CUDNN_DATA_BOOLEAN);
    const Id causal = scores();
    graph.index(2, x, query);
    graph.index(3, x, key);
    graph.binary(CUDNN_POINTWISE_CMP_GE, query, key, seen, CUDNN_DATA_BOOLEAN);
    graph.select(x, minus_infinity, seen, causal);
    return s.window ? windowed(causal) : causal;
  }
  Id windowed(Id x) {
    const Id query = scores(CUDNN_DATA_INT32), key = scores(CUDNN_DATA_INT32), seen = scores(CUDNN_DATA_BOOLEAN);
    const Id reach = scores(), near = scores(), window = graph.scalar(kWindow, kFloat);
    graph.index(2, x, query);
    graph.index(3, x, key);
    graph.binary(CUDNN_POINTWISE_ADD, key, window, reach);
    graph.binary(CUDNN_POINTWISE_CMP_GT, reach, query, seen, CUDNN_DATA_BOOLEAN);
    graph.select(x, minus_infinity, seen, near);
    return near;
  }
  /// A gradient of keys or values: pᵀ x, summed over the heads of a group.
  void key_gradient(Id p, Id x, int64_t uid) {
    TensorShape shape = dense(s.b, s.heads, s.t, s.t);
    std::swap(shape.strides[2], shape.strides[3]);
    const Id p_turned = graph.virtual_tensor(shape, kBf16);
    graph.reshape(p, p_turned);
    const Id out = graph.tensor(uid, rows(s, s.kv_heads), kBf16);
    if (s.heads == s.kv_heads) return graph.matmul(p_turned, x, out);
    const Id of_heads = graph.virtual_tensor(dense(s.b, s.heads, s.t, s.width), kBf16);
    graph.matmul(p_turned, x, of_heads);
    graph.reduce(CUDNN_REDUCE_TENSOR_ADD, of_heads, out);
  }
};

}  // namespace

OperationGraph attention_graph(const AttentionShape& s) {
  Builder b(s);
  OperationGraph& g = b.graph;
  const Id v = g.tensor(kV, rows(s, s.kv_heads), kBf16), o = g.tensor(kO, rows(s, s.heads), kBf16);
  const Id lse = g.tensor(kLse, b.row_shape, kFloat);
  const Id x = b.masked(b.scaled_scores());
  const Id most = b.row(), sum = b.row(), log = b.row();
  const Id below = b.scores(), e = b.scores(), p = b.scores(kBf16);
  g.reduce(CUDNN_REDUCE_TENSOR_MAX, x, most);
  g.binary(CUDNN_POINTWISE_SUB, x, most, below);
  g.unary(CUDNN_POINTWISE_EXP, below, e);
  g.reduce(CUDNN_REDUCE_TENSOR_ADD, e, sum);
  g.unary(CUDNN_POINTWISE_LOG, sum, log);
  g.binary(CUDNN_POINTWISE_ADD, most, log, lse);
  g.binary(CUDNN_POINTWISE_DIV, e, sum, p);
  g.matmul(p, v, o);
  return std::move(b.graph);
}

OperationGraph attention_backward_graph(const AttentionShape& s) {
  Builder b(s);
  OperationGraph& g = b.graph;
  const TensorShape own = rows(s, s.heads), keys = rows(s, s.kv_heads);
  const Id v = g.tensor(kV, turned(keys), kBf16), o = g.tensor(kO, own, kBf16), dout = g.tensor(kDout, own, kBf16);
  const Id lse = g.tensor(kLse, b.row_shape, kFloat), delta = g.tensor(kDelta, b.row_shape, kFloat);

  const Id products = g.virtual_tensor(dense(s.b, s.heads, s.t, s.width), kFloat), sums = b.row();
  g.binary(CUDNN_POINTWISE_MUL, dout, o, products);
  g.reduce(CUDNN_REDUCE_TENSOR_ADD, products, sums);
  g.binary(CUDNN_POINTWISE_MUL, sums, g.scalar(kOne, kFloat), delta);

  const Id scaled = b.scaled_scores(), below = b.scores(), p = b.scores();
  g.binary(CUDNN_POINTWISE_SUB, scaled, lse, below);
  g.unary(CUDNN_POINTWISE_EXP, b.masked(below), p);
  b.key_gradient(p, dout, kDv);

  const Id dp = b.scores(), centred = b.scores(), weighted = b.scores(), ds = b.scores();
  g.matmul(dout, v, dp);
  g.binary(CUDNN_POINTWISE_SUB, dp, delta, centred);
  g.binary(CUDNN_POINTWISE_MUL, centred, p, weighted);
  g.binary(CUDNN_POINTWISE_MUL, weighted, b.scale, ds);
  b.key_gradient(ds, b.q, kDk);

  const Id k_rows = g.virtual_tensor(keys, kBf16);
  g.reshape(b.k, k_rows);
  g.matmul(ds, k_rows, g.tensor(kDq, own, kBf16));
  return std::move(b.graph);
}

}  // namespace mmfree::cuda
