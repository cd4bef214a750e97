#include "core/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/cpu/dots.h"
#include "core/cpu/parts.h"
#include "core/cpu/rows.h"
#include "core/parallel.h"

namespace mmfree::cpu {
namespace {

/// Queries and keys of a tile.
constexpr int64_t kQueries = 32, kKeys = 64;

/// A range of keys, [begin, end).
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

/// Sequence b and head h of a call. Queries are counted by t, keys by their place in the buffer.
template <class T>
struct Head {
  RowsOf<T> q, k, v;
  const int32_t* begins;   ///< of the queries, or null
  int64_t before, oldest;  ///< index of key 0 in the sequence, and keys of earlier tokens
  int64_t first, window, width;

  Head(const AttentionArgs& g, int64_t b, int64_t h)
      : begins(g.begins ? g.begins + b * g.t : nullptr),
        before(g.first + g.t - g.keys),
        oldest(g.keys - g.t),
        first(g.first),
        window(g.window),
        width(g.width) {
    const int64_t group = h * g.kv_heads / g.heads, stride = g.kv_heads * g.width;
    q = of_queries(g.q, g, b, h);
    const int64_t keys = (b * g.capacity * g.kv_heads + group) * g.width;
    k = {static_cast<const T*>(g.k) + keys, stride};
    v = {static_cast<const T*>(g.v) + keys, stride};
  }
  /// The rows of head h in a tensor of the queries' shape.
  template <class Pointer>
  static RowsOf<T> of_queries(Pointer* tensor, const AttentionArgs& g, int64_t b, int64_t h) {
    return {static_cast<const T*>(tensor) + (b * g.t * g.heads + h) * g.width, g.heads * g.width};
  }
  int64_t document(int64_t t) const { return begins ? begins[t] : 0; }
  /// The keys that query t sees.
  Range seen(int64_t t) const {
    const int64_t index = first + t;
    const int64_t least = std::max({document(t), before, window ? index - window + 1 : int64_t(0)});
    return {least - before, index - before + 1};
  }
  /// Number of queries from t on, up to `most`, in one document.
  int64_t run(int64_t t, int64_t most) const {
    int64_t n = 1;
    while (n < most && document(t + n) == document(t)) ++n;
    return n;
  }
  /// Calls body(keys) for the tiles that queries [t, t + n) of one document see. Tiles are cut where the distance from
  /// the document's beginning is a multiple of kKeys, whatever the call: so the order of a query's sums is fixed.
  template <class Body>
  void for_tiles(int64_t t, int64_t n, Body&& body) const {
    const int64_t begin = document(t) - before;
    const Range all{seen(t).begin, seen(t + n - 1).end};
    for (int64_t tile = begin + (all.begin - begin) / kKeys * kKeys; tile < all.end; tile += kKeys)
      body(Range{std::max(tile, all.begin), std::min(tile + kKeys, all.end)});
  }
  /// The part of `keys` that query t sees, relative to keys.begin; empty if begin >= end.
  Range within(const Range& keys, int64_t t) const {
    const Range all = seen(t);
    return {std::max(all.begin, keys.begin) - keys.begin, std::min(all.end, keys.end) - keys.begin};
  }
};

/// sum[k] += Σ_i factor(i) · rows[i][k] over i in [begin, end), in the order of i, whatever the range is cut into.
template <class T, class Factor>
void add_rows(T* sum, RowsOf<T> rows, int64_t begin, int64_t end, int64_t width, Factor&& factor) {
  int64_t i = begin;
  for (; i + 4 <= end; i += 4) {
    const T f0 = factor(i), f1 = factor(i + 1), f2 = factor(i + 2), f3 = factor(i + 3);
    const T *r0 = rows[i], *r1 = rows[i + 1], *r2 = rows[i + 2], *r3 = rows[i + 3];
    for (int64_t k = 0; k < width; ++k)
      sum[k] = std::fma(f3, r3[k], std::fma(f2, r2[k], std::fma(f1, r1[k], std::fma(f0, r0[k], sum[k]))));
  }
  for (; i < end; ++i) {
    const T f = factor(i);
    for (int64_t k = 0; k < width; ++k) sum[k] = std::fma(f, rows[i][k], sum[k]);
  }
}

/// The running softmax of one query.
template <class T>
struct Softmax {
  T most = -std::numeric_limits<T>::infinity(), sum = 0;

  /// Takes the scores of a tile, which become exp(score − most), and scales `o`, the sum so far, accordingly.
  void add(T* scores, int64_t n, T* o, int64_t width) {
    T now = most;
    for (int64_t i = 0; i < n; ++i) now = scores[i] > now ? scores[i] : now;
    for (int64_t i = 0; i < n; ++i) scores[i] = exp_of(scores[i] - now);
    if (now > most && sum != 0) {
      const T scale = exp_of(most - now);
      sum *= scale;
      for (int64_t k = 0; k < width; ++k) o[k] *= scale;
    }
    sum += lane_sum<T>(n, [=](int64_t i) { return scores[i]; });
    most = now;
  }
};

/// Queries [t, t + n) of one head and document.
template <class T>
void forward_run(const AttentionArgs& g, int64_t b, int64_t h, int64_t t, int64_t n) {
  const Head<T> head(g, b, h);
  const T scale = T(1) / std::sqrt(T(g.width));
  Softmax<T> softmax[kQueries];
  T scores[kQueries][kKeys];
  const auto o = [&](int64_t i) { return static_cast<T*>(g.o) + ((b * g.t + t + i) * g.heads + h) * g.width; };
  for (int64_t i = 0; i < n; ++i) std::fill_n(o(i), g.width, T(0));
  head.for_tiles(t, n, [&](const Range& keys) {
    dot_products(head.q.from(t), n, head.k.from(keys.begin), keys.size(), g.width, scores[0], kKeys);
    for (int64_t i = 0; i < n; ++i) {
      const Range seen = head.within(keys, t + i);
      if (seen.size() <= 0) continue;
      T* s = scores[i];
      for (int64_t j = seen.begin; j < seen.end; ++j) s[j] *= scale;
      softmax[i].add(s + seen.begin, seen.size(), o(i), g.width);
      add_rows(o(i), head.v.from(keys.begin), seen.begin, seen.end, g.width, [s](int64_t j) { return s[j]; });
    }
  });
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < g.width; ++k) o(i)[k] /= softmax[i].sum;
    if (g.lse) static_cast<T*>(g.lse)[(b * g.heads + h) * g.t + t + i] = softmax[i].most + std::log(softmax[i].sum);
  }
}

