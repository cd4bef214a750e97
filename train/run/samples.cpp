#include "train/run/samples.h"

#include "core/system/signals.h"
#include "train/inference/generate.h"

namespace mmfree {
namespace {

const Tokenizer& needed(const RunConfig& config, const std::optional<Tokenizer>& tokenizer) {
  MMFREE_CHECK(ConfigError, tokenizer, config.source, ": train.sample_every is ", config.train.sample_every,
               ", but texts need a tokenizer; set data.tokenizer, or train.sample_every=0");
  return *tokenizer;
}

}  // namespace

Samples::Samples(const RunConfig& config, const std::optional<Tokenizer>& tokenizer, const std::string& path,
                 int64_t resume_step)
    : config_(config),
      tokenizer_(needed(config, tokenizer)),
      prompts_(config.train.sample_prompts.empty() ? std::vector<std::string>{""} : config.train.sample_prompts),
      file_(path, resume_step) {
  const DocumentEncoder encoder(tokenizer_, config.data.framing.value_or(Framing::both));
  for (const std::string& prompt : prompts_) {
    ids_.push_back(encoder.prompt(prompt));
    MMFREE_CHECK(ConfigError, !ids_.back().empty(), config.source,
                 ": train.sample_prompts: documents begin with no mark of their own; give prompts that are not empty");
  }
}

bool Samples::due(int64_t step, bool last) const {
  const bool wanted = last || (step > 0 && step % config_.train.sample_every == 0);
  return wanted && file_.last_step() < step;
}

void Samples::write(const LM& lm, int64_t step) {
  std::vector<GenerateRequest> requests;
  for (const auto& ids : ids_) requests.push_back({ids, requests.size()});
  std::vector<StreamDecoder> decoders(requests.size(), StreamDecoder(tokenizer_));
  std::vector<std::string> texts(requests.size());
  const auto push = [&](size_t which, int32_t id) {
    if (id < tokenizer_.vocab_size()) texts[which] += decoders[which].push(id);
  };
  // Whether a text begins with a space depends on what is before it.
  for (size_t i = 0; i < requests.size(); ++i)
    for (const int32_t id : ids_[i]) push(i, id);
  for (std::string& text : texts) text.clear();
  GenerateOptions options;
  options.max_tokens = config_.train.sample_tokens;
  if (tokenizer_.eos_id() >= 0) options.stop = {tokenizer_.eos_id()};
  bool whole = true;
  GenerateSink sink;
  sink.on_token = [&](size_t which, int32_t id) {
    push(which, id);
    return true;
  };
  sink.go_on = [&] { return whole = !StopSignals::pending(); };
  generate(lm, requests, options, nullptr, sink);
  if (!whole) return;
  for (size_t i = 0; i < texts.size(); ++i)
    file_.write({{"step", step}, {"prompt", prompts_[i]}, {"text", texts[i] + decoders[i].flush()}});
  file_.sync();
}

}  // namespace mmfree
