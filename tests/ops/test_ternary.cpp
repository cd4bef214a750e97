#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "core/ops/adamw.h"
#include "core/ops/ternary.h"
#include "tests/support/tensors.h"

using namespace mmfree;

namespace {

constexpr int64_t kSizes[] = {0, 1, 3, 31, 33, 127, 128, 129, 1000};

/// Packs weights of {-1, 0, 1} by the documented layout, one element at a time.
TernaryTensor pack(const std::vector<int>& weights, int64_t rows, int64_t cols, double scale, DType type) {
  TernaryTensor t = make_ternary(rows, cols, type);
  uint8_t* codes = t.codes.mut<uint8_t>();
  const int64_t row_bytes = (cols + 127) / 128 * 32;
  std::memset(codes, 0x55, size_t(rows * row_bytes));
  for (int64_t o = 0; o < rows; ++o)
    for (int64_t k = 0; k < cols; ++k) {
      uint8_t& byte = codes[o * row_bytes + k / 128 * 32 + k % 32];
      const int shift = int(k % 128 / 32) * 2;
      byte = uint8_t((byte & ~(3 << shift)) | (weights[size_t(o * cols + k)] + 1) << shift);
    }
  if (type == DType::f32) *t.scale.mut<float>() = float(scale);
  if (type == DType::f64) *t.scale.mut<double>() = scale;
  return t;
}

struct Problem {
  std::vector<int> weights;
  std::vector<int8_t> q;
  int64_t n, o, k;
};

enum class Fill { random, extreme, positive, negative };

Problem make_problem(int64_t n, int64_t o, int64_t k, Fill fill = Fill::random) {
  std::mt19937 rng(uint32_t(n * 131 + o * 17 + k));
  Problem p{std::vector<int>(size_t(o * k)), std::vector<int8_t>(size_t(n * k)), n, o, k};
  for (int& w : p.weights)
    w = fill == Fill::random ? int(rng() % 3) - 1 : fill == Fill::extreme ? 1 - 2 * int(rng() % 2) : 1;
  for (int8_t& q : p.q)
    q = fill == Fill::random     ? int8_t(int(rng() % 256) - 128)
        : fill == Fill::extreme  ? int8_t(127 - 254 * int(rng() % 2))
        : fill == Fill::positive ? int8_t(127)
                                 : int8_t(-128);
  return p;
}

template <class T>
Tensor steps(int64_t n) {
  std::vector<T> v;
  for (int64_t i = 0; i < n; ++i) v.push_back(T(0.01) + T(0.001) * T(i % 17));
  return Tensor::from({n}, v.data());
}

template <class T>
void check_linear(const Problem& p) {
  const T scale = T(0.037);
  const TernaryTensor w = pack(p.weights, p.o, p.k, double(scale), dtype_of<T>());
  const Tensor q = Tensor::from({p.n, p.k}, p.q.data()), step = steps<T>(p.n);
  Tensor y({p.n, p.o}, dtype_of<T>());
  ternary_linear(q, step, w, y);
  for (int64_t i = 0; i < p.n; ++i)
    for (int64_t j = 0; j < p.o; ++j) {
      int64_t sum = 0;
      for (int64_t t = 0; t < p.k; ++t) sum += p.q[size_t(i * p.k + t)] * p.weights[size_t(j * p.k + t)];
      ASSERT_EQ(T(sum) * (step.data<T>()[i] * scale), y.template data<T>()[i * p.o + j])
          << p.n << 'x' << p.o << 'x' << p.k << " at " << i << ',' << j;
    }
}

template <class T>
Tensor normal(Shape shape, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<double> d(0, 0.02);
  std::vector<T> v(size_t(shape.size()));
  for (T& x : v) x = T(d(rng));
  return Tensor::from(shape, v.data());
}

void with_threads(int threads, auto&& body) {
  const int saved = omp_get_max_threads();
  omp_set_num_threads(threads);
  body();
  omp_set_num_threads(saved);
}

}  // namespace

template <class T>
class Ternary : public testing::Test {};
using Floats = testing::Types<float, double>;
TYPED_TEST_SUITE(Ternary, Floats);

TYPED_TEST(Ternary, LinearIsExactForOddSizes) {
  for (int64_t k : kSizes)
    for (int64_t n : {0, 1, 2, 3, 5, 33})
      for (int64_t o : {0, 1, 3, 31, 66, 129}) check_linear<TypeParam>(make_problem(n, o, k));
  for (int64_t n : kSizes) check_linear<TypeParam>(make_problem(n, 129, 130));
  for (int64_t o : kSizes) check_linear<TypeParam>(make_problem(7, o, 130));
}

