#include "autograd/ops.h"
#include "autograd/plan.h"
#include "core/ops/attention.h"
#include "core/ops/check.h"

namespace mmfree {
namespace {

/// What the node of attention stores besides tensors.
struct AttentionNode {
  AttentionShape shape;
  int64_t batch, keys, first;
  enum Slot : size_t { kQ, kK, kV, kO, kLse, kBegins };

  void backward(const BackwardCtx& c) const {
    const Tensor q = c.saved(kQ), k = c.saved(kK);
    const Positions positions{first, c.saved(kBegins)};
    const DType t = q.dtype();
    const Shape own{batch, q.dim(1), shape.kv_heads, shape.width};
    Tensor dq(q.shape(), t, q.device()), dk(own, t, q.device()), dv(own, t, q.device());
    attention_backward(q, k, c.saved(kV), keys, positions, shape.window, c.saved(kO).reshape(q.shape()), c.saved(kLse),
                       c.out_grad().reshape(q.shape()), dq, dk, dv);
    rope_backward(dq, positions, shape.theta, dq);
    rope_backward(dk, positions, shape.theta, dk);
    const int64_t n = batch * q.dim(1);
    c.pass(kQ, dq.reshape({n, shape.heads * shape.width}));
    c.pass(kK, dk.reshape({n, shape.kv_heads * shape.width}));
    c.pass(kV, dv.reshape({n, shape.kv_heads * shape.width}));
  }
};

/// Copies the tokens [from_begin, from_begin + count) of each sequence, [B, C, G, W], to those from `begin` on.
void copy_tokens(const Tensor& from, int64_t from_begin, int64_t count, Tensor& to, int64_t begin) {
  const auto rows = [](const Tensor& t) { return t.reshape({t.dim(0) * t.dim(1), t.dim(2) * t.dim(3)}); };
  for (int64_t b = 0; b < to.dim(0) && count > 0; ++b) {
    const int64_t source = b * from.dim(1) + from_begin, target = b * to.dim(1) + begin;
    rows(to).slice(target, target + count).copy_from(rows(from).slice(source, source + count));
  }
}

/// Appends `tokens` to the first `held` of `cached`, in place if there is room and no other Tensor sees it.
void append(Tensor& cached, int64_t held, const Tensor& tokens) {
  constexpr int64_t kStep = 64;
  const int64_t count = tokens.dim(1), needed = held + count;
  if (!cached.defined() || !cached.unique() || needed > cached.dim(1)) {
    const int64_t room = (std::max(needed, 2 * held) + kStep - 1) / kStep * kStep;
    Tensor grown = Tensor::zeros({tokens.dim(0), room, tokens.dim(2), tokens.dim(3)}, tokens.dtype(), tokens.device());
    if (held) copy_tokens(cached, 0, held, grown, 0);
    cached = grown;
  }
  copy_tokens(tokens, 0, count, cached, held);
}

/// Puts the last `held` of `cached` and then `tokens` into a new tensor.
void slide(Tensor& cached, int64_t held, const Tensor& tokens) {
  const int64_t count = tokens.dim(1);
  Tensor moved({tokens.dim(0), held + count, tokens.dim(2), tokens.dim(3)}, tokens.dtype(), tokens.device());
  if (held) copy_tokens(cached, cached.dim(1) - held, held, moved, 0);
  copy_tokens(tokens, 0, count, moved, held);
  cached = moved;
}

/// Adds a call's keys and values to the cache. Returns how many tokens it holds.
int64_t extend(KeyCache& cache, int64_t window, const Tensor& keys, const Tensor& values) {
  const int64_t held = window ? std::min(window - 1, cache.position) : cache.position;
  for (auto [cached, tokens] : {std::pair{&cache.keys, &keys}, {&cache.values, &values}})
    window ? slide(*cached, held, *tokens) : append(*cached, held, *tokens);
  cache.position += keys.dim(1);
  return held + keys.dim(1);
}

/// Where the documents of a call begin; undefined if all begin at 0. Updates the cache's.
Tensor begins_of(const Tensor& starts, KeyCache* cache, int64_t batch, int64_t steps, Device device) {
  if (!starts.defined() && !(cache && cache->begins.defined())) return {};
  Tensor begins({batch, steps}, DType::i32, device), after({batch}, DType::i32, device);
  document_begins(starts.defined() ? starts.reshape({batch, steps}) : Tensor(), cache ? cache->begins : Tensor(),
                  cache ? cache->position : 0, begins, after);
  if (cache) cache->begins = after;
  return begins;
}

}  // namespace

Var attention(const Var& q, const Var& k, const Var& v, const AttentionShape& shape, int64_t batch, KeyCache* cache,
              const Tensor& starts) {
  if (Plan* plan = Plan::current()) {
    const Var o = plan->value(shape.heads * shape.width, q.compute());
    plan->steps.emplace_back(Plan::Attend{q, k, v, shape, o});
    return o;
  }
  const int64_t steps = q.dim(0) / batch;
  const Device device = q.device();
  const auto heads = [&](const Var& x, int64_t count) { return x.value().reshape({batch, steps, count, shape.width}); };
  const Positions positions{cache ? cache->position : 0, begins_of(starts, cache, batch, steps, device)};
  Tensor turned_q(heads(q, shape.heads).shape(), q.value().dtype(), device);
  Tensor keys(heads(k, shape.kv_heads).shape(), k.value().dtype(), device), values = heads(v, shape.kv_heads);
  rope(heads(q, shape.heads), positions, shape.theta, turned_q);
  rope(heads(k, shape.kv_heads), positions, shape.theta, keys);
  int64_t count = steps;
  if (cache) {
    count = extend(*cache, shape.window, keys, values);
    if (count > steps) keys = cache->keys, values = cache->values;  // else the call's own, which have no room behind
  }
  Tensor o(turned_q.shape(), turned_q.dtype(), device), lse;
  if (Tape::current()) lse = Tensor({batch, shape.heads, steps}, param_dtype(o.dtype()), device);
  attention(turned_q, keys, values, count, positions, shape.window, o, lse);
  const AttentionNode node{shape, batch, count, positions.first};
  return record("attention", {q, k, v}, {o.reshape(q.shape())}, {turned_q, keys, values, o, lse, positions.begins},
                [node](const BackwardCtx& c) { node.backward(c); })[0];
}

}  // namespace mmfree
