#include "core/ops/mlgru_scan.h"
#include "tests/cuda/transfer.h"
#include "tests/support/composed.h"
#include "tests/support/starts.h"

using namespace mmfree;

namespace {

/// On the CPU, in numbers that `type` holds.
struct Problem {
  DType type;
  Tensor z, a, gamma, h0, starts, dh;
};

Problem make_problem(int64_t b, int64_t t, int64_t d, DType type, bool gamma, bool h0, bool starts = false) {
  Problem p{type, rounded_tensor({b, t, d}, type, 1, 2), rounded_tensor({b, t, d}, type, 2, 2), {}, {},
            {},   rounded_tensor({b, t, d}, type, 5)};
  if (starts) p.starts = some_starts(b, t);
  if (gamma) {
    p.gamma = Tensor({d}, DType::f32);
    for (int64_t k = 0; k < d; ++k) set(p.gamma, k, double(k % 8) / 9);
  }
  if (h0) p.h0 = random_tensor({b, d}, DType::f32, 4);
  return p;
}

struct Forward {
  Tensor h, last;
};

Forward forward_on_gpu(const Problem& p) {
  Tensor h = empty_on_gpu(p.z.shape(), p.type), last = empty_on_gpu({p.z.dim(0), p.z.dim(2)}, DType::f32);
  mlgru_scan(to_gpu(p.z, p.type), to_gpu(p.a, p.type), to_gpu(p.gamma), to_gpu(p.h0), to_gpu(p.starts), h, last);
  return {from_gpu(h), from_gpu(last)};
}

std::vector<Tensor> backward_on_gpu(const Problem& p, const Tensor& h) {
  Tensor dz = empty_on_gpu(p.z.shape(), p.type), da = empty_on_gpu(p.z.shape(), p.type);
  Tensor dgamma = empty_on_gpu({p.z.dim(2)}, DType::f32);
  mlgru_scan_backward(to_gpu(p.z, p.type), to_gpu(p.a, p.type), to_gpu(p.gamma), to_gpu(p.h0), to_gpu(p.starts),
                      to_gpu(h, p.type), to_gpu(p.dh, p.type), dz, da, dgamma, 0);
  return {from_gpu(dz), from_gpu(da), from_gpu(dgamma)};
}

std::vector<Tensor> backward_in_double(const Problem& p, const Tensor& h) {
  const auto wide = [](const Tensor& t) { return as_type(t, DType::f64); };
  Tensor dz(p.z.shape(), DType::f64), da(p.z.shape(), DType::f64), dgamma({p.z.dim(2)}, DType::f64);
  mlgru_scan_backward(wide(p.z), wide(p.a), wide(p.gamma), wide(p.h0), p.starts, wide(h), wide(p.dh), dz, da, dgamma,
                      0);
  return {dz, da, dgamma};
}

Tensor last_step(const Tensor& h) {
  const int64_t b = h.dim(0), t = h.dim(1), d = h.dim(2);
  Tensor last({b, d}, h.dtype());
  for (int64_t i = 0; i < b; ++i)
    for (int64_t k = 0; k < d; ++k) set(last, i * d + k, at(h, (i * t + t - 1) * d + k));
  return last;
}

/// A step adds a few roundings and scales older ones by f < 1: their sum grows at most with T. The gates of bf16
/// activations use exponentials with an error near 1e-6.
double state_bound(DType type, int64_t t) {
  return double(32 + 4 * t) * epsilon_of(DType::f32) + (type == DType::bf16 ? 1e-4 : 0);
}
/// What is stored in bf16 is rounded once more.
double stored_bound(DType type, int64_t t) { return state_bound(type, t) + (type == DType::bf16 ? kBf16Rounding : 0); }

// Around a lane's channels and a warp's; below, at and above a warp's steps and a chunk of either direction.
constexpr int64_t kChannels[] = {1, 2, 3, 31, 33, 64, 66, 127, 1000};
constexpr int64_t kLengths[] = {1, 2, 7, 8, 9, 63, 64, 65, 96, 97, 300};

template <class Body>
void for_problems(Body&& body) {
  for (DType type : kActivations)
    for (int64_t d : kChannels)
      for (int64_t t : kLengths)
        for (bool gamma : {false, true})
          for (bool starts : {false, true}) {
            const bool h0 = (t + d) % 2;
            SCOPED_TRACE(concat(name_of(type), " T ", t, " D ", d, " gamma ", gamma, " h0 ", h0, " starts ", starts));
            body(make_problem(2, t, d, type, gamma, h0, starts), t);
          }
}

}  // namespace

