#include "core/ops/decode.h"

#include "core/dispatch.h"

namespace mmfree {

void run_decode(const DecodeProgram& program, const DecodeCall& call) {
  MMFREE_CHECK(DeviceError, program.device == Device::cpu, "decode: programs run on the CPU, not on ",
               name_of(program.device));
  for (const DecodeStep& step : program.steps)
    if (const auto* embed = std::get_if<DecodeEmbed>(&step))
      for (int64_t n = 0; n < call.rows; ++n)
        MMFREE_CHECK(DataError, call.ids[n] >= 0 && call.ids[n] < embed->table.v, "decode: token id ", call.ids[n],
                     " is outside 0..", embed->table.v - 1,
                     "; was the text made with another tokenizer?");
  if (call.rows > 0) cpu::run_decode(program, call);
}

}  // namespace mmfree
