#include "autograd/ops.h"
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

/// Appends `tokens` to the first `held` of `cached`, of which at least the last `needed` stay. Writes in place if there
/// is room and no other Tensor sees it. Returns how many of the old ones stayed.
int64_t append(Tensor& cached, int64_t held, int64_t needed, const Tensor& tokens) {
  constexpr int64_t kStep = 64;
  const int64_t count = tokens.dim(1);
  if (cached.defined() && cached.unique() && held + count <= cached.dim(1)) {
    copy_tokens(tokens, 0, count, cached, held);
    return held;
  }
  const int64_t stay = std::min(held, needed), room = std::max(stay + count, 2 * stay);
  Tensor grown({tokens.dim(0), (room + kStep - 1) / kStep * kStep, tokens.dim(2), tokens.dim(3)}, tokens.dtype(),
               tokens.device());
  if (stay) copy_tokens(cached, held - stay, stay, grown, 0);
  copy_tokens(tokens, 0, count, grown, stay);
  cached = grown;
  return stay;
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
    const int64_t needed = shape.window ? std::min(shape.window - 1, cache->held) : cache->held;
    append(cache->values, cache->held, needed, values);
    count += append(cache->keys, cache->held, needed, keys);
    keys = cache->keys, values = cache->values;
    cache->held = count, cache->position += steps;
  }
  Tensor o(turned_q.shape(), turned_q.dtype(), device), lse;
  if (Tape::current()) lse = Tensor({batch, shape.heads, steps}, param_dtype(o.dtype()), device);
  attention(turned_q, keys, values, count, positions, shape.window, o, lse);
  const AttentionNode node{shape, batch, count, positions.first};
  return record("attention", {q, k, v}, {o.reshape(q.shape())}, {turned_q, keys, values, o, lse, positions.begins},
                [node](const BackwardCtx& c) { node.backward(c); })[0];
}

}  // namespace mmfree