TEST(CudaMlgruScan, MatchesItsComposedTwin) {
  MMFREE_NEEDS_GPU();
  for_problems([](const Problem& p, int64_t t) {
    const Tensor expected = composed::mlgru_scan(p.z, p.a, p.gamma, p.h0, p.starts);
    const Forward got = forward_on_gpu(p);
    EXPECT_LE(relative_error(got.h, expected), stored_bound(p.type, t));
    EXPECT_LE(relative_error(got.last, last_step(expected)), state_bound(p.type, t));
  });
}

TEST(CudaMlgruScan, GradientsFollowThoseInDouble) {
  MMFREE_NEEDS_GPU();
  for_problems([](const Problem& p, int64_t t) {
    const Tensor h = as_type(as_type(composed::mlgru_scan(p.z, p.a, p.gamma, p.h0, p.starts), p.type), DType::f32);
    const auto got = backward_on_gpu(p, h), expected = backward_in_double(p, h);
    // h_{t-1} - SiLU(a) and the sum of dgamma may cancel most of their terms where channels are few.
    const double cancelled = 4 * state_bound(p.type, t);
    EXPECT_LE(relative_error(got[0], expected[0]), cancelled + stored_bound(p.type, t)) << "dz";
    EXPECT_LE(relative_error(got[1], expected[1]), stored_bound(p.type, t)) << "da";
    EXPECT_LE(relative_error(got[2], expected[2]), cancelled) << "dgamma";
  });
}

TEST(CudaMlgruScan, BackwardHonoursBetaAndWorksWithoutDgamma) {
  MMFREE_NEEDS_GPU();
  for (DType type : kActivations) {
    const Problem p = make_problem(3, 70, 34, type, true, false);
    const Tensor h = forward_on_gpu(p).h;
    const std::vector<Tensor> expected = backward_on_gpu(p, h);
    const Tensor z = to_gpu(p.z, type), a = to_gpu(p.a, type), gamma = to_gpu(p.gamma), dh = to_gpu(p.dh, type);
    Tensor dz = to_gpu(full(p.z.shape(), type, kNaN)), da = dz.clone(), none;
    mlgru_scan_backward(z, a, gamma, {}, {}, to_gpu(h, type), dh, dz, da, none, 0);
    EXPECT_TRUE(same_bits(expected[0], from_gpu(dz)));
    EXPECT_TRUE(same_bits(expected[1], from_gpu(da)));
    expect_beta_semantics({34}, DType::f32, [&](Tensor& dgamma, double beta) {
      Tensor there = to_gpu(dgamma);
      mlgru_scan_backward(z, a, gamma, {}, {}, to_gpu(h, type), dh, dz, da, there, beta);
      dgamma.copy_from(there);
    });
  }
}

TEST(CudaMlgruScan, TwoRunsGiveTheSameBits) {
  MMFREE_NEEDS_GPU();
  for (DType type : kActivations) {
    const Problem p = make_problem(5, 333, 1000, type, true, true, true);
    const Forward one = forward_on_gpu(p), two = forward_on_gpu(p);
    EXPECT_TRUE(same_bits(one.h, two.h) && same_bits(one.last, two.last));
    const auto back_one = backward_on_gpu(p, one.h), back_two = backward_on_gpu(p, one.h);
    for (size_t i = 0; i < back_one.size(); ++i) EXPECT_TRUE(same_bits(back_one[i], back_two[i])) << i;
  }
}

