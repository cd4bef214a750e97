#include <CLI/CLI.hpp>
#include <algorithm>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/system/console.h"
#include "core/system/signals.h"
#include "data/paths.h"
#include "data/text/text_reader.h"
#include "train/commands/commands.h"
#include "train/commands/model_options.h"
#include "train/commands/text_options.h"
#include "train/inference/evaluate.h"
#include "train/run/progress.h"

namespace mmfree {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  ModelOptions model;
  std::vector<std::string> data;
  TextOptions text;
  int64_t seq_len = 0, limit = 0, batch = 0;
  bool json = false;
};

/// Token shards if the names say so, else text for the model's own tokenizer.
TokenSource open_source(const Options& o, const Model& model, std::unique_ptr<TokenShards>& shards) {
  std::vector<std::string> suffixes = TextReader::suffixes();
  suffixes.push_back(".h5");
  const std::vector<std::string> files = FoundFiles(o.data, suffixes).files;
  if (has_suffix(files.front(), ".h5")) {
    shards = std::make_unique<TokenShards>(files);
    MMFREE_CHECK(DataError, shards->vocab_size() <= model.config.vocab_size, files.front(), ": has ",
                 shards->vocab_size(), " token ids, the model only ", model.config.vocab_size);
    MMFREE_CHECK(DataError, !model.tokenizer || model.tokenizer->hash() == shards->info().tokenizer_hash, files.front(),
                 ": was prepared with another tokenizer than the model's");
    return TokenSource::shards(*shards);
  }
  const auto tell = [](const char* what, const std::string& text) {
    if (!text.empty()) console::err.format("%s%s\n", what, text.c_str());
  };
  TextReader reader(o.data, o.text);
  tell("", passed_over_text(reader.passed_over()));
  const auto next = [&](Document* document) { return reader.next(document); };
  const int64_t most = o.limit > 0 ? o.limit + 1 : std::numeric_limits<int64_t>::max();
  TokenSource source = source_of_texts(model.encoder(), next, most);
  tell("skipped ", skipped_text(reader.skipped()));
  return source;
}

Json json_of(const LossSum& sum) {
  return {{"tokens", sum.tokens},
          {"loss", sum.loss()},
          {"ppl", sum.perplexity()},
          {"bpb", sum.text_bytes ? Json(sum.bits_per_byte()) : Json(nullptr)}};
}

Json json_of(const Options& o, const Evaluation& e, int64_t seq_len) {
  Json json = {{"model", o.model.model}, {"seq_len", seq_len}};
  json.update(json_of(e));
  json["sets"] = Json::object();
  for (const auto& [name, sum] : e.sets) json["sets"][name] = json_of(sum);
  json["positions"] = Json::array();
  for (size_t k = 0; k < e.positions.size(); ++k) {
    if (e.positions[k].tokens == 0) continue;
    const auto [from, to] = position_range(k);
    Json& entry = json["positions"].emplace_back(Json{{"from", from}, {"to", std::min(to, seq_len)}});
    entry.update(json_of(e.positions[k]));
  }
  return json;
}

void print_row(const std::string& name, const LossSum& sum) {
  console::out.format("%-24s %12lld %10.4f %10.2f", name.c_str(), static_cast<long long>(sum.tokens), sum.loss(),
                      sum.perplexity());
  if (sum.text_bytes) console::out.format(" %10.4f", sum.bits_per_byte());
  console::out.format("\n");
}

/// The tables: per source set, and by position in the window.
void print_tables(const Evaluation& e, int64_t seq_len) {
  const auto header = [](const char* what) {
    console::out.format("\n%-24s %12s %10s %10s %10s\n", what, "tokens", "loss", "ppl", "bits/byte");
  };
  if (!e.sets.empty()) header("source set");
  for (const auto& [name, sum] : e.sets) print_row(name.empty() ? "(none)" : name, sum);
  header("position in the window");
  for (size_t k = 0; k < e.positions.size(); ++k) {
    const auto [from, to] = position_range(k);
    if (e.positions[k].tokens > 0)
      print_row(to - from == 1 ? std::to_string(from) : concat(from, " .. ", std::min(to, seq_len) - 1),
                e.positions[k]);
  }
}

void run(const Options& o) {
  const StopSignals signals;
  const LeaveAtOnce nothing_to_clean_up;
  const Model model = load_model(o.model);
  std::unique_ptr<TokenShards> shards;
  const TokenSource source = open_source(o, model, shards);
  const int64_t seq_len = o.seq_len > 0 ? o.seq_len : model.seq_len;
  Evaluation e;
  {
    ShareProgress progress("evaluating");
    const auto show = [&](int64_t done, int64_t total) {
      progress.update(double(done) / double(total));
      return true;
    };
    e = evaluate(*model.lm, source, {seq_len, o.limit, show, model.reset_state, o.batch});
  }
  if (o.json) {
    console::out.print(json_of(o, e, seq_len).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
    return;
  }
  console::out.format("%s (%s)\n", model.source.c_str(), model.kind.c_str());
  console::out.format("tokens      %lld scored in windows of %lld\n", static_cast<long long>(e.tokens),
                      static_cast<long long>(seq_len));
  console::out.format("loss        %.6f nats per token\nperplexity  %.4f per token\n", e.loss(), e.perplexity());
  if (e.text_bytes)
    console::out.format("bits/byte   %.6f over %lld bytes of text\n", e.bits_per_byte(),
                        static_cast<long long>(e.text_bytes));
  print_tables(e, seq_len);
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("eval", "Loss, perplexity and bits per byte of a model on held-out data");
  add_model_options(*c, o->model);
  c->add_option(
       "data", o->data,
       "token shards (.h5), or text (.txt, .jsonl, .json, also with .zst or .gz): files, folders, globs, - for "
       "standard input")
      ->required();
  add_text_options(*c, o->text);
  c->add_option("--seq-len", o->seq_len, "tokens per window (default: as trained)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 24));
  c->add_option("--limit", o->limit, "score exactly so many tokens, or all if there are fewer")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 40));
  c->add_option("--batch-size", o->batch, "windows per forward pass; does not change the results (default: automatic)")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 20));
  c->add_flag("--json", o->json, "one JSON object on stdout");
  c->footer(
      "Each token but the first is scored once; windows do not overlap and each starts from the empty state.\n"
      "Bits per byte counts text only: special tokens are left out.\n"
      "Examples:\n"
      "  mmfree eval runs/quickstart shards/valid-*.h5\n"
      "  mmfree eval model.mmfree wikitext2_test.txt --seq-len 1024 --json");
  c->callback([o] { run(*o); });
}

}  // namespace mmfree