TYPED_TEST(Ternary, LinearIsExactForFullRangeCodes) {
  for (Fill fill : {Fill::extreme, Fill::positive, Fill::negative})
    for (int64_t k : {128, 2047, 2048, 2049, 2176, 4097, 20000})
      for (int64_t n : {1, 6, 37}) check_linear<TypeParam>(make_problem(n, 9, k, fill));
}

TYPED_TEST(Ternary, QuantisesByTheDefinition) {
  using T = TypeParam;
  for (int64_t rows : {0, 1, 3, 33})
    for (int64_t cols : kSizes) {
      const Tensor w = normal<T>({rows, cols}, uint32_t(rows + cols));
      TernaryTensor t = make_ternary(rows, cols, dtype_of<T>());
      ternary_quantise(w, t);
      double sum = 0;
      for (int64_t i = 0; i < w.size(); ++i) sum += std::fabs(double(w.template data<T>()[i]));
      const double mean = w.size() ? std::max(sum / double(w.size()), 1e-5) : 1e-5;
      const T scale = *t.scale.template data<T>();
      ASSERT_NEAR(mean, double(scale), mean * 1e-6);
      std::vector<int> weights;
      for (int64_t i = 0; i < w.size(); ++i) {
        const T v = w.template data<T>()[i] * (T(1) / scale);
        weights.push_back(int(std::clamp(std::nearbyint(double(v)), -1.0, 1.0)));
      }
      const TernaryTensor expected = pack(weights, rows, cols, double(scale), dtype_of<T>());
      ASSERT_EQ(0, std::memcmp(expected.codes.raw(), t.codes.raw(), size_t(t.codes.bytes()))) << rows << 'x' << cols;
      Tensor back({rows, cols}, dtype_of<T>());
      ternary_dequantise(t, back);
      for (int64_t i = 0; i < w.size(); ++i) ASSERT_EQ(T(weights[size_t(i)]) * scale, back.template data<T>()[i]);
    }
}

TYPED_TEST(Ternary, ZeroWeightsStayFinite) {
  const Tensor w = Tensor::zeros({3, 5}, dtype_of<TypeParam>());
  TernaryTensor t = make_ternary(3, 5, dtype_of<TypeParam>());
  ternary_quantise(w, t);
  EXPECT_EQ(TypeParam(1e-5), *t.scale.template data<TypeParam>());
  for (int i = 0; i < 3 * 32; ++i) EXPECT_EQ(0x55, t.codes.template data<uint8_t>()[i]);
}

TYPED_TEST(Ternary, PackingIsUndoneByDequantisingWithoutTheScale) {
  using T = TypeParam;
  for (int64_t rows : {0, 1, 3, 33})
    for (int64_t cols : kSizes) {
      std::mt19937 rng(uint32_t(rows * 7 + cols));
      std::vector<int8_t> weights(size_t(rows * cols));
      std::vector<int> wide;
      for (int8_t& w : weights) wide.push_back(w = int8_t(int(rng() % 3) - 1));
      TernaryTensor t = make_ternary(rows, cols, dtype_of<T>());
      pack_ternary(weights.data(), rows, cols, t.codes.mut<uint8_t>());
      *t.scale.template mut<T>() = T(0.037);
      const TernaryTensor expected = pack(wide, rows, cols, 0.037, dtype_of<T>());
      ASSERT_TRUE(same_bits(expected.codes, t.codes)) << rows << 'x' << cols;
      Tensor bare({rows, cols}, dtype_of<T>()), scaled({rows, cols}, dtype_of<T>());
      ternary_dequantise(t, bare, false);
      ternary_dequantise(t, scaled);
      for (int64_t i = 0; i < bare.size(); ++i) {
        ASSERT_EQ(T(weights[size_t(i)]), bare.template data<T>()[i]);
        ASSERT_EQ(T(weights[size_t(i)]) * T(0.037), scaled.template data<T>()[i]);
      }
    }
}

namespace {

/// Matrices on blocks of a flat buffer with vectors between them, as a ParamStore lays them out.
struct Flat {
  std::vector<Shape> shapes = {{1, 1}, {33, 31}, {64, 64}, {5, 4097}, {127, 129}, {3, 20000}};
  std::vector<int64_t> offsets;
  Tensor values;

