#include "train/inference/generate.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mmfree {
namespace {

constexpr const char* kNotFinite =
    "the model's logits hold a NaN or an infinity: its weights are too large; use an older checkpoint";

void mark(std::vector<int32_t>& seen, std::span<const int32_t> ids) {
  for (int32_t id : ids)
    if (id >= 0 && size_t(id) / 32 < seen.size()) seen[size_t(id) / 32] |= int32_t(uint32_t(1) << id % 32);
}

/// The tokens that a sequence goes on with after the state of `start`.
std::vector<int32_t> tokens_of(std::span<const int32_t> prompt, const PromptState* start) {
  std::vector<int32_t> ids;
  if (start) ids.push_back(start->last);
  ids.insert(ids.end(), prompt.begin(), prompt.end());
  MMFREE_CHECK(UsageError, !ids.empty(), "generate: the prompt has no tokens");
  return ids;
}

size_t seen_words(const LM& lm) { return size_t((lm.config().vocab_size + 31) / 32); }

bool same_memory(std::span<const int32_t> a, std::span<const int32_t> b) {
  return a.data() == b.data() && a.size() == b.size();
}

/// Whether some neighbours have the same prompt.
bool share_prompts(std::span<const GenerateRequest> requests) {
  for (size_t i = 1; i < requests.size(); ++i)
    if (same_memory(requests[i].prompt, requests[i - 1].prompt)) return true;
  return false;
}

EngineOptions engine_options(std::span<const GenerateRequest> requests, const GenerateOptions& o,
                             const PromptState* start) {
  MMFREE_CHECK(UsageError, o.batch > 0, "generate: the batch must be positive");
  EngineOptions e;
  e.slots = std::min(o.batch, int64_t(requests.size())) + share_prompts(requests);
  size_t longest = 0;
  for (const GenerateRequest& r : requests) longest = std::max(longest, r.prompt.size());
  e.context = (start ? start->slot.position : 0) + 1 + int64_t(longest) + o.max_tokens;
  return e;
}

/// Texts in the slots of an engine.
class Texts {
 public:
  Texts(const LM& lm, std::span<const GenerateRequest> requests, const GenerateOptions& options,
        const PromptState* start, const GenerateSink& sink)
      : lm_(lm),
        requests_(requests),
        options_(options),
        start_(start),
        sink_(sink),
        engine_(lm, engine_options(requests, options, start)),
        shared_(share_prompts(requests)),
        penalised_(options.sampling.repetition_penalty != 1) {
    for (int64_t slot = engine_.slots() - shared_; slot > 0; --slot) free_.push_back(slot - 1);
  }

  void run() {
    if (fits_device_loop()) return run_on_device();
    while (fill() && go_on()) step();
  }

 private:
  /// A text that is being made.
  struct Text {
    size_t which;
    int64_t slot, count = 0;
    std::vector<int32_t> ids;   ///< what the next step computes
    std::vector<int32_t> seen;  ///< as PromptState; empty without a penalty
    bool ended = false;
  };

  bool go_on() const { return !sink_.go_on || sink_.go_on(); }

  /// The loop on the device begins with all texts, and its penalty knows only the tokens that it is given.
  bool fits_device_loop() const {
    return lm_.device() != Device::cpu && requests_.size() <= free_.size() && !(penalised_ && (start_ || shared_));
  }

  SampleSettings settings(size_t which) const {
    SampleSettings s = options_.sampling;
    s.request = requests_[which].number;
    return s;
  }

  void begin(int64_t slot) {
    if (start_)
      engine_.set_state(slot, start_->slot);
    else
      engine_.reset(slot);
  }

  /// Puts request `which` into a slot. Of several with the same prompt only the last token is computed for each.
  Text started(size_t which, int64_t slot) {
    Text text{which, slot, 0, tokens_of(requests_[which].prompt, start_), {}};
    if (penalised_) {
      text.seen = start_ ? start_->seen : std::vector<int32_t>(seen_words(lm_));
      mark(text.seen, text.ids);
    }
    const auto same_as = [&](size_t other) {
      return other < requests_.size() && same_memory(requests_[other].prompt, requests_[which].prompt);
    };
    const int64_t common = engine_.slots() - 1;
    if (which > 0 && same_as(which - 1)) {
      engine_.copy(common, slot);
    } else {
      const bool first_of_several = same_as(which + 1);
      begin(first_of_several ? common : slot);
      if (!first_of_several) return text;
      const EngineInput all_but_last{common, std::span(text.ids).first(text.ids.size() - 1), false};
      if (!all_but_last.ids.empty()) engine_.run({&all_but_last, 1});
      engine_.copy(common, slot);
    }
    text.ids = {text.ids.back()};
    return text;
  }

  /// Starts texts in free slots. Returns false if there is nothing to compute.
  bool fill() {
    while (!free_.empty() && next_ < requests_.size()) {
      texts_.push_back(started(next_++, free_.back()));
      free_.pop_back();
      changed_ = true;
    }
    return !texts_.empty();
  }