/// A tile of queries of one head.
template <class T>
void forward_task(const AttentionArgs& g, int64_t task) {
  const int64_t tiles = (g.t + kQueries - 1) / kQueries;
  const int64_t b = task / (g.heads * tiles), h = task / tiles % g.heads, begin = task % tiles * kQueries;
  const int64_t end = std::min(begin + kQueries, g.t);
  const Head<T> head(g, b, h);
  for (int64_t t = begin, n; t < end; t += n) {
    n = head.run(t, end - t);
    forward_run<T>(g, b, h, t, n);
  }
}

template <class T>
void forward(const AttentionArgs& g) {
  parallel_for(attention_tasks(g), 1, [&](int64_t task, int64_t) { forward_task<T>(g, task); });
}

/// Backward of queries [t, t + n) of one head and document; adds to the group's dk and dv.
template <class T>
void backward_run(const AttentionBackwardArgs& g, int64_t b, int64_t h, int64_t t, int64_t n) {
  const Head<T> head(g, b, h);
  const T scale = T(1) / std::sqrt(T(g.width));
  const RowsOf<T> dout = Head<T>::of_queries(g.dout, g, b, h), o = Head<T>::of_queries(g.o, g, b, h);
  const T* lse = static_cast<const T*>(g.lse) + (b * g.heads + h) * g.t + t;
  const int64_t group = h * g.kv_heads / g.heads, stride = g.kv_heads * g.width;
  const auto own = [&](void* to, int64_t key) {
    return static_cast<T*>(to) + (b * g.t + key - head.oldest) * stride + group * g.width;
  };
  const auto dq = [&](int64_t i) { return static_cast<T*>(g.dq) + ((b * g.t + t + i) * g.heads + h) * g.width; };
  T delta[kQueries], p[kQueries][kKeys], ds[kQueries][kKeys];
  for (int64_t i = 0; i < n; ++i) {
    const T *x = dout[t + i], *y = o[t + i];
    delta[i] = lane_sum<T>(g.width, [=](int64_t k) { return x[k] * y[k]; });
    std::fill_n(dq(i), g.width, T(0));
  }
  head.for_tiles(t, n, [&](const Range& keys) {
    dot_products(head.q.from(t), n, head.k.from(keys.begin), keys.size(), g.width, p[0], kKeys);
    dot_products(dout.from(t), n, head.v.from(keys.begin), keys.size(), g.width, ds[0], kKeys);
    for (int64_t i = 0; i < n; ++i) {
      const Range seen = head.within(keys, t + i);
      for (int64_t j = 0; j < keys.size(); ++j) {
        const bool sees = j >= seen.begin && j < seen.end;
        p[i][j] = sees ? exp_of(p[i][j] * scale - lse[i]) : T(0);
        ds[i][j] = sees ? p[i][j] * (ds[i][j] - delta[i]) * scale : T(0);
      }
      add_rows(dq(i), head.k.from(keys.begin), seen.begin, seen.end, g.width, [&](int64_t j) { return ds[i][j]; });
    }
    for (int64_t j = std::max(int64_t(0), head.oldest - keys.begin); j < keys.size(); ++j) {
      add_rows(own(g.dk, keys.begin + j), head.q.from(t), 0, n, g.width, [&](int64_t i) { return ds[i][j]; });
      add_rows(own(g.dv, keys.begin + j), dout.from(t), 0, n, g.width, [&](int64_t i) { return p[i][j]; });
    }
  });
}

/// A task owns a group's keys and values, so its sums have one order.
template <class T>
void backward(const AttentionBackwardArgs& g) {
  const int64_t heads = g.heads / g.kv_heads, own = g.b * g.t * g.kv_heads * g.width;
  std::fill_n(static_cast<T*>(g.dk), own, T(0));
  std::fill_n(static_cast<T*>(g.dv), own, T(0));
  parallel_for(g.b * g.kv_heads, 1, [&](int64_t task, int64_t) {
    const int64_t b = task / g.kv_heads, group = task % g.kv_heads;
    for (int64_t h = group * heads; h < (group + 1) * heads; ++h) {
      const Head<T> head(g, b, h);
      for (int64_t t = 0, n; t < g.t; t += n) {
        n = head.run(t, std::min(kQueries, g.t - t));
        backward_run<T>(g, b, h, t, n);
      }
    }
  });
}

}  // namespace

void attention(const AttentionArgs& g) {
  dispatch_float(g.dtype, "attention", [&]<class T>() { forward<T>(g); });
}

int64_t attention_tasks(const AttentionArgs& g) { return g.b * g.heads * ((g.t + kQueries - 1) / kQueries); }

void attention_part(const AttentionArgs& g, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) forward_task<float>(g, task);
}

void attention_backward(const AttentionBackwardArgs& g) {
  dispatch_float(g.dtype, "attention_backward", [&]<class T>() { backward<T>(g); });
}

}  // namespace mmfree::cpu