  explicit Flat(DType t) {
    int64_t size = kParamBlock;  // something else comes first
    for (const Shape& s : shapes) {
      offsets.push_back(size);
      size += (s.size() + kParamBlock - 1) / kParamBlock * kParamBlock + kParamBlock;
    }
    values = Tensor::zeros({size}, t);
    for (size_t i = 0; i < shapes.size(); ++i) {
      Tensor to = matrix(i);
      to.copy_from(random_tensor(shapes[i], t, uint32_t(i), 0.02));
    }
    Tensor other = values.slice(0, kParamBlock);
    fill(other, 1e3);  // must not count
  }
  Tensor matrix(size_t i) const { return values.slice(offsets[i], offsets[i] + shapes[i].size()).reshape(shapes[i]); }
  std::vector<TernaryJob> jobs() const {
    std::vector<TernaryJob> all;
    for (size_t i = 0; i < shapes.size(); ++i)
      all.push_back({offsets[i], make_ternary(shapes[i][0], shapes[i][1], values.dtype())});
    return all;
  }
  void expect_quantised(const std::vector<TernaryJob>& jobs) const {
    for (size_t i = 0; i < shapes.size(); ++i) {
      TernaryTensor expected = make_ternary(shapes[i][0], shapes[i][1], values.dtype());
      ternary_quantise(matrix(i), expected);
      EXPECT_TRUE(same_bits(expected.codes, jobs[i].out.codes)) << i;
      EXPECT_TRUE(same_bits(expected.scale, jobs[i].out.scale)) << i;
    }
  }
};

}  // namespace

TYPED_TEST(Ternary, FlatQuantisationEqualsThatOfEachMatrixToTheBit) {
  const DType t = dtype_of<TypeParam>();
  Flat flat(t);
  std::vector<TernaryJob> jobs = flat.jobs();
  ternary_quantise_flat(flat.values, Tensor(), jobs);
  flat.expect_quantised(jobs);
  // After an update, with the sums that it left; also after one that was skipped.
  const int64_t size = flat.values.size();
  Tensor m = Tensor::zeros({size}, t), v = m.clone();
  Tensor both = full({2, size / kParamBlock}, DType::f64, kNaN);
  Tensor sums = both.slice(0, 1).reshape({size / kParamBlock});
  const Tensor rates = full({size / kParamBlock, 2}, DType::f64, 1);
  StepParams step;
  step.lr = 0.01;
  for (int skip : {0, 1}) {
    Tensor grads = Tensor::zeros({size}, t), before = flat.values.clone();
    for (size_t i = 0; i < flat.shapes.size(); ++i)
      grads.slice(flat.offsets[i], flat.offsets[i] + flat.shapes[i].size())
          .copy_from(random_tensor({flat.shapes[i].size()}, t, 30 + uint32_t(i)));
    step.skip = skip;
    fill(sums, kNaN);
    adamw(flat.values, grads, m, v, rates, step_tensor(step, Device::cpu), both);
    EXPECT_EQ(skip != 0, same_bits(before, flat.values));
    ASSERT_EQ(0, count_non_finite(sums));
    jobs = flat.jobs();
    ternary_quantise_flat(flat.values, sums, jobs);
    flat.expect_quantised(jobs);
  }
  // The sums are really used: with others the scales are others.
  fill(sums, 1);
  ternary_quantise_flat(flat.values, sums, jobs);
  EXPECT_NEAR(1.0 / 4096, at(jobs[2].out.scale, 0), 1e-9);
  EXPECT_NEAR(6.0 / 20485, at(jobs[3].out.scale, 0), 1e-9);
}

TEST(Ternary, FlatQuantisationRejectsWrongJobs) {
  const Flat flat(DType::f32);
  std::vector<TernaryJob> jobs = flat.jobs();
  const auto run = [&](const Tensor& sums = {}) { ternary_quantise_flat(flat.values, sums, jobs); };
  for (int64_t offset : {int64_t(1), -kParamBlock, flat.values.size() - kParamBlock, flat.values.size()}) {
    jobs[3].offset = offset;
    expect_error<ShapeError>({"ternary_quantise_flat", "20485 elements"}, run);
  }
  jobs = flat.jobs();
  jobs[0].out.scale = Tensor({1}, DType::f64);
  expect_error<DTypeError>({"ternary_quantise_flat", "scale must be f32", "f64"}, run);
  jobs = flat.jobs();
  expect_error<ShapeError>({"ternary_quantise_flat", "abs_sums"}, [&] { run(Tensor({3}, DType::f64)); });
  const Tensor sums({flat.values.size() / kParamBlock}, DType::f32);
  expect_error<DTypeError>({"ternary_quantise_flat", "abs_sums"}, [&] { run(sums); });
  jobs[0].out = {};
  EXPECT_THROW(run(), DTypeError);
  EXPECT_THROW(ternary_quantise_flat(Tensor({kParamBlock}, DType::i8), {}, jobs), DTypeError);
}

TEST(Ternary, StaysWhereItIs) {
  const TernaryTensor w = make_ternary(3, 130, DType::f32);
  EXPECT_EQ(w.codes.raw(), to_device(w, Device::cpu).codes.raw());
  const DryRun dry;
  const ArenaScope scope(Arena::counted());
  const TernaryTensor there = to_device(w, Device::cuda);
  EXPECT_EQ(DType::i8, there.codes.dtype());
  EXPECT_EQ(Shape({3, 130}), there.codes.shape());
  EXPECT_EQ(Device::cuda, there.scale.device());
  EXPECT_EQ(130, there.cols);
}

