#include <gtest/gtest.h>

#include "core/ops/mlgru_scan.h"
#include "tests/support/composed.h"
#include "tests/support/starts.h"

using namespace mmfree;

namespace {

struct Problem {
  Tensor z, a, gamma, h0, starts, dh;
};

Problem make_problem(int64_t b, int64_t t, int64_t d, DType type, bool gamma, bool h0, bool starts = false) {
  Problem p{random_tensor({b, t, d}, type, 1, 2),  random_tensor({b, t, d}, type, 2, 2), {}, {},
            starts ? some_starts(b, t) : Tensor(), random_tensor({b, t, d}, type, 5)};
  if (gamma) {
    p.gamma = Tensor({d}, type);
    for (int64_t k = 0; k < d; ++k) set(p.gamma, k, double(k % 8) / 9);
  }
  if (h0) p.h0 = random_tensor({b, d}, type, 4);
  return p;
}

Tensor forward(const Tensor& z, const Tensor& a, const Tensor& gamma, const Tensor& h0, const Tensor& starts = {}) {
  Tensor h(z.shape(), z.dtype()), last;
  mlgru_scan(z, a, gamma, h0, starts, h, last);
  return h;
}

std::vector<Tensor> backward(const Problem& p) {
  const Tensor h = forward(p.z, p.a, p.gamma, p.h0, p.starts);
  Tensor dz(p.z.shape(), p.z.dtype()), da(p.z.shape(), p.z.dtype()), dgamma({p.z.dim(2)}, p.z.dtype());
  mlgru_scan_backward(p.z, p.a, p.gamma, p.h0, p.starts, h, p.dh, dz, da, dgamma, 0);
  return {dz, da, dgamma};
}

}  // namespace

TEST(MlgruScan, MatchesItsComposedTwin) {
  for (DType type : {DType::f64, DType::f32})
    for (int64_t d : kOddColumns)
      for (auto [b, t] : {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {1, 100}})
        for (bool gamma : {false, true})
          for (bool h0 : {false, true})
            for (bool starts : {false, true}) {
              const Problem p = make_problem(b, t, d, type, gamma, h0, starts);
              // A step adds a few roundings and scales older ones by f < 1: their sum grows at most with T.
              EXPECT_LE(relative_error(forward(p.z, p.a, p.gamma, p.h0, p.starts),
                                       composed::mlgru_scan(p.z, p.a, p.gamma, p.h0, p.starts)),
                        double(8 + 2 * t) * epsilon_of(type))
                  << name_of(type) << ' ' << b << 'x' << t << 'x' << d << " gamma " << gamma << " h0 " << h0
                  << " starts " << starts;
            }
}

TEST(MlgruScan, GradientsInSinglePrecisionFollowThoseInDouble) {
  for (int64_t d : kOddColumns) {
    for (bool starts : {false, true}) {
      const Problem p = make_problem(2, 50, d, DType::f32, true, true, starts);
      const auto g = backward(p);
      const auto g64 = backward({as_f64(p.z), as_f64(p.a), as_f64(p.gamma), as_f64(p.h0), p.starts, as_f64(p.dh)});
      for (size_t i = 0; i < g.size(); ++i) EXPECT_LE(relative_error(g[i], g64[i]), 2e-5) << d << " gradient " << i;
    }
  }
}

TEST(MlgruScan, BackwardOverwritesAndHonoursBeta) {
  for (DType type : {DType::f64, DType::f32})
    for (bool gamma : {false, true}) {
      const Problem p = make_problem(3, 5, 33, type, gamma, false);
      const Tensor h = forward(p.z, p.a, p.gamma, p.h0);
      const std::vector<Tensor> expected = backward(p);
      Tensor dz = full(p.z.shape(), type, kNaN), da = dz.clone(), none;
      mlgru_scan_backward(p.z, p.a, p.gamma, p.h0, {}, h, p.dh, dz, da, none, 0);
      EXPECT_TRUE(same_bits(expected[0], dz));
      EXPECT_TRUE(same_bits(expected[1], da));
      expect_beta_semantics({33}, type, [&](Tensor& dgamma, double beta) {
        mlgru_scan_backward(p.z, p.a, p.gamma, p.h0, {}, h, p.dh, dz, da, dgamma, beta);
      });
    }
}

