#include "core/ops/rope.h"
#include "tests/cuda/twins.h"
#include "tests/support/starts.h"

using namespace mmfree;

namespace {

Tensor begins_of(int64_t b, int64_t t, int64_t first) {
  Tensor begins({b, t}, DType::i32), after({b}, DType::i32);
  document_begins(some_starts(b, t), {}, first, begins, after);
  return begins;
}

Tensor on_gpu(const Tensor& t) { return t.defined() ? t.to(Device::cuda) : t; }

/// An angle is a fraction of a turn in f32, wrong by 2^-25 turns at most: 2e-7; two products and their sum add as much.
double rope_bound(DType type) { return type == DType::bf16 ? gpu_bound(type) : 1e-6; }

}  // namespace

TEST(CudaRope, DocumentBeginsAreThoseOfTheCpu) {
  MMFREE_NEEDS_GPU();
  for (int64_t t : {1, 2, 31, 32, 33, 1000, 1023, 1024, 1025, 5000})
    for (bool marks : {false, true})
      for (bool earlier : {false, true}) {
        SCOPED_TRACE(concat("T ", t, " starts ", marks, " before ", earlier));
        const int64_t b = 3, first = 77;
        Tensor starts, before, begins({b, t}, DType::i32), after({b}, DType::i32);
        if (marks) {
          starts = Tensor::zeros({b, t}, DType::u8);
          for (int64_t i = t / 3; i < b * t; i += 1 + t / 2) starts.mut<uint8_t>()[i] = 1;
        }
        if (earlier) before = Tensor::from<int32_t>({b}, std::array<int32_t, 3>{5, 0, 76}.data());
        Tensor gpu_begins = gpu_tensor({b, t}, DType::i32), gpu_after = gpu_tensor({b}, DType::i32);
        if (earlier) gpu_after = before.to(Device::cuda);
        document_begins(on_gpu(starts), earlier ? gpu_after : Tensor(), first, gpu_begins, gpu_after);
        document_begins(starts, before, first, begins, after);
        EXPECT_TRUE(same_bits(gpu_begins.to(Device::cpu), begins));
        EXPECT_TRUE(same_bits(gpu_after.to(Device::cpu), after));
      }
}

TEST(CudaRope, MatchesTheCpuInDouble) {
  MMFREE_NEEDS_GPU();
  for (DType type : {DType::f32, DType::bf16})
    for (int64_t width : {2, 6, 8, 40, 64, 128, 256, 2056})
      for (bool documents : {false, true})
        for (bool back : {false, true}) {
          SCOPED_TRACE(concat(name_of(type), " W ", width, " documents ", documents, " back ", back));
          const int64_t b = 2, t = 67, heads = 3;
          const Tensor x = random_of({b, t, heads, width}, type, 1);
          Positions positions{100000, {}}, there = positions;
          if (documents) positions.begins = begins_of(b, t, positions.first);
          there.begins = on_gpu(positions.begins);
          Tensor expected(x.shape(), DType::f64), got = gpu_tensor(x.shape(), type), in_place = to_gpu(x, type);
          const auto turn = back ? rope_backward : rope;
          turn(x, positions, 10000, expected);
          turn(to_gpu(x, type), there, 10000, got);
          turn(in_place, there, 10000, in_place);
          EXPECT_LE(relative_error(from_gpu(got), expected), rope_bound(type));
          EXPECT_TRUE(same_bits(got.to(Device::cpu), in_place.to(Device::cpu)));
        }
}

TEST(CudaRope, RowsThatAreNotAlignedAreRotatedToo) {
  MMFREE_NEEDS_GPU();
  const int64_t t = 5, heads = 3, width = 10;
  const Tensor x = random_of({4, t, heads, width}, DType::bf16, 1), part = x.slice(1, 3);
  Tensor expected(part.shape(), DType::f64), got = gpu_tensor(x.shape(), DType::bf16), rows = got.slice(1, 3);
  rope(part, {}, 500, expected);
  rope(to_gpu(x, DType::bf16).slice(1, 3), {}, 500, rows);
  EXPECT_LE(relative_error(from_gpu(rows.clone()), expected), rope_bound(DType::bf16));
}
