#include <gtest/gtest.h>

#include "core/ops/attention.h"
#include "tests/support/composed.h"
#include "tests/support/starts.h"

using namespace mmfree;

namespace {

struct Problem {
  Tensor q, k, v, dout;
  int64_t keys;
  Positions positions;
  int64_t window;
};

struct Sizes {
  int64_t b, t, keys, heads, kv_heads, width;
};

/// Shapes around the kernel's tiles of 32 queries and 64 keys; with more keys than queries, and a cache with room.
constexpr Sizes kSizes[] = {{1, 1, 1, 1, 1, 8},     {2, 19, 19, 4, 2, 8},  {1, 131, 131, 2, 2, 24},
                            {2, 70, 70, 3, 1, 40},  {2, 1, 100, 4, 2, 16}, {1, 33, 150, 2, 1, 128},
                            {1, 64, 128, 2, 2, 64}, {3, 5, 9, 6, 3, 8}};

Problem make_problem(const Sizes& s, DType type, int64_t window, bool starts) {
  const int64_t room = s.keys == s.t ? 0 : 7, before = s.keys - s.t;
  Problem p{random_tensor({s.b, s.t, s.heads, s.width}, type, 1, 2),
            random_tensor({s.b, s.keys + room, s.kv_heads, s.width}, type, 2, 2),
            random_tensor({s.b, s.keys + room, s.kv_heads, s.width}, type, 3),
            random_tensor({s.b, s.t, s.heads, s.width}, type, 4),
            s.keys,
            {before + (window ? 3 : 0), {}},  // with a window some keys are gone
            window};
  if (starts) {
    Tensor after({s.b}, DType::i32), first({s.b}, DType::i32);
    for (int64_t b = 0; b < s.b; ++b) first.mut<int32_t>()[b] = int32_t(std::min(before, before / 2 + b));
    p.positions.begins = Tensor({s.b, s.t}, DType::i32);
    document_begins(some_starts(s.b, s.t), first, p.positions.first, p.positions.begins, after);
  }
  return p;
}

/// o by the formula, query by query.
Tensor composed_attention(const Problem& p) {
  const int64_t batch = p.q.dim(0), steps = p.q.dim(1), heads = p.q.dim(2), width = p.q.dim(3);
  const int64_t capacity = p.k.dim(1), groups = p.k.dim(2), before = p.positions.first + steps - p.keys;
  Tensor o(p.q.shape(), DType::f64);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t index = p.positions.first + t, at_q = ((b * steps + t) * heads + h) * width;
        const int64_t document = p.positions.begins.defined() ? p.positions.begins.data<int32_t>()[b * steps + t] : 0;
        const auto at_key = [&](int64_t j) { return ((b * capacity + j) * groups + h / (heads / groups)) * width; };
        std::vector<double> weights;
        double total = 0;
        for (int64_t j = 0; j < p.keys; ++j) {
          double score = 0;
          for (int64_t i = 0; i < width; ++i) score += at(p.q, at_q + i) * at(p.k, at_key(j) + i);
          const int64_t key = before + j;
          const bool seen = key <= index && key >= document && (p.window == 0 || key > index - p.window);
          weights.push_back(seen ? std::exp(score / std::sqrt(double(width))) : 0);
          total += weights.back();
        }
        for (int64_t i = 0; i < width; ++i) {
          double sum = 0;
          for (int64_t j = 0; j < p.keys; ++j) sum += weights[size_t(j)] / total * at(p.v, at_key(j) + i);
          set(o, at_q + i, sum);
        }
      }
  return o;
}

Tensor forward(const Problem& p, Tensor* lse = nullptr) {
  Tensor o(p.q.shape(), p.q.dtype()), none;
  if (lse) *lse = Tensor({p.q.dim(0), p.q.dim(2), p.q.dim(1)}, p.q.dtype());
  attention(p.q, p.k, p.v, p.keys, p.positions, p.window, o, lse ? *lse : none);
  return o;
}

std::vector<Tensor> backward(const Problem& p) {
  Tensor lse;
  const Tensor o = forward(p, &lse);
  const Shape own{p.q.dim(0), p.q.dim(1), p.k.dim(2), p.q.dim(3)};
  Tensor dq = full(p.q.shape(), p.q.dtype(), kNaN), dk = full(own, p.q.dtype(), kNaN), dv = dk.clone();
  attention_backward(p.q, p.k, p.v, p.keys, p.positions, p.window, o, lse, p.dout, dq, dk, dv);
  return {dq, dk, dv};
}

template <class Body>
void for_problems(DType type, Body&& body) {
  for (const Sizes& s : kSizes)
    for (int64_t window : {0, 1, 3, 65})
      for (bool starts : {false, true}) {
        SCOPED_TRACE(concat(name_of(type), ' ', s.b, 'x', s.t, " keys ", s.keys, " heads ", s.heads, '/', s.kv_heads,
                            'x', s.width, " window ", window, " starts ", starts));
        body(make_problem(s, type, window, starts));
      }
}

}  // namespace

