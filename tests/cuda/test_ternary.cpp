#include "core/ops/adamw.h"
#include "core/ops/ternary.h"
#include "tests/cuda/transfer.h"

using namespace mmfree;

namespace {

void expect_same(const TernaryTensor& here, const TernaryTensor& there) {
  const TernaryTensor back = to_device(there, Device::cpu);
  EXPECT_TRUE(same_bits(here.scale, back.scale)) << at(here.scale, 0) << " and " << at(back.scale, 0);
  EXPECT_TRUE(same_bits(here.codes, back.codes));
}

TernaryTensor quantised(const Tensor& w) {
  TernaryTensor out = make_ternary(w.dim(0), w.dim(1), DType::f32, w.device());
  ternary_quantise(w, out);
  return out;
}

Tensor random_codes(int64_t n, int64_t k, uint32_t seed) {
  std::mt19937 rng(seed);
  Tensor q({n, k}, DType::i8);
  for (int64_t i = 0; i < n * k; ++i) q.mut<int8_t>()[i] = int8_t(int(rng() % 256) - 128);
  return q;
}

Tensor steps_of(int64_t n) {
  Tensor step({n}, DType::f32);
  for (int64_t i = 0; i < n; ++i) set(step, i, 0.01 + 0.001 * double(i % 17));
  return step;
}

struct Problem {
  Tensor q, step;
  TernaryTensor w;
};

Problem make_problem(int64_t n, int64_t o, int64_t k) {
  return {random_codes(n, k, uint32_t(n * 131 + o * 17 + k)), steps_of(n),
          quantised(random_tensor({o, k}, DType::f32, uint32_t(o + k), 0.02))};
}

/// Rows [begin, end) of the product on both sides: in f32 the same bits, in bf16 those bits rounded.
void check_linear(const Problem& p, int64_t begin, int64_t end) {
  const int64_t o = p.w.rows();
  Tensor expected({end - begin, o}, DType::f32);
  ternary_linear(p.q.slice(begin, end), p.step.slice(begin, end), p.w, expected);
  const TernaryTensor w = to_device(p.w, Device::cuda);
  for (DType type : kActivations) {
    Tensor y = empty_on_gpu({p.q.dim(0), o}, type);
    ternary_linear(to_gpu(p.q), to_gpu(p.step), w, y);
    ASSERT_TRUE(same_bits(as_type(expected, type), y.slice(begin, end).to(Device::cpu)))
        << name_of(type) << ' ' << p.q.dim(0) << 'x' << o << 'x' << p.w.cols;
  }
}

void check_linear(int64_t n, int64_t o, int64_t k) { check_linear(make_problem(n, o, k), 0, n); }

/// A flat buffer with a matrix on each of its parameters, and the same on the GPU.
struct Flat {
  Tensor values;
  std::vector<TernaryJob> here, there;
};

Flat make_flat(const std::vector<std::pair<int64_t, int64_t>>& shapes, uint32_t seed = 1) {
  Flat flat;
  int64_t size = kParamBlock;  // a parameter that no matrix lies on comes first
  for (auto [rows, cols] : shapes) {
    flat.here.push_back({size, make_ternary(rows, cols, DType::f32)});
    flat.there.push_back({size, make_ternary(rows, cols, DType::f32, Device::cuda)});
    size += (rows * cols + kParamBlock - 1) / kParamBlock * kParamBlock;
  }
  flat.values = Tensor::zeros({size}, DType::f32);
  const Tensor random = random_tensor({size}, DType::f32, seed, 0.02);
  for (size_t i = 0; i < shapes.size(); ++i)
    for (int64_t k = 0; k < shapes[i].first * shapes[i].second; ++k)
      set(flat.values, flat.here[i].offset + k, at(random, flat.here[i].offset + k) * double(1 + i % 5));
  return flat;
}

void expect_same(const Flat& flat) {
  for (size_t i = 0; i < flat.here.size(); ++i) {
    SCOPED_TRACE(i);
    expect_same(flat.here[i].out, flat.there[i].out);
  }
}

/// Σ |x| of each block as `adamw` leaves them when it changes nothing.
Tensor abs_sums_of(const Tensor& values) {
  const int64_t size = values.size(), blocks = size / kParamBlock;
  Tensor p = values.clone(), m = Tensor::zeros({size}, DType::f32, values.device()), v = m.clone();
  Tensor sums({2, blocks}, DType::f64, values.device());
  StepParams skip;
  skip.skip = 1;
  adamw(p, m, m, v, Tensor::zeros({blocks, 2}, DType::f64, values.device()), step_tensor(skip, values.device()), sums);
  return sums.slice(0, 1).reshape({blocks});
}

}  // namespace

