// Embedding tables of every store in a decode program on a GPU: the bits of a table of the values that they stand for,
// for a few rows (a chain) and for many.
#include "core/ops/decode.h"
#include "tests/cuda/transfer.h"
#include "tests/support/compare.h"

namespace mmfree {
namespace {

constexpr int64_t kWords = 23, kWidth = 288, kMost = 9;  // 288: no multiple of a block of columns

/// Logits of `rows` sequences of one token: a table, a norm without weights, and a ternary matrix.
Tensor logits_of(const QuantTensor& table, int64_t rows) {
  std::vector<int8_t> weights;
  for (int64_t i = 0; i < kWords * kWidth; ++i) weights.push_back(int8_t(i * i % 7 % 3 - 1));
  const Tensor bytes = Tensor::from({kWords, kWidth}, weights.data()).to(Device::cuda);
  const int64_t line = packed_decode_bytes(kWidth), stride = 4 * line;
  Tensor packed({kWords, line}, DType::u8, Device::cuda), scale = Tensor::zeros({1}, DType::f32).to(Device::cuda);
  const float half = 0.5f;
  scale.copy_from(Tensor::from({1}, &half));
  pack_decode(bytes, packed);
  const auto floats = [](int64_t n) { return Tensor::zeros({kMost, n}, DType::f32, Device::cuda); };
  Tensor y = floats(kWidth), step = floats(1), logits = floats(kWords);
  Tensor codes = Tensor::zeros({kMost, stride}, DType::i8, Device::cuda);
  DecodeEmbed embed{stored_table(table), y.mut<float>()};
  DecodeNorm norm{};
  norm.args.source = {RowSource::rows, Activation{}, y.raw(), nullptr, nullptr, kWidth, 1e-6, DType::f32};
  norm.args.eps_outer = norm.args.eps_inner = 1e-6, norm.args.n = 1, norm.args.d = kWidth, norm.args.count = 1;
  norm.args.dtype = DType::f32;
  norm.args.branches[0] = {nullptr, Rounding::int8, codes.raw_mut(), step.raw_mut(), nullptr, nullptr, 0};
  norm.outputs[0] = {stride, nullptr};
  norm.at_wanted = true;
  DecodeMatrix m;
  m.q = codes.data<int8_t>(), m.step = step.data<float>(), m.q_stride = stride;
  m.codes = packed.data<uint8_t>(), m.scale = scale.data<float>(), m.y = logits.mut<float>();
  m.o = kWords, m.k = kWidth;
  DecodeProgram program;
  program.device = Device::cuda;
  program.steps = {embed, norm, DecodeProducts{{m}, true}};
  prepare_decode(program, kMost, kMost);
  std::vector<int32_t> ids;
  std::vector<DecodeSpan> spans;
  std::vector<int64_t> wanted;
  for (int64_t r = 0; r < rows; ++r) {
    ids.push_back(int32_t((5 * r + 3) % kWords));
    spans.push_back({r, 1, r, 0});
    wanted.push_back(r);
  }
  run_decode(program, {ids.data(), rows, spans.data(), rows, wanted.data(), rows, 0, 1});
  return logits.to(Device::cpu).slice(0, rows).clone();
}

TEST(CudaEngineStores, AStoredTableIsTheTableOfItsValues) {
  MMFREE_NEEDS_GPU();
  const Tensor table = random_tensor({kWords, kWidth}, DType::f32, 3);
  std::vector<int32_t> all;
  for (int32_t i = 0; i < kWords; ++i) all.push_back(i);
  Tensor first;
  for (TableStore store : kAllTableStores) {
    SCOPED_TRACE(name_of(store));
    QuantTensor stored = store_table(table, store);
    Tensor values({kWords, kWidth}, DType::f32);
    stored_embedding(stored, Tensor::from({kWords}, all.data()), values);
    stored.values = to_gpu(stored.values);
    if (stored.scale.defined()) stored.scale = to_gpu(stored.scale);
    for (int64_t rows : {int64_t(1), int64_t(3), kMost}) {
      const Tensor logits = logits_of(stored, rows);
      EXPECT_TRUE(same_bits(logits, logits_of(QuantTensor(to_gpu(values)), rows))) << rows << " rows";
      if (rows == kMost) {
        EXPECT_FALSE(first.defined() && same_bits(first, logits)) << "the stores round differently";
        first = logits;
      }
    }
  }
}

}  // namespace
}  // namespace mmfree
