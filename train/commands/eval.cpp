#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/system/console.h"
#include "core/system/signals.h"
#include "data/paths.h"
#include "data/text/text_reader.h"
#include "train/commands/commands.h"
#include "train/commands/model_options.h"
#include "train/inference/evaluate.h"
#include "train/run/progress.h"

namespace mmfree {
namespace {

struct Options {
  ModelOptions model;
  std::vector<std::string> data;
  int64_t seq_len = 0, limit = 0;
  bool json = false;
};

/// Token shards if the names say so, else text for the model's own tokenizer.
TokenSource open_source(const Options& o, const Model& model, std::unique_ptr<TokenShards>& shards) {
  const std::vector<std::string> files = expand_paths(o.data, {".h5", ".txt", ".jsonl", ".jsonl.zst"});
  if (files.front().ends_with(".h5")) {
    shards = std::make_unique<TokenShards>(files);
    MMFREE_CHECK(DataError, shards->vocab_size() <= model.config.vocab_size, files.front(), ": has ",
                 shards->vocab_size(), " token ids, the model only ", model.config.vocab_size);
    MMFREE_CHECK(DataError, !model.tokenizer || model.tokenizer->hash() == shards->info().tokenizer_hash, files.front(),
                 ": was prepared with another tokenizer than the model's");
    return TokenSource::shards(*shards);
  }
  std::vector<std::string> documents;
  TextReader reader(files);
  for (std::string text; reader.next(&text);) documents.push_back(text);
  return TokenSource::texts(model.need_tokenizer(), documents);
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
    e = evaluate(*model.lm, source, {seq_len, o.limit, show});
  }
  if (o.json) {
    nlohmann::ordered_json j = {{"model", o.model.model},
                                {"tokens", e.tokens},
                                {"seq_len", seq_len},
                                {"loss", e.loss()},
                                {"ppl", e.perplexity()}};
    j["bpb"] = e.text_bytes ? nlohmann::ordered_json(e.bits_per_byte()) : nlohmann::ordered_json(nullptr);
    console::out.print(j.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
    return;
  }
  console::out.format("%s (%s)\n", model.source.c_str(), model.kind.c_str());
  console::out.format("tokens      %lld scored in windows of %lld\n", static_cast<long long>(e.tokens),
                      static_cast<long long>(seq_len));
  console::out.format("loss        %.6f nats per token\nperplexity  %.4f per token\n", e.loss(), e.perplexity());
  if (e.text_bytes)
    console::out.format("bits/byte   %.6f over %lld bytes of text\n", e.bits_per_byte(),
                        static_cast<long long>(e.text_bytes));
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("eval", "Loss, perplexity and bits per byte of a model on held-out data");
  add_model_options(*c, o->model);
  c->add_option("data", o->data, "token shards (.h5), or text (.txt, .jsonl, .jsonl.zst): files, folders, globs")
      ->required();
  c->add_option("--seq-len", o->seq_len, "tokens per window (default: as trained)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 24));
  c->add_option("--limit", o->limit, "score at most so many tokens")->check(CLI::Range(int64_t(0), int64_t(1) << 40));
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
