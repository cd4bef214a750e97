#pragma once
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/ops/decode.h"
#include "layers/lm.h"

namespace mmfree {

struct EngineRecurrence;  // layers/decode/compiler.h
struct EngineCache;

struct EngineOptions {
  int64_t slots = 1;       ///< sequences that are held at a time
  int64_t context = 2048;  ///< most tokens of a sequence, if the model has attention without a window; else no limit
  int64_t chunk = 128;     ///< most rows that are computed at a time; longer inputs are cut. At least `slots`
  int threads = 0;         ///< 0: those of OpenMP
};

/// Tokens that a sequence goes on with, and whether the logits of the last one are wanted.
struct EngineInput {
  int64_t slot;
  std::span<const int32_t> ids;
  bool logits = true;
};

/// The state of one sequence after `position` tokens: for each recurrence [D], for each attention its keys and values
/// [S, G, W] of the S tokens that the next one may see. On the host.
struct SlotState {
  int64_t position = 0;
  std::vector<Tensor> tensors;
};

/// Generates with a model: no tape, and no allocation per token. Sequences are in slots: rows of the state tensors. On
/// the CPU the logits are those of LM::logits to the bit, whatever other sequences are computed with, however the
/// tokens are cut into calls, and for any number of threads. The steps are those of the model's own code (see Plan).
/// On a GPU everything is f32 but the operands of products, also where the model computes in bf16. Logits differ from
/// those of LM::logits by rounding, but neither they depend on other sequences or on how the tokens are cut.
///
/// An exception of a call leaves the states as they were, unless memory ran out.
class Engine {
 public:
  /// `lm` must outlive the engine, and its parameters must not change. @throws UsageError for options that are not
  /// positive; DTypeError: parameters must be f32
  Engine(const LM& lm, const EngineOptions& options);
  ~Engine();

  int64_t slots() const { return options_.slots; }
  int64_t vocab_size() const { return vocab_size_; }
  /// Tokens of the slot's sequence so far.
  int64_t position(int64_t slot) const { return positions_[size_t(slot)]; }
  /// Most tokens of a sequence; INT64_MAX: no limit.
  int64_t context() const { return context_; }
  /// Bytes of states and buffers.
  int64_t bytes() const { return bytes_; }

  /// Goes on with several sequences at once, each slot at most once. Returns the logits [R, V] of those R inputs that
  /// want them, in their order and on the model's device; they are valid until the next call.
  /// @throws DataError for an id outside the vocabulary; UsageError for a slot that does not exist or comes twice, an
  /// input without tokens, a sequence longer than context()
  Tensor run(std::span<const EngineInput> inputs);
  /// The same for one sequence and any number of tokens: logits [1, V] of the last.
  Tensor prefill(int64_t slot, std::span<const int32_t> ids);
  /// The same for one token of each of several sequences: logits [slots, V].
  Tensor step(std::span<const int64_t> slots, std::span<const int32_t> ids);

  /// Goes on with several sequences as run does, chooses the next token of each by its settings, and goes on with that
  /// token, until each has `count` more tokens or `on_tokens` returns false: it gets the tokens of each step, [R]. On a
  /// GPU tokens do not pass through the host, which reads them a few steps late. The penalty counts the tokens of
  /// `inputs` and those chosen. In the end the slots are empty: see reset.
  /// @throws as run; UsageError for settings that are not as many or out of range; DivergedError if logits are not
  /// finite; what `on_tokens` throws
  void generate(std::span<const EngineInput> inputs, std::span<const SampleSettings> settings, int64_t count,
                const std::function<bool(std::span<const int32_t>)>& on_tokens, bool captured = true);

  /// Makes the sequence in `to` that in `from`. @throws UsageError for a slot that does not exist
  void copy(int64_t from, int64_t to);
  /// Makes the sequence in `slot` empty. @throws UsageError as copy
  void reset(int64_t slot);
  /// A slot's state, to be kept elsewhere. @throws UsageError as copy
  SlotState state(int64_t slot) const;
  /// Continues from a state. @throws UsageError as copy; DataError if it is not one of this model, or longer than
  /// context(); then nothing is changed
  void set_state(int64_t slot, const SlotState& state);

 private:
  void check_slot(int64_t slot) const;
  void check_inputs(std::span<const EngineInput> inputs);
  void compute(const DecodeCall& call);
  void generate_steps(DecodeLoop& loop);

  EngineOptions options_;
  int64_t vocab_size_, context_, bytes_ = 0;
  DecodeProgram program_;
  std::vector<Tensor> buffers_;  ///< owns what the program's addresses point to
  std::vector<std::unique_ptr<EngineRecurrence>> recurrences_;
  std::vector<std::unique_ptr<EngineCache>> caches_;
  std::vector<int64_t> positions_;  ///< per slot
  Tensor logits_;                   ///< [slots, V]
  // Of a call.
  std::vector<int32_t> ids_;
  std::vector<DecodeSpan> spans_;
  std::vector<int64_t> wanted_;
  std::vector<size_t> done_;      ///< per input: tokens computed
  std::vector<uint8_t> in_call_;  ///< per slot
  std::vector<EngineInput> step_inputs_;
};

}  // namespace mmfree
