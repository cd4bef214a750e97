// What a decode program does beside the kernels, which tests/layers/test_engine.cpp compares with the model's: tables
// that are not f32, and what it refuses.
#include <gtest/gtest.h>

#include <cmath>

#include "core/ops/decode.h"
#include "tests/support/compare.h"
#include "tests/support/tensors.h"

namespace mmfree {
namespace {

/// A program that only looks ids up.
struct Lookup {
  std::vector<float> y;
  DecodeProgram program;
  Lookup(const QuantTensor& table, int64_t rows) : y(size_t(rows * table_width(table))) {
    program.steps.emplace_back(DecodeEmbed{stored_table(table), y.data()});
  }
  void run(const std::vector<int32_t>& ids) {
    run_decode(program, {ids.data(), int64_t(ids.size()), nullptr, 0, nullptr, 0, 0, 1});
  }
};

/// The documented rounding of one row, in double.
std::vector<double> rounded_row(const float* x, int64_t d, TableStore store) {
  std::vector<double> y;
  const auto largest = [&](int64_t begin, int64_t end) {
    float most = 0;
    for (int64_t k = begin; k < end; ++k) most = std::abs(x[k]) > std::abs(most) ? x[k] : most;
    return most;
  };
  for (int64_t k = 0; k < d; ++k) {
    if (store == TableStore::f32) y.push_back(x[k]);
    if (store == TableStore::bf16) y.push_back(float(bf16(x[k])));
    if (store == TableStore::int8) {
      const double step = std::max(std::abs(double(largest(0, d))), 1e-5) / 127;
      y.push_back(std::round(x[k] / step) * step);
    }
    if (store == TableStore::int4) {
      const int64_t first = k / kTableGroup * kTableGroup;
      const double step = float(bf16(largest(first, std::min(d, first + kTableGroup)) / -8));
      y.push_back(step == 0 ? 0 : std::clamp(std::round(x[k] / step), -8.0, 7.0) * step);
    }
  }
  return y;
}

TEST(Decode, TablesOfAllStoresGiveTheValuesTheyStandFor) {
  constexpr int64_t kV = 7, kD = 74;
  Tensor table = random_tensor({kV, kD}, DType::f32, 3);
  for (int64_t k = 32; k < 64; ++k) table.mut<float>()[2 * kD + k] = 0;  // a group of zeros
  const std::vector<int32_t> ids = {6, 0, 2, 3, 3};
  for (TableStore store : kAllTableStores) {
    const QuantTensor stored = store_table(table, store);
    EXPECT_EQ(is_packed(stored), store != TableStore::f32);
    Lookup lookup(stored, int64_t(ids.size()));
    lookup.run(ids);
    Tensor y({int64_t(ids.size()), kD}, DType::f32);
    stored_embedding(stored, Tensor::from({int64_t(ids.size())}, ids.data()), y);
    for (size_t n = 0; n < ids.size(); ++n) {
      const std::vector<double> expected = rounded_row(table.data<float>() + ids[n] * kD, kD, store);
      for (size_t k = 0; k < size_t(kD); ++k) {
        const float got = lookup.y[n * size_t(kD) + k];
        EXPECT_EQ(got, y.data<float>()[n * size_t(kD) + k]);
        // codes are equal (no value lies half way between two); products of code and step are rounded
        EXPECT_NEAR(got, expected[k], 1e-5) << name_of(store) << ' ' << n << ' ' << k;
      }
    }
  }
  Tensor odd = random_tensor({3, 5}, DType::f32, 3);
  EXPECT_THROW(store_table(odd, TableStore::int4), ShapeError);
}

TEST(Decode, RefusesIdsOutsideTheTableAndOtherDevices) {
  Lookup lookup(Tensor::zeros({7, 5}, DType::f32), 2);
  EXPECT_THROW(lookup.run({0, 7}), DataError);
  EXPECT_THROW(lookup.run({-1}), DataError);
  EXPECT_NO_THROW(lookup.run({0, 6}));
  EXPECT_NO_THROW(lookup.run({}));
  lookup.program.device = Device::cuda;
  EXPECT_THROW(lookup.run({0}), DeviceError);
}

}  // namespace
}  // namespace mmfree
