#include "train/inference/generate.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <memory>

#include "core/system/console.h"
#include "core/system/signals.h"
#include "train/commands/commands.h"
#include "train/commands/model_options.h"

namespace mmfree {
namespace {

struct Options {
  ModelOptions model;
  std::string prompt;
  GenerateOptions generate;
  bool ignore_eos = false, stats = false;
};

void run(Options o) {
  // The parser's range checks let NaN pass.
  MMFREE_CHECK(UsageError, !std::isnan(o.generate.temperature) && !std::isnan(o.generate.top_p),
               "generate: --temperature and --top-p must be numbers");
  const StopSignals signals;
  const Model model = [&] {
    const LeaveAtOnce nothing_to_finish;
    return load_model(o.model);
  }();
  const Tokenizer& tokenizer = model.need_tokenizer();
  const std::vector<int32_t> prompt = model.encoder().prompt(o.prompt);
  MMFREE_CHECK(UsageError, !prompt.empty(),
               "generate: the model's documents begin with no mark of their own; give a --prompt");
  if (!o.ignore_eos && tokenizer.eos_id() >= 0) o.generate.stop.push_back(tokenizer.eos_id());
  StreamDecoder decoder(tokenizer);
  for (int32_t id : prompt) console::out.print(decoder.push(id));
  const auto start = std::chrono::steady_clock::now();
  const auto text = generate(*model.lm, prompt, o.generate, [&](int32_t id) {
    if (id < tokenizer.vocab_size()) console::out.print(decoder.push(id));
    return !StopSignals::pending();
  });
  console::out.print(decoder.flush() + "\n");
  throw_if_stopped();
  if (!o.stats) return;
  const double t = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  console::err.format("%zu prompt tokens, %zu new tokens in %.2f s: %.1f tokens/s\n", prompt.size(), text.size(), t,
                      double(text.size()) / t);
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  GenerateOptions& g = o->generate;
  CLI::App* c = app.add_subcommand("generate", "Continue a prompt, streaming the text to stdout");
  add_model_options(*c, o->model);
  c->add_option("-p,--prompt", o->prompt, "text to continue (default: from the beginning of a document)");
  c->add_option("-n,--max-tokens", g.max_tokens, "new tokens at most")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 40))
      ->capture_default_str();
  c->add_option("--temperature,--temp", g.temperature, "0: always the most likely token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  c->add_option("--top-k", g.top_k, "choose among the k most likely tokens; 0: all")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 40))
      ->capture_default_str();
  c->add_option("--top-p", g.top_p, "choose among the most likely tokens that reach this probability")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  c->add_option("--seed", g.seed, "the same seed gives the same text")->capture_default_str();
  c->add_flag("--ignore-eos", o->ignore_eos, "go on after the end of a document");
  c->add_flag("--stats", o->stats, "print the speed to stderr");
  c->footer(
      "Examples:\n"
      "  mmfree generate runs/quickstart --prompt 'Once upon a time'\n"
      "  mmfree generate model.mmfree -p 'The sea' -n 400 --temperature 0.7 --top-k 40 --seed 7");
  c->callback([o] { run(*o); });
}

}  // namespace mmfree