TEST(CudaTernary, QuantisesToTheBitsOfTheCpu) {
  MMFREE_NEEDS_GPU();
  for (int64_t rows : {1, 3, 33, 130})
    for (int64_t cols : {1, 3, 31, 33, 127, 128, 129, 1000, 4096}) {
      SCOPED_TRACE(concat(rows, 'x', cols));
      const Tensor w = random_tensor({rows, cols}, DType::f32, uint32_t(rows + cols), 0.02);
      expect_same(quantised(w), quantised(to_gpu(w)));
    }
  const Tensor wide = random_tensor({3000, 1000}, DType::f32, 7, 0.02);
  expect_same(quantised(wide), quantised(to_gpu(wide)));
  expect_same(quantised(wide.slice(1, 9)), quantised(to_gpu(wide).slice(1, 9)));
  const Tensor odd = random_tensor({40, 333}, DType::f32, 8);  // rows begin anywhere
  expect_same(quantised(odd.slice(1, 39)), quantised(to_gpu(odd).slice(1, 39)));
}

TEST(CudaTernary, QuantisesZerosAndNaNLikeTheCpu) {
  MMFREE_NEEDS_GPU();
  Tensor w = Tensor::zeros({5, 130}, DType::f32);
  expect_same(quantised(w), quantised(to_gpu(w)));
  set(w, 77, kNaN);
  const TernaryTensor got = to_device(quantised(to_gpu(w)), Device::cpu);
  EXPECT_TRUE(std::isnan(at(got.scale, 0)));
  EXPECT_TRUE(same_bits(quantised(w).codes, got.codes));
}

TEST(CudaTernary, QuantisesAFlatBufferToTheBitsOfTheCpu) {
  MMFREE_NEEDS_GPU();
  Flat flat = make_flat({{64, 64}, {1, 1}, {33, 127}, {700, 1000}, {128, 32}, {5, 4096}, {1, 4097}});
  ternary_quantise_flat(flat.values, {}, flat.here);
  const Tensor there = to_gpu(flat.values);
  ternary_quantise_flat(there, {}, flat.there);
  expect_same(flat);
  for (TernaryJob& job : flat.there) fill(job.out.scale, kNaN), job.out.codes.fill_zero();
  ternary_quantise_flat(there, abs_sums_of(there), flat.there);
  expect_same(flat);
}

TEST(CudaTernary, QuantisesMoreMatricesThanOneLaunchTakes) {
  MMFREE_NEEDS_GPU();
  std::vector<std::pair<int64_t, int64_t>> shapes;
  for (int64_t i = 0; i < 1100; ++i) shapes.push_back({1 + i % 7, 1 + i * 37 % 900});
  Flat flat = make_flat(shapes);
  ternary_quantise_flat(flat.values, {}, flat.here);
  ternary_quantise_flat(to_gpu(flat.values), {}, flat.there);
  expect_same(flat);
}

