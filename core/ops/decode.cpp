#include "core/ops/decode.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {

namespace cpu {
namespace {

void prepare_decode(DecodeProgram&, int64_t, int64_t) {}
void pack_decode(const int8_t*, int64_t, int64_t, uint8_t*) {
  throw DeviceError("decode: the CPU multiplies weights in the packing of TernaryTensor");
}

void decode_loop(const DecodeProgram&, const DecodeLoop&, int64_t&) {
  throw DeviceError("decode: only programs on a GPU run in a loop");
}

}  // namespace
}  // namespace cpu

void run_decode(const DecodeProgram& program, const DecodeCall& call) {
  for (const DecodeStep& step : program.steps)
    if (const auto* embed = std::get_if<DecodeEmbed>(&step))
      for (int64_t n = 0; n < call.rows; ++n)
        MMFREE_CHECK(DataError, call.ids[n] >= 0 && call.ids[n] < embed->table.v, "decode: token id ", call.ids[n],
                     " is outside 0..", embed->table.v - 1, "; was the text made with another tokenizer?");
  if (call.rows > 0) MMFREE_DISPATCH(program.device, run_decode, program, call);
}

void prepare_decode(DecodeProgram& program, int64_t most_rows, int64_t most_spans) {
  MMFREE_DISPATCH(program.device, prepare_decode, program, most_rows, most_spans);
}

int64_t decode_loop(const DecodeProgram& program, const DecodeLoop& loop) {
  const size_t r = loop.slots.size();
  MMFREE_CHECK(Error,
               r > 0 && loop.positions.size() == r && loop.rows.size() == r &&
                   (loop.seen.empty() || loop.seen.size() == r * size_t((loop.vocab + 31) / 32)),
               "decode: a loop of ", r, " sequences with ", loop.rows.size(), " settings");
  int64_t consumed = 0;
  MMFREE_DISPATCH(program.device, decode_loop, program, loop, consumed);
  return consumed;
}

int64_t packed_decode_bytes(int64_t k) { return (k + 255) / 256 * 64; }

void pack_decode(const Tensor& weights, Tensor& packed) {
  const int64_t o = weights.dim(0), k = weights.dim(1);
  check_tensor("pack_decode", "weights", weights, {o, k}, DType::i8);
  check_tensor("pack_decode", "packed", packed, {o, packed_decode_bytes(k)}, DType::u8);
  MMFREE_DISPATCH(weights.device(), pack_decode, weights.data<int8_t>(), o, k, packed.mut<uint8_t>());
}

}  // namespace mmfree