TEST(CudaMlgruScan, ContinuesFromAStateUpdatedInPlace) {
  MMFREE_NEEDS_GPU();
  const int64_t steps = 230, d = 66;
  for (DType type : kActivations) {
    const Problem p = make_problem(1, steps, d, type, true, true);
    const Forward whole = forward_on_gpu(p);
    const Tensor z = to_gpu(p.z, type).reshape({steps, d}), a = to_gpu(p.a, type).reshape({steps, d});
    Tensor state = to_gpu(p.h0);
    for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, 1}, {1, 101}, {101, steps}}) {
      const Shape part{1, end - begin, d};
      Tensor h = empty_on_gpu(part, type);
      mlgru_scan(z.slice(begin, end).reshape(part), a.slice(begin, end).reshape(part), to_gpu(p.gamma), state, {}, h,
                 state);
      const Tensor expected = whole.h.reshape({steps, d}).slice(begin, end);
      EXPECT_LE(relative_error(from_gpu(h).reshape({end - begin, d}), expected), 2 * stored_bound(type, steps));
    }
    EXPECT_LE(relative_error(from_gpu(state), whole.last), 2 * state_bound(DType::f32, steps));
  }
}

TEST(CudaMlgruScan, NaNStaysInItsChannelAndSequence) {
  MMFREE_NEEDS_GPU();
  const int64_t steps = 150, d = 6, bad = 100;
  for (DType type : kActivations)
    for (bool in_z : {false, true}) {
      Problem p = make_problem(2, steps, d, type, true, false);
      set(in_z ? p.z : p.a, bad * d + 1, kNaN);  // sequence 0, channel 1
      const Tensor h = forward_on_gpu(p).h;
      for (int64_t i = 0; i < h.size(); ++i)
        ASSERT_EQ(i < steps * d && i / d >= bad && i % d == 1, !std::isfinite(at(h, i))) << i;
    }
}

/// What was before a start changes no bit behind it, and what is behind changes no gradient before.
TEST(CudaMlgruScan, AStartCutsStateAndGradient) {
  MMFREE_NEEDS_GPU();
  const int64_t steps = 230, d = 66;
  for (DType type : kActivations)
    for (int64_t cut : {0, 1, 7, 8, 63, 64, 95, 96, 97, 150, 229}) {
      SCOPED_TRACE(concat(name_of(type), " start at ", cut));
      Problem p = make_problem(1, steps, d, type, true, true);
      p.starts = Tensor::zeros({1, steps}, DType::u8);
      p.starts.mut<uint8_t>()[cut] = 1;
      Problem other = make_problem(1, steps, d, type, true, true);
      other.starts = p.starts;
      for (Tensor* t : {&other.z, &other.a}) *t = t->clone();
      for (int64_t i = 0; i < cut * d; ++i) set(other.z, i, 0.5), set(other.a, i, -0.25);
      for (int64_t k = 0; k < d; ++k) set(other.h0, k, 3);
      const Tensor h = forward_on_gpu(p).h, changed = forward_on_gpu(other).h;
      const auto part = [&](const Tensor& t, int64_t begin, int64_t end) {
        return t.reshape({steps, d}).slice(begin, end);
      };
      EXPECT_TRUE(same_bits(part(h, cut, steps), part(changed, cut, steps)));
      other = p;
      other.dh = p.dh.clone();
      for (int64_t i = cut * d; i < steps * d; ++i) set(other.dh, i, 0.5);
      const auto one = backward_on_gpu(p, h), two = backward_on_gpu(other, h);
      for (size_t i : {0, 1}) EXPECT_TRUE(same_bits(part(one[i], 0, cut), part(two[i], 0, cut))) << "gradient " << i;
    }
}

TEST(CudaMlgruScan, StartsNowhereChangeNoBit) {
  MMFREE_NEEDS_GPU();
  for (DType type : kActivations) {
    Problem p = make_problem(3, 210, 66, type, true, true);
    const Forward without = forward_on_gpu(p);
    const auto back_without = backward_on_gpu(p, without.h);
    p.starts = Tensor::zeros({3, 210}, DType::u8);
    const Forward with = forward_on_gpu(p);
    EXPECT_TRUE(same_bits(without.h, with.h) && same_bits(without.last, with.last));
    const auto back_with = backward_on_gpu(p, with.h);
    for (size_t i = 0; i < back_with.size(); ++i) EXPECT_TRUE(same_bits(back_without[i], back_with[i])) << i;
  }
}
