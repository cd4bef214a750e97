#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/ops/sample.h"
#include "layers/decode/engine.h"

namespace mmfree {

struct GenerateOptions {
  int64_t max_tokens = 200;
  /// How tokens are chosen; `request` is that of each text.
  SampleSettings sampling{.temperature = 0.8, .top_p = 0.95};
  std::vector<int32_t> stop;  ///< ids that end a text
  int64_t batch = 16;         ///< texts that are computed at a time, at most
};

/// A sequence before its last token, from which any number of texts go on. Its size depends on the number of tokens
/// only where the model has attention.
struct PromptState {
  SlotState slot;             ///< after all tokens but the last
  int32_t last = 0;           ///< the last token
  std::vector<int32_t> seen;  ///< [ceil(V / 32)]: a bit for each token of the sequence
};

/// One text to generate.
struct GenerateRequest {
  std::span<const int32_t> prompt;  ///< neighbours with the same memory are computed once
  uint64_t number = 0;              ///< decides, with the seed, the random numbers of this text
};

/// Why a text ended.
enum class TextEnd : uint8_t {
  stop_id,  ///< a stop id came, which is not part of the text
  told,     ///< on_token returned false
  length,   ///< max_tokens
};

/// What the tokens of many texts are handed to.
struct GenerateSink {
  /// A new token of text `which`; false ends that text.
  std::function<bool(size_t which, int32_t token)> on_token;
  std::function<void(size_t which, TextEnd end)> on_end;
  /// Asked before each step; false ends everything, without on_end.
  std::function<bool()> go_on;
};

/// The id of the largest of logits [V], the lowest of several. @throws DivergedError unless it is finite and none is
/// NaN
int32_t most_likely(const float* logits, int64_t vocab);

/// Continues many prompts, `options.batch` at a time: where a text ends, the next begins in its slot. If `start` is
/// given, each prompt goes on from there, and may be empty. A text depends on its prompt, the settings, the seed and
/// its number alone, not on the other texts or the batch: on the CPU to the bit. On a GPU, texts that all fit into the
/// batch are chosen on the device (Engine::generate).
/// @throws UsageError for a prompt without tokens or settings out of range; DivergedError if logits are not finite;
/// DataError for a state of another model; what the engine and the sink throw
void generate(const LM& lm, std::span<const GenerateRequest> requests, const GenerateOptions& options,
              const PromptState* start, const GenerateSink& sink);

/// Continues one prompt, text number 0, handing each new token to `on_token` until it returns false, a stop id or
/// max_tokens. Returns the new tokens, without the stop id. @throws as above
std::vector<int32_t> generate(const LM& lm, const std::vector<int32_t>& prompt, const GenerateOptions& options,
                              const std::function<bool(int32_t)>& on_token = {});

/// The state after a prompt, which goes on from `start` if that is given. @throws as generate
PromptState prompt_state(const LM& lm, std::span<const int32_t> prompt, const PromptState* start = nullptr);

}  // namespace mmfree