TYPED_TEST(Ternary, GradientsMatchTripleLoops) {
  using T = TypeParam;
  const double eps = std::numeric_limits<T>::epsilon();
  for (auto [n, o, k] : {std::array<int64_t, 3>{33, 31, 129}, {1, 3, 1}, {128, 127, 33}, {3, 1, 1000}, {2, 7000, 33}}) {
    const Problem p = make_problem(n, o, k);
    const T scale = T(0.25);
    const TernaryTensor w = pack(p.weights, o, k, double(scale), dtype_of<T>());
    const Tensor q = Tensor::from({n, k}, p.q.data()), step = steps<T>(n), dy = normal<T>({n, o}, 3);
    for (double beta : {0.0, 1.0}) {
      const Tensor dx0 = normal<T>({n, k}, 4), dw0 = normal<T>({o, k}, 5);
      Tensor dx = dx0.clone(), dw = dw0.clone();
      ternary_linear_dx(dy, w, dx, beta);
      ternary_linear_dw(dy, q, step, dw, beta);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t t = 0; t < k; ++t) {
          double sum = beta * double(dx0.template data<T>()[i * k + t]), size = std::fabs(sum);
          for (int64_t j = 0; j < o; ++j) {
            const double term = double(dy.template data<T>()[i * o + j]) * p.weights[size_t(j * k + t)] * double(scale);
            sum += term, size += std::fabs(term);
          }
          ASSERT_NEAR(sum, double(dx.template data<T>()[i * k + t]), double(o + 3) * eps * size);
        }
      for (int64_t j = 0; j < o; ++j)
        for (int64_t t = 0; t < k; ++t) {
          double sum = beta * double(dw0.template data<T>()[j * k + t]), size = std::fabs(sum);
          for (int64_t i = 0; i < n; ++i) {
            const double term =
                double(dy.template data<T>()[i * o + j]) * p.q[size_t(i * k + t)] * double(step.template data<T>()[i]);
            sum += term, size += std::fabs(term);
          }
          ASSERT_NEAR(sum, double(dw.template data<T>()[j * k + t]), double(n + 3) * eps * size);
        }
    }
  }
}

TEST(Ternary, GivesTheSameBitsForAnyNumberOfThreads) {
  const int64_t n = 150, o = 300, k = 777;
  const Tensor w = normal<float>({o, k}, 1), dy = normal<float>({n, o}, 2), step = steps<float>(n);
  const Problem p = make_problem(n, 1, k);
  const Tensor q = Tensor::from({n, k}, p.q.data());
  std::vector<Tensor> first;
  for (int threads : {1, 2, 3, 5})
    with_threads(threads, [&] {
      TernaryTensor t = make_ternary(o, k, DType::f32);
      ternary_quantise(w, t);
      Tensor y({n, o}, DType::f32), dx({n, k}, DType::f32), dw({o, k}, DType::f32);
      ternary_linear(q, step, t, y);
      ternary_linear_dx(dy, t, dx, 0);
      ternary_linear_dw(dy, q, step, dw, 0);
      const std::vector<Tensor> all{t.codes, t.scale, y, dx, dw};
      if (first.empty()) first = all;
      for (size_t i = 0; i < all.size(); ++i)
        ASSERT_EQ(0, std::memcmp(first[i].raw(), all[i].raw(), size_t(all[i].bytes()))) << threads << " output " << i;
    });
}

TEST(Ternary, RejectsWrongShapesAndDtypes) {
  TernaryTensor w = make_ternary(4, 130, DType::f32);
  const Tensor q({2, 130}, DType::i8), step({2}, DType::f32), dy({2, 4}, DType::f32);
  Tensor y({2, 4}, DType::f32), y64({2, 4}, DType::f64), short_y({2, 3}, DType::f32), dx({2, 129}, DType::f32);
  EXPECT_THROW(ternary_linear(q, step, w, short_y), ShapeError);
  EXPECT_THROW(ternary_linear(q, step, w, y64), DTypeError);
  EXPECT_THROW(ternary_linear(dy, step, w, y), DTypeError);
  EXPECT_THROW(ternary_linear(q, Tensor({3}, DType::f32), w, y), ShapeError);
  EXPECT_THROW(ternary_linear(Tensor(), step, w, y), DTypeError);
  EXPECT_THROW(ternary_linear_dx(dy, w, dx, 0), ShapeError);
  EXPECT_THROW(ternary_linear_dw(dy, q, step, dx, 0), ShapeError);
  EXPECT_THROW(ternary_quantise(Tensor({4, 129}, DType::f32), w), ShapeError);
  EXPECT_THROW(make_ternary(1, 1, DType::bf16), DTypeError);
  w.cols = 500;
  EXPECT_THROW(ternary_linear(q, step, w, y), ShapeError);
}
