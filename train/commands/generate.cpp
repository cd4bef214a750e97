#include "train/inference/generate.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/system/console.h"
#include "core/system/signals.h"
#include "train/commands/commands.h"
#include "train/commands/model_options.h"
#include "train/commands/prompts.h"
#include "train/inference/state_file.h"
#include "train/inference/stop_text.h"
#include "train/run/progress.h"

namespace mmfree {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  ModelOptions model;
  std::string prompt, input, state;
  std::vector<std::string> stops;
  GenerateOptions generate;
  int64_t samples = 1;
  bool ignore_eos = false, json = false, stats = false;
};

/// The texts to be made: every prompt `samples` times.
struct Work {
  std::vector<Prompt> prompts;
  std::vector<std::vector<int32_t>> ids;  ///< of the prompts
  std::vector<GenerateRequest> requests;
  std::optional<PromptState> start;
};

/// A growing text: what its tokens say, up to a stop text.
class GrowingText {
 public:
  /// `before` are the tokens of the prompt: whether a space at the beginning counts depends on them.
  GrowingText(const Tokenizer& tokenizer, const std::vector<std::string>& stops, std::span<const int32_t> before)
      : vocab_(tokenizer.vocab_size()), decoder_(tokenizer), stops_(stops) {
    for (int32_t id : before) prompt_ += piece(id);
  }
  const std::string& prompt() const { return prompt_; }
  /// Adds a token. Returns the text that is certain since.
  std::string push(int32_t id) {
    ++tokens_;
    return stops_.push(piece(id));
  }
  bool stopped() const { return stops_.found(); }
  std::string flush() {
    std::string rest = stops_.push(decoder_.flush());
    return rest + stops_.flush();
  }
  int64_t tokens() const { return tokens_; }

 private:
  std::string piece(int32_t id) { return id < vocab_ ? decoder_.push(id) : ""; }

  int vocab_;
  StreamDecoder decoder_;
  StopTexts stops_;
  std::string prompt_;
  int64_t tokens_ = 0;
};

GrowingText growing_text(const Model& model, const Options& o, const Work& work, size_t which) {
  std::vector<int32_t> before;
  if (work.start) before.push_back(work.start->last);
  const auto& prompt = work.requests[which].prompt;
  before.insert(before.end(), prompt.begin(), prompt.end());
  return {model.need_tokenizer(), o.stops, before};
}

const char* name_of(TextEnd end) { return end == TextEnd::stop_id ? "eos" : end == TextEnd::told ? "stop" : "length"; }

/// Streams one text. Returns the number of its tokens.
int64_t stream(const Model& model, const Options& o, const Work& work) {
  GrowingText text = growing_text(model, o, work, 0);
  // After a state the prompt is what was given now.
  console::out.print(o.state.empty() ? text.prompt() : o.prompt);
  GenerateSink sink;
  sink.on_token = [&](size_t, int32_t id) {
    console::out.print(text.push(id));
    return !text.stopped();
  };
  sink.go_on = [] { return !StopSignals::pending(); };
  generate(*model.lm, work.requests, o.generate, work.start ? &*work.start : nullptr, sink);
  console::out.print(text.flush() + "\n");
  return text.tokens();
}