  /// Puts what the sampling of the running texts needs on the device.
  void prepare_sampling() {
    std::vector<SampleRow> rows;
    std::vector<int32_t> seen;
    for (const Text& t : texts_) {
      rows.push_back(sample_row(settings(t.which), uint64_t(t.count)));
      seen.insert(seen.end(), t.seen.begin(), t.seen.end());
    }
    const auto r = int64_t(rows.size()), bytes = r * int64_t(sizeof(SampleRow));
    rows_ = Tensor::from({bytes}, reinterpret_cast<const uint8_t*>(rows.data())).to(lm_.device());
    seen_ = penalised_ ? Tensor::from({r, int64_t(seen.size()) / r}, seen.data()).to(lm_.device()) : Tensor();
    tokens_ = Tensor({r}, DType::i32, lm_.device());
    changed_ = false;
  }

  void step() {
    if (changed_) prepare_sampling();
    inputs_.clear();
    for (const Text& t : texts_) inputs_.push_back({t.slot, t.ids});
    sample(engine_.run(inputs_), rows_, seen_, tokens_);
    const Tensor chosen = tokens_.to(Device::cpu);
    for (size_t i = 0; i < texts_.size(); ++i) deliver(texts_[i], chosen.data<int32_t>()[i]);
    for (const Text& t : texts_)
      if (t.ended) free_.push_back(t.slot), changed_ = true;
    std::erase_if(texts_, [](const Text& t) { return t.ended; });
  }

  void deliver(Text& t, int32_t token) {
    MMFREE_CHECK(DivergedError, token >= 0, kNotFinite);
    const auto end = [&](TextEnd why) {
      t.ended = true;
      if (sink_.on_end) sink_.on_end(t.which, why);
    };
    if (std::find(options_.stop.begin(), options_.stop.end(), token) != options_.stop.end())
      return end(TextEnd::stop_id);
    ++t.count;
    t.ids = {token};
    if (penalised_) mark(t.seen, t.ids);
    if (sink_.on_token && !sink_.on_token(t.which, token)) return end(TextEnd::told);
    if (t.count == options_.max_tokens) end(TextEnd::length);
  }

  void run_on_device() {
    fill();
    std::vector<SampleSettings> settings;
    for (const Text& t : texts_) inputs_.push_back({t.slot, t.ids}), settings.push_back(this->settings(t.which));
    std::vector<std::vector<int32_t>> ids;  // deliver changes those of the texts
    for (size_t i = 0; i < texts_.size(); ++i) inputs_[i].ids = ids.emplace_back(texts_[i].ids);
    engine_.generate(inputs_, settings, options_.max_tokens, [&](std::span<const int32_t> tokens) {
      if (!go_on()) return false;
      bool running = false;
      for (size_t i = 0; i < tokens.size(); ++i) {
        if (!texts_[i].ended) deliver(texts_[i], tokens[i]);
        running |= !texts_[i].ended;
      }
      return running;
    });
  }

  const LM& lm_;
  std::span<const GenerateRequest> requests_;
  const GenerateOptions& options_;
  const PromptState* start_;
  const GenerateSink& sink_;
  Engine engine_;
  bool shared_;  ///< the last slot holds the prompt that neighbours have in common
  bool penalised_, changed_ = true;
  size_t next_ = 0;  ///< request
  std::vector<int64_t> free_;
  std::vector<Text> texts_;
  std::vector<EngineInput> inputs_;
  Tensor rows_, seen_, tokens_;
};

}  // namespace

int32_t most_likely(const float* logits, int64_t vocab) {
  int64_t best = 0;
  bool good = true;
  for (int64_t v = 0; v < vocab; ++v) {
    good &= logits[v] <= std::numeric_limits<float>::max();  // −∞ is a token that never comes
    if (logits[v] > logits[best]) best = v;
  }
  MMFREE_CHECK(DivergedError, good && std::isfinite(logits[best]), kNotFinite);
  return int32_t(best);
}

void generate(const LM& lm, std::span<const GenerateRequest> requests, const GenerateOptions& options,
              const PromptState* start, const GenerateSink& sink) {
  for (const GenerateRequest& r : requests) tokens_of(r.prompt, start);
  if (requests.empty()) return;
  if (options.max_tokens > 0) return Texts(lm, requests, options, start, sink).run();
  for (size_t i = 0; sink.on_end && i < requests.size(); ++i) sink.on_end(i, TextEnd::length);
}

std::vector<int32_t> generate(const LM& lm, const std::vector<int32_t>& prompt, const GenerateOptions& options,
                              const std::function<bool(int32_t)>& on_token) {
  std::vector<int32_t> text;
  const GenerateRequest request{prompt};
  GenerateSink sink;
  sink.on_token = [&](size_t, int32_t token) {
    text.push_back(token);
    return !on_token || on_token(token);
  };
  generate(lm, {&request, 1}, options, nullptr, sink);
  return text;
}

PromptState prompt_state(const LM& lm, std::span<const int32_t> prompt, const PromptState* start) {
  const std::vector<int32_t> ids = tokens_of(prompt, start);
  Engine engine(lm, {.slots = 1, .context = (start ? start->slot.position : 0) + int64_t(ids.size())});
  if (start) engine.set_state(0, start->slot);
  const EngineInput all_but_last{0, std::span(ids).first(ids.size() - 1), false};
  if (ids.size() > 1) engine.run({&all_but_last, 1});
  PromptState state{engine.state(0), ids.back(), start ? start->seen : std::vector<int32_t>(seen_words(lm))};
  mark(state.seen, ids);
  return state;
}

}  // namespace mmfree
