#include "layers/decode/compiler.h"
#include "layers/decode/engine.h"

namespace mmfree {
namespace {

/// A bit for each token of each input.
std::vector<int32_t> seen_in(std::span<const EngineInput> inputs, int64_t vocab) {
  const auto words = size_t((vocab + 31) / 32);
  std::vector<int32_t> seen(inputs.size() * words);
  for (size_t i = 0; i < inputs.size(); ++i)
    for (int32_t id : inputs[i].ids) seen[i * words + size_t(id) / 32] |= int32_t(uint32_t(1) << id % 32);
  return seen;
}

/// Empties the slots of a loop, however it ends.
struct Emptied {
  Engine& engine;
  std::span<const EngineInput> inputs;
  ~Emptied() {
    for (const EngineInput& in : inputs) engine.reset(in.slot);
  }
};

}  // namespace

void Engine::generate(std::span<const EngineInput> inputs, std::span<const SampleSettings> settings, int64_t count,
                      const std::function<bool(std::span<const int32_t>)>& on_tokens, bool captured) {
  MMFREE_CHECK(UsageError, settings.size() == inputs.size(), "engine: ", settings.size(), " settings for ",
               inputs.size(), " inputs");
  if (count <= 0 || inputs.empty()) return;
  DecodeLoop loop;
  bool penalised = false;
  for (size_t i = 0; i < inputs.size(); ++i) {
    MMFREE_CHECK(UsageError, inputs[i].logits, "engine: generate wants the logits of every input");
    loop.rows.push_back(sample_row(settings[i]));
    penalised |= settings[i].repetition_penalty != 1;
    check_slot(inputs[i].slot);
    const int64_t before = positions_[size_t(inputs[i].slot)] + int64_t(inputs[i].ids.size());
    MMFREE_CHECK(UsageError, count - 1 <= context_ - before, "engine: ", count, " more tokens after ", before,
                 " do not fit in a context of ", context_, "; make the context longer");
    loop.slots.push_back(inputs[i].slot), loop.positions.push_back(before);
  }
  const Tensor logits = run(inputs);
  if (penalised) loop.seen = seen_in(inputs, vocab_size_);
  loop.logits = logits.data<float>(), loop.vocab = vocab_size_, loop.steps = count, loop.captured = captured;
  loop.on_tokens = on_tokens;
  const Emptied emptied{*this, inputs};
  if (program_.device == Device::cpu)
    generate_steps(loop);
  else
    decode_loop(program_, loop);
}

void Engine::generate_steps(DecodeLoop& loop) {
  const auto r = int64_t(loop.slots.size());
  Tensor rows = Tensor::from({r * int64_t(sizeof(SampleRow))}, reinterpret_cast<const uint8_t*>(loop.rows.data()));
  Tensor tokens({r}, DType::i32), seen;
  if (!loop.seen.empty()) seen = Tensor::from({r, int64_t(loop.seen.size()) / r}, loop.seen.data());
  for (int64_t step = 0; step < loop.steps; ++step) {
    sample(logits_.slice(0, r), rows, seen, tokens);
    const std::span<const int32_t> chosen(tokens.data<int32_t>(), size_t(r));
    for (int32_t token : chosen)
      MMFREE_CHECK(DivergedError, token >= 0,
                   "the model's logits hold a NaN or an infinity: its weights are too large; use an older checkpoint");
    if (!loop.on_tokens(chosen) || step + 1 == loop.steps) return;
    this->step(loop.slots, chosen);
  }
}

}  // namespace mmfree