TEST(MlgruScan, GivesTheSameBitsForAnyNumberOfThreads) {
  const Problem p = make_problem(5, 9, 1000, DType::f32, true, true, true);
  expect_same_bits_for_any_threads([&] {
    std::vector<Tensor> all = backward(p);
    all.push_back(forward(p.z, p.a, p.gamma, p.h0, p.starts));
    return all;
  });
}

TEST(MlgruScan, ContinuesFromACarriedStateWithTheSameBits) {
  for (int64_t d : kOddColumns) {
    const int64_t steps = 11;
    const Problem p = make_problem(1, steps, d, DType::f32, true, true);
    const Tensor whole = forward(p.z, p.a, p.gamma, p.h0).reshape({steps, d});
    for (int64_t cut : {1, 4, 10}) {
      Tensor state = p.h0;
      for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, cut}, {cut, steps}}) {
        const Shape part{1, end - begin, d};
        const Tensor h = forward(p.z.reshape({steps, d}).slice(begin, end).reshape(part),
                                 p.a.reshape({steps, d}).slice(begin, end).reshape(part), p.gamma, state)
                             .reshape({end - begin, d});
        EXPECT_TRUE(same_bits(whole.slice(begin, end), h)) << d << " columns cut at " << cut;
        state = h.slice(end - begin - 1, end - begin);
      }
    }
  }
}

TEST(MlgruScan, LeavesTheLastStateAlsoInPlaceOfTheFirst) {
  for (DType type : {DType::f64, DType::f32})
    for (int64_t t : {1, 7})
      for (bool start : {false, true}) {
        const Problem p = make_problem(3, t, 33, type, true, start);
        const Tensor expected = forward(p.z, p.a, p.gamma, p.h0);
        for (bool in_place : {false, true}) {
          if (in_place && !start) continue;
          Tensor h(p.z.shape(), type), h0 = start ? p.h0.clone() : Tensor();
          Tensor last = in_place ? h0 : full({3, 33}, type, kNaN);
          mlgru_scan(p.z, p.a, p.gamma, h0, {}, h, last);
          EXPECT_TRUE(same_bits(expected, h)) << in_place;
          for (int64_t b = 0; b < 3; ++b)
            EXPECT_TRUE(same_bits(expected.slice(b, b + 1).reshape({t, 33}).slice(t - 1, t), last.slice(b, b + 1)));
        }
      }
  const Problem p = make_problem(2, 3, 5, DType::f32, false, false);
  Tensor h(p.z.shape(), DType::f32), last({2, 4}, DType::f32);
  expect_error<ShapeError>({"mlgru_scan", "last", "[2, 4]"}, [&] { mlgru_scan(p.z, p.a, {}, {}, {}, h, last); });
}

TEST(MlgruScan, SequencesOfABatchDoNotMix) {
  const Problem p = make_problem(4, 6, 127, DType::f32, true, true);
  const Tensor whole = forward(p.z, p.a, p.gamma, p.h0);
  for (int64_t b = 0; b < 4; ++b)
    EXPECT_TRUE(same_bits(whole.slice(b, b + 1),
                          forward(p.z.slice(b, b + 1), p.a.slice(b, b + 1).clone(), p.gamma, p.h0.slice(b, b + 1))));
}

/// The part of p that steps [begin, end) of its only sequence make, with the state before the first step.
Problem part_of(const Problem& p, int64_t begin, int64_t end, const Tensor& h0) {
  const auto part = [&](const Tensor& t) {
    return t.reshape({t.dim(1), t.dim(2)}).slice(begin, end).reshape({1, end - begin, t.dim(2)});
  };
  return {part(p.z), part(p.a), p.gamma, h0, {}, part(p.dh)};
}

