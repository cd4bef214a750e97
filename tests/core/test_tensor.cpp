#include <gtest/gtest.h>

#include "core/quant_tensor.h"
#include "core/tensor.h"
#include "tests/support/tensors.h"

using namespace mmfree;

TEST(Shape, KnowsRankSizeAndExtents) {
  const Shape none, s{2, 3, 5};
  EXPECT_EQ(0, none.rank());
  EXPECT_EQ(1, none.size());
  EXPECT_EQ(30, s.size());
  EXPECT_EQ(5, s[-1]);
  EXPECT_EQ(2, s[0]);
  EXPECT_EQ(0, (Shape{3, 0}).size());
  EXPECT_EQ((Shape{2, 3, 5}), s);
  EXPECT_FALSE((Shape{2, 3}) == s);
  EXPECT_FALSE((Shape{2, 3, 4}) == s);
  EXPECT_EQ("[2, 3, 5]", concat(s));
  expect_error<ShapeError>({"shape", "-1"}, [] { Shape{2, -1}; });
  expect_error<ShapeError>({"shape", "rank 5"}, [] { Shape{1, 1, 1, 1, 1}; });
}

TEST(Shape, IsMadeFromARange) {
  const std::vector<int64_t> dims = {2, 3, 5, 7, 11};
  for (size_t rank = 0; rank <= 4; ++rank) {
    const Shape shape(std::span(dims.data(), rank));
    ASSERT_EQ(int(rank), shape.rank());
    for (size_t i = 0; i < rank; ++i) EXPECT_EQ(dims[i], shape[int(i)]);
  }
  EXPECT_THROW(Shape(std::span(dims.data(), 5)), ShapeError);
  const int64_t negative[] = {2, -1};
  EXPECT_THROW(Shape(std::span<const int64_t>(negative)), ShapeError);
}

TEST(Tensor, ViewsShareStorageAndClonesDoNot) {
  const float values[6] = {1, 2, 3, 4, 5, 6};
  Tensor t = Tensor::from({2, 3}, values);
  Tensor row = t.slice(1, 2), flat = t.reshape({6}), copy = t.clone();
  EXPECT_EQ((Shape{1, 3}), row.shape());
  EXPECT_EQ(4, row.data<float>()[0]);
  row.mut<float>()[2] = 60;
  EXPECT_EQ(60, flat.data<float>()[5]);
  EXPECT_EQ(6, copy.data<float>()[5]);
  EXPECT_FALSE(t.unique());
  EXPECT_TRUE(copy.unique());
  const Tensor copied_row = row.clone();
  EXPECT_EQ(60, copied_row.data<float>()[2]);
}

TEST(Tensor, SlicesEveryRank) {
  for (const Shape& s : {Shape{4}, Shape{4, 3}, Shape{4, 3, 2}, Shape{4, 3, 2, 5}}) {
    const Tensor t(s, DType::f64), part = t.slice(1, 3);
    EXPECT_EQ(2, part.dim(0));
    EXPECT_EQ(t.size() / 2, part.size());
    EXPECT_EQ(t.raw() + t.bytes() / 4, part.raw());
    EXPECT_EQ(part.raw() + part.bytes() / 2, part.slice(1, 2).raw());
  }
  const Tensor t({4}, DType::f32);
  EXPECT_EQ(0, t.slice(4, 4).size());
  expect_error<ShapeError>({"slice", "[3, 5)"}, [&] { t.slice(3, 5); });
  expect_error<ShapeError>({"slice"}, [&] { t.slice(2, 1); });
  expect_error<ShapeError>({"slice"}, [&] { t.slice(-1, 1); });
  expect_error<ShapeError>({"slice"}, [&] { Tensor({}, DType::f32).slice(0, 1); });
  expect_error<ShapeError>({"reshape", "[5]", "[4]"}, [&] { t.reshape({5}); });
}

TEST(Tensor, GuardsItsDtype) {
  Tensor t({2}, DType::f32);
  expect_error<DTypeError>({"f64", "f32 [2] cpu"}, [&] { t.data<double>(); });
  expect_error<DTypeError>({"i8", "f32 [2] cpu"}, [&] { t.mut<int8_t>(); });
}

TEST(Tensor, CountsModificationsThroughEveryView) {
  Tensor t = Tensor::zeros({2, 3}, DType::f32), row = t.slice(0, 1);
  const uint64_t before = t.version();
  (void)t.data<float>();
  (void)row.raw();
  EXPECT_EQ(before, t.version());
  row.mut<float>();
  EXPECT_EQ(before + 1, t.version());
  t.fill_zero();
  EXPECT_EQ(before + 2, row.version());
}

TEST(Tensor, ZerosAndEmptyAndUndefined) {
  const Tensor z = Tensor::zeros({3, 33}, DType::f64), empty({0, 4}, DType::f32), scalar({}, DType::f32);
  for (int64_t i = 0; i < z.size(); ++i) EXPECT_EQ(0, at(z, i));
  EXPECT_EQ(0, empty.clone().size());
  EXPECT_EQ(1, scalar.size());
  EXPECT_EQ(1, scalar.cols());
  EXPECT_FALSE(Tensor().defined());
  EXPECT_EQ(nullptr, Tensor().raw());
  EXPECT_EQ("undefined tensor", Tensor().describe());
  EXPECT_EQ("f64 [3, 33] cpu", z.describe());
  EXPECT_EQ(3 * 33 * 8, z.bytes());
}

TEST(Tensor, SeesHighRanksAsMatrices) {
  const Tensor t({2, 3, 5}, DType::i8);
  EXPECT_EQ(6, t.rows());
  EXPECT_EQ(5, t.cols());
  EXPECT_EQ(30, t.bytes());
}

TEST(QuantTensor, KnowsInWhatDtypeToCompute) {
  const QuantTensor plain(Tensor({2}, DType::f64)), stream(Tensor({2}, DType::f32), DType::bf16);
  const QuantTensor codes(Tensor({2, 3}, DType::i8), Tensor({2}, DType::f32), DType::bf16);
  EXPECT_FALSE(plain.quantised() || stream.quantised());
  EXPECT_EQ(DType::f64, plain.compute);
  EXPECT_EQ(DType::bf16, stream.compute);
  EXPECT_EQ(DType::f32, stream.values.dtype());
  EXPECT_TRUE(codes.quantised());
  EXPECT_EQ(ScaleAxis::row, codes.axis);
  EXPECT_EQ(DType::bf16, codes.compute);
}