TEST(Attention, MatchesItsComposedTwin) {
  // A score is a sum of at most 128 products, and the weights sum to 1: errors of some dozen roundings.
  for (DType type : {DType::f64, DType::f32})
    for_problems(type, [&](const Problem& p) {
      EXPECT_LE(relative_error(forward(p), composed_attention(p)), 200 * epsilon_of(type));
    });
}

TEST(Attention, GradientsInSinglePrecisionFollowThoseInDouble) {
  for_problems(DType::f32, [](const Problem& p) {
    Problem wide = p;
    for (Tensor* t : {&wide.q, &wide.k, &wide.v, &wide.dout}) *t = as_f64(*t);
    const auto g = backward(p), g64 = backward(wide);
    // Where each query sees its own key alone, the gradients of q and k are 0 and the errors are of terms that cancel.
    const bool cancels = p.window == 1 || p.keys == 1;
    for (size_t i = cancels ? 2 : 0; i < g.size(); ++i)
      EXPECT_LE(relative_error(g[i], g64[i]), 2e-5) << "gradient " << i;
    for (size_t i = 0; cancels && i < 2; ++i)
      for (int64_t k = 0; k < g[i].size(); ++k) ASSERT_NEAR(at(g[i], k), 0, 1e-4) << "gradient " << i;
  });
}

TEST(Attention, ReadsNoKeyThatNoQuerySees) {
  for_problems(DType::f32, [](const Problem& p) {
    Problem poisoned = p;
    poisoned.k = p.k.clone(), poisoned.v = p.v.clone();
    const int64_t capacity = p.k.dim(1), row = p.k.dim(2) * p.k.dim(3);
    for (Tensor* t : {&poisoned.k, &poisoned.v})
      for (int64_t b = 0; b < p.q.dim(0); ++b)
        for (int64_t j = p.keys; j < capacity; ++j)
          for (int64_t i = 0; i < row; ++i) set(*t, (b * capacity + j) * row + i, kNaN);
    EXPECT_TRUE(same_bits(forward(poisoned), forward(p)));
    for (const Tensor& gradient : backward(poisoned)) EXPECT_FALSE(std::isnan(relative_error(gradient, gradient)));
  });
}

// Each query alone, with only the keys up to its own, gives the bits of the whole call.
TEST(Attention, AQuerysBitsDependOnWhatItSees) {
  constexpr int64_t kSteps = 150, kHeads = 2, kWidth = 24;
  for (DType type : {DType::f64, DType::f32})
    for (int64_t window : {0, 70}) {
      const Problem p = make_problem({1, kSteps, kSteps, kHeads, 1, kWidth}, type, 0, true);
      Problem whole = p;
      whole.window = window;
      const Tensor expected = forward(whole);
      for (int64_t t : {0, 1, 63, 64, 65, 128, 149}) {
        const int64_t oldest = window ? std::max(int64_t(0), t - window + 1) : 0;
        const auto part = [](const Tensor& x, int64_t begin, int64_t end) {
          return x.reshape({x.dim(1), x.dim(2), x.dim(3)})
              .slice(begin, end)
              .reshape({1, end - begin, x.dim(2), x.dim(3)});
        };
        Problem one{part(p.q, t, t + 1),
                    part(p.k, oldest, t + 1),
                    part(p.v, oldest, t + 1),
                    {},
                    t + 1 - oldest,
                    {t, p.positions.begins.reshape({kSteps}).slice(t, t + 1).reshape({1, 1})},
                    window};
        EXPECT_TRUE(same_bits(forward(one), part(expected, t, t + 1)))
            << name_of(type) << " window " << window << " query " << t;
      }
    }
}

TEST(Attention, ANaNStaysNaN) {
  Problem p = make_problem({1, 5, 5, 1, 1, 8}, DType::f32, 0, false);
  set(p.k, 2 * 8, kNaN);
  const Tensor o = forward(p);
  for (int64_t t = 0; t < 5; ++t) EXPECT_EQ(std::isnan(at(o, t * 8)), t >= 2) << t;
}

TEST(Attention, RefusesWhatDoesNotFit) {
  const Problem p = make_problem({1, 5, 5, 4, 2, 8}, DType::f32, 0, false);
  const auto refused = [&](const std::function<void(Problem&)>& change) {
    Problem bad = p;
    change(bad);
    EXPECT_THROW(forward(bad), ShapeError);
  };
  refused([](Problem& x) { x.keys = 4; });
  refused([](Problem& x) { x.keys = 6; });
  refused([](Problem& x) { x.positions.first = -1; });
  refused([](Problem& x) { x.window = -1; });
  refused([](Problem& x) { x.k = x.v = random_tensor({1, 5, 3, 8}, DType::f32, 1); });
  refused([](Problem& x) {
    x.q = random_tensor({1, 5, 4, 12}, DType::f32, 1), x.k = x.v = random_tensor({1, 5, 2, 12}, DType::f32, 1);
  });
  refused([](Problem& x) { x.positions.begins = Tensor({1, 4}, DType::i32); });
}