TEST(MlgruScan, AStartForgetsWhatWasBefore) {
  const int64_t steps = 17;
  for (DType type : {DType::f64, DType::f32})
    for (int64_t d : {1, 33, 127})
      for (bool at_first : {false, true}) {
        Problem p = make_problem(1, steps, d, type, true, true);
        p.starts = Tensor::zeros({1, steps}, DType::u8);
        for (int64_t t : {at_first ? 0 : 4, 4, 5, 11}) p.starts.mut<uint8_t>()[t] = 1;
        const std::vector<Tensor> whole = backward(p);
        const Tensor h = forward(p.z, p.a, p.gamma, p.h0, p.starts);
        Tensor last({1, d}, type), bounds = Tensor::zeros({d}, type), same(h.shape(), type);
        mlgru_scan(p.z, p.a, p.gamma, p.h0, p.starts, same, last);
        EXPECT_TRUE(same_bits(h.reshape({steps, d}).slice(steps - 1, steps), last));
        for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, 4}, {4, 5}, {5, 11}, {11, steps}}) {
          const Problem alone = part_of(p, begin, end, begin || at_first ? Tensor() : p.h0);
          const auto rows = [&, begin = begin, end = end](const Tensor& t) {
            return t.reshape({steps, d}).slice(begin, end).reshape({1, end - begin, d});
          };
          EXPECT_TRUE(same_bits(forward(alone.z, alone.a, alone.gamma, alone.h0), rows(h))) << begin;
          const std::vector<Tensor> part = backward(alone);
          EXPECT_TRUE(same_bits(part[0], rows(whole[0]))) << "dz from " << begin;
          EXPECT_TRUE(same_bits(part[1], rows(whole[1]))) << "da from " << begin;
          add(bounds, part[2], bounds);
        }
        EXPECT_LE(relative_error(whole[2], bounds), 32 * epsilon_of(type)) << "dgamma, summed in another order";
      }
}

TEST(MlgruScan, StartsNowhereChangeNoBit) {
  Problem p = make_problem(3, 21, 127, DType::f32, true, true);
  const Tensor h = forward(p.z, p.a, p.gamma, p.h0);
  const std::vector<Tensor> without = backward(p);
  p.starts = Tensor::zeros({3, 21}, DType::u8);
  EXPECT_TRUE(same_bits(h, forward(p.z, p.a, p.gamma, p.h0, p.starts)));
  const std::vector<Tensor> with = backward(p);
  for (size_t i = 0; i < with.size(); ++i) EXPECT_TRUE(same_bits(without[i], with[i])) << i;
}

TEST(MlgruScan, NaNStaysInTheState) {
  for (DType type : {DType::f64, DType::f32})
    for (bool in_z : {false, true}) {
      Problem p = make_problem(2, 5, 3, type, true, false);
      set(in_z ? p.z : p.a, 2 * 3 + 1, kNaN);  // sequence 0, step 2, channel 1
      const Tensor h = forward(p.z, p.a, p.gamma, {});
      for (int64_t i = 0; i < h.size(); ++i)
        EXPECT_EQ(i < 15 && i / 3 >= 2 && i % 3 == 1, !std::isfinite(at(h, i))) << i;
    }
}

TEST(MlgruScan, RejectsWrongArguments) {
  const Problem p = make_problem(2, 3, 5, DType::f32, true, true);
  Tensor h(p.z.shape(), DType::f32), dz(p.z.shape(), DType::f32), da({2, 3, 4}, DType::f32), none;
  expect_error<ShapeError>({"mlgru_scan", "z", "3 dimensions"}, [&] { forward(p.z.reshape({6, 5}), p.a, {}, {}); });
  expect_error<ShapeError>({"mlgru_scan", "a"}, [&] { forward(p.z, p.a.slice(0, 1), {}, {}); });
  expect_error<ShapeError>({"mlgru_scan", "gamma"}, [&] { forward(p.z, p.a, p.h0, {}); });
  expect_error<ShapeError>({"mlgru_scan", "h0"}, [&] { forward(p.z, p.a, {}, p.gamma); });
  expect_error<DTypeError>({"mlgru_scan", "a", "f64"}, [&] { forward(p.z, as_f64(p.a), {}, {}); });
  expect_error<ShapeError>({"mlgru_scan", "starts", "u8 [2, 3]"},
                           [&] { forward(p.z, p.a, {}, {}, Tensor::zeros({6}, DType::u8)); });
  expect_error<DTypeError>({"mlgru_scan", "starts", "u8 [2, 3]"}, [&] {
    forward(p.z, p.a, {}, {}, Tensor::zeros({2, 3}, DType::i32));
  });
  expect_error<ShapeError>({"mlgru_scan_backward", "starts"}, [&] {
    mlgru_scan_backward(p.z, p.a, p.gamma, p.h0, Tensor::zeros({2, 4}, DType::u8), h, p.dh, dz, dz, none, 0);
  });
  expect_error<ShapeError>({"mlgru_scan_backward", "da"},
                           [&] { mlgru_scan_backward(p.z, p.a, p.gamma, p.h0, {}, h, p.dh, dz, da, none, 0); });
}