/// Prints a JSON object for each text, in their order. Returns the number of tokens.
int64_t print_lines(const Model& model, const Options& o, const Work& work) {
  struct Line {
    std::optional<GrowingText> growing;
    std::string text;
    Json done;
  };
  std::vector<Line> lines(work.requests.size());
  size_t ended = 0, printed = 0;
  int64_t tokens = 0;
  ShareProgress progress("generating");
  GenerateSink sink;
  const auto at = [&](size_t which) -> Line& {
    if (!lines[which].growing) lines[which].growing = growing_text(model, o, work, which);
    return lines[which];
  };
  sink.on_token = [&](size_t which, int32_t id) {
    ++tokens;
    Line& line = at(which);
    line.text += line.growing->push(id);
    return !line.growing->stopped();
  };
  sink.on_end = [&](size_t which, TextEnd end) {
    Line& line = at(which);
    line.text += line.growing->flush();
    if (line.growing->stopped()) end = TextEnd::told;
    line.done["prompt"] = work.prompts[which / size_t(o.samples)].text;
    if (o.samples > 1) line.done["sample"] = which % size_t(o.samples);
    line.done["text"] = line.text, line.done["tokens"] = line.growing->tokens(), line.done["end"] = name_of(end);
    line.growing.reset();
    ++ended;
    for (; printed < lines.size() && !lines[printed].done.is_null(); ++printed) {
      console::out.print(lines[printed].done.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
      lines[printed].done = "printed", lines[printed].text = "";
    }
  };
  sink.go_on = [&] {
    progress.update(double(ended) / double(lines.size()), format_count(double(tokens)) + " tokens");
    return !StopSignals::pending();
  };
  generate(*model.lm, work.requests, o.generate, work.start ? &*work.start : nullptr, sink);
  return tokens;
}

/// Reads or makes the state that the texts begin with. A prompt that goes into a new state is no prompt any more.
void prepare_state(const Model& model, const Options& o, Work& work) {
  if (o.state.empty()) return;
  if (std::filesystem::exists(o.state)) {
    work.start = read_state(o.state, model);
    return console::err.format("%s: goes on after %lld tokens\n", o.state.c_str(),
                               static_cast<long long>(work.start->slot.position + 1));
  }
  MMFREE_CHECK(MissingError, o.input.empty(), o.state, ": does not exist; make it with generate --prompt … --state ",
               o.state);
  const std::vector<int32_t> prompt = model.encoder().prompt(o.prompt);
  MMFREE_CHECK(UsageError, !prompt.empty(), "generate: --state wants a --prompt, whose state is saved");
  work.start = prompt_state(*model.lm, prompt);
  write_state(o.state, model, *work.start);
  console::err.format("%s: state after %zu tokens saved\n", o.state.c_str(), prompt.size());
  work.ids = {{}};
}

Work prepare(const Model& model, const Options& o, std::vector<Prompt> prompts) {
  Work work;
  prepare_state(model, o, work);
  for (const Prompt& p : prompts) {
    if (work.ids.size() == prompts.size()) break;  // it is in the state
    work.ids.push_back(work.start ? model.need_tokenizer().encode(p.text) : model.encoder().prompt(p.text));
    MMFREE_CHECK(UsageError, work.start || !work.ids.back().empty(), p.where,
                 ": the model's documents begin with no mark of their own; give a prompt that is not empty");
  }
  for (size_t i = 0; i < prompts.size(); ++i)
    for (int64_t s = 0; s < o.samples; ++s) work.requests.push_back({work.ids[i], uint64_t(s) << 32 | uint64_t(i)});
  work.prompts = std::move(prompts);
  return work;
}

void run(Options o) {
  sample_row(o.generate.sampling);  // checks what the parser's ranges let pass, such as NaN
  const StopTexts stops_are_fine(o.stops);
  const bool lines = o.json || o.samples > 1 || !o.input.empty();
  const StopSignals signals;
  const Model model = [&] {
    const LeaveAtOnce nothing_to_finish;
    return load_model(o.model);
  }();
  const Tokenizer& tokenizer = model.need_tokenizer();
  if (!o.ignore_eos && tokenizer.eos_id() >= 0) o.generate.stop.push_back(tokenizer.eos_id());
  if (o.generate.batch == 0) o.generate.batch = model.lm->device() == Device::cpu ? 16 : 64;
  const Work work = [&] {
    const LeaveAtOnce nothing_to_finish;
    return prepare(model, o, o.input.empty() ? std::vector<Prompt>{{o.prompt, "generate"}} : read_prompts(o.input));
  }();
  const auto start = std::chrono::steady_clock::now();
  const int64_t tokens = lines ? print_lines(model, o, work) : stream(model, o, work);
  throw_if_stopped();
  if (!o.stats) return;
  const double t = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  size_t prompt = 0;
  for (const auto& ids : work.ids) prompt += ids.size();
  console::err.format("%zu prompt tokens, %lld new tokens in %.2f s: %.1f tokens/s\n", prompt,
                      static_cast<long long>(tokens), t, double(tokens) / t);
}

void add_sampling_options(CLI::App& c, GenerateOptions& g) {
  SampleSettings& s = g.sampling;
  c.add_option("-n,--max-tokens", g.max_tokens, "new tokens at most")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 40))
      ->capture_default_str();
  c.add_option("--temperature,--temp", s.temperature, "0: always the most likely token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  c.add_option("--top-k", s.top_k, "choose among the k most likely tokens; 0: all")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 40))
      ->capture_default_str();
  c.add_option("--top-p", s.top_p, "choose among the most likely tokens that reach this probability")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  c.add_option("--min-p", s.min_p, "choose no token below this share of the most likely one's probability")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  c.add_option("--repetition-penalty", s.repetition_penalty,
               "make tokens that the prompt or the text has less likely: positive logits are divided by it, others "
               "multiplied; 1: off")
      ->check(CLI::Range(0.01, 100.0))
      ->capture_default_str();
  c.add_option("--seed", s.seed, "the same seed gives the same texts, whatever the batch")->capture_default_str();
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  o->generate.batch = 0;
  CLI::App* c = app.add_subcommand("generate", "Continue prompts: one streamed to stdout, or many as JSON lines");
  add_model_options(*c, o->model);
  CLI::Option* prompt =
      c->add_option("-p,--prompt", o->prompt, "text to continue (default: from the beginning of a document)");
  c->add_option("-i,--input", o->input, "prompts as JSON lines, {\"prompt\": \"…\"} each; - for standard input")
      ->excludes(prompt);
  add_sampling_options(*c, o->generate);
  c->add_option("--samples", o->samples, "texts for each prompt")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 20))
      ->capture_default_str();
  c->add_option("--stop", o->stops, "end a text before this text; may be repeated");
  c->add_option("--batch", o->generate.batch,
                "texts computed at a time; they do not depend on it (default: 16, 64 on a GPU)")
      ->check(CLI::Range(1, 4096));
  c->add_option("--state", o->state,
                "file of the state after a prompt: if it is there, texts go on from it; else --prompt's is saved");
  c->add_flag("--ignore-eos", o->ignore_eos, "go on after the end of a document");
  c->add_flag("--json", o->json, "print a JSON line for a single text too");
  c->add_flag("--stats", o->stats, "print the speed to stderr");
  c->footer(
      "Output lines of --input, --samples and --json, in the order of the prompts: prompt, sample (from 0, with\n"
      "--samples), text, tokens, end (eos, stop or length).\n"
      "Examples:\n"
      "  mmfree generate runs/quickstart --prompt 'Once upon a time'\n"
      "  mmfree generate model.mmfree -p 'The sea' -n 400 --temperature 0.7 --top-k 40 --seed 7\n"
      "  mmfree generate model.mmfree -i prompts.jsonl --samples 4 --stop '###' > texts.jsonl\n"
      "  mmfree generate model.mmfree -p 'A long story.' --state story.state -n 0    # saves the state\n"
      "  mmfree generate model.mmfree -p ' And then' --state story.state             # goes on from it");
  c->callback([o] { run(*o); });
}

}  // namespace mmfree