TEST(CudaTernary, ACapturedQuantisationReadsTheValuesOfItsTime) {
  MMFREE_NEEDS_GPU();
  const std::vector<std::pair<int64_t, int64_t>> shapes{{64, 64}, {33, 127}, {1, 9}};
  Flat flat = make_flat(shapes);
  Tensor values = to_gpu(flat.values);
  ternary_quantise_flat(values, {}, flat.there);  // the memory that the capture uses exists now
  gpu::Graph graph([&] { ternary_quantise_flat(values, {}, flat.there); });
  for (uint32_t seed : {2, 3}) {
    flat.values = make_flat(shapes, seed).values;
    ternary_quantise_flat(flat.values, {}, flat.here);
    values.copy_from(flat.values);
    graph.launch();
    expect_same(flat);
  }
}

TEST(CudaTernary, DequantisesToTheBitsOfTheCpu) {
  MMFREE_NEEDS_GPU();
  for (int64_t rows : {1, 9, 130})
    for (int64_t cols : {1, 4, 33, 128, 1000, 1032}) {
      const TernaryTensor w = quantised(random_tensor({rows, cols}, DType::f32, 3)), there = to_device(w, Device::cuda);
      for (bool scaled : {false, true}) {
        Tensor expected({rows, cols}, DType::f32);
        ternary_dequantise(w, expected, scaled);
        for (DType type : kActivations) {
          Tensor got = empty_on_gpu({rows, cols}, type);
          ternary_dequantise(there, got, scaled);
          EXPECT_TRUE(same_bits(as_type(expected, type), got.to(Device::cpu))) << rows << 'x' << cols;
        }
      }
    }
}

TEST(CudaTernary, LinearGivesTheBitsOfTheCpu) {
  MMFREE_NEEDS_GPU();
  for (int64_t n : {1, 3, 4, 5, 17, 130})
    for (int64_t o : {1, 4, 31, 64, 66, 128, 200})
      for (int64_t k : {1, 3, 4, 33, 64, 128, 132, 1000, 1024}) check_linear(n, o, k);
}

TEST(CudaTernary, LinearOfManyTilesOfAShortDepthGivesTheBitsOfTheCpu) {
  MMFREE_NEEDS_GPU();
  // Columns that end inside a block's run of tiles, and last ones of 32, 128 and 256.
  for (int64_t o : {1312, 1408, 1536})
    for (int64_t k : {16, 400, 512}) check_linear(13601, o, k);
}

TEST(CudaTernary, LinearIsExactForExtremeCodes) {
  MMFREE_NEEDS_GPU();
  for (int64_t n : {2, 37})
    for (int64_t k : {2048, 2049, 20000})
      for (int code : {-128, 127}) {
        Problem p = make_problem(n, 12, k);
        std::fill_n(p.q.mut<int8_t>(), n * k, int8_t(code));
        p.w = quantised(full({12, k}, DType::f32, 0.5));  // all ones
        check_linear(p, 0, n);
      }
}

TEST(CudaTernary, LinearOfMoreSumsThanFitTheScratch) {
  MMFREE_NEEDS_GPU();
  const Problem p = make_problem(36000, 512, 64);  // sums of 70 MiB
  check_linear(p, 0, 40);
  check_linear(p, 32700, 32800);
  check_linear(p, 35960, 36000);
}

#if MMFREE_CUDA
TEST(CudaTernary, ScalesCodesToTheBitsOfTheFormula) {
  MMFREE_NEEDS_GPU();
  for (int64_t n : {1, 9, 130})
    for (int64_t k : {1, 4, 33, 128, 1000, 1032}) {
      const Tensor q = random_codes(n, k, uint32_t(n + k)), step = steps_of(n), q_there = to_gpu(q),
                   step_there = to_gpu(step);
      Tensor expected({n, k}, DType::f32);
      for (int64_t i = 0; i < n * k; ++i)
        expected.mut<float>()[i] = float(q.data<int8_t>()[i]) * step.data<float>()[i / k];
      for (DType type : kActivations) {
        Tensor u = empty_on_gpu({n, k}, type);
        cuda::scale_codes({q_there.data<int8_t>(), step_there.raw(), u.raw_mut(), type, n, k});
        EXPECT_TRUE(same_bits(as_type(expected, type), u.to(Device::cpu))) << n << 'x' << k;
      }
    }
}
#endif
