#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/read_rate.h"
#include "core/system/console.h"
#include "core/system/signals.h"
#include "layers/decode/engine.h"
#include "train/commands/bench_rates.h"
#include "train/commands/commands.h"
#include "train/config/config.h"
#include "train/formats/ternary_file.h"
#include "train/inference/random_model.h"

namespace mmfree {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string model, save;
  std::vector<int> threads;
  std::vector<int64_t> batches = {1, 8};
  int64_t prompt = 512, tokens = 64, repeat = 5;
  bool json = false, rates = false;
  std::string rates_file = default_rates_file(), device = "auto";
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Rates {
  std::vector<double> all;
  double median() {
    std::sort(all.begin(), all.end());
    return all[all.size() / 2];
  }
  /// Largest difference from the median, as a share of it.
  double spread() {
    const double m = median();
    return std::max(all.back() / m - 1, 1 - all.front() / m);
  }
};

/// Bytes of matrices that one token reads.
int64_t weight_bytes(const LM& lm) {
  int64_t bytes = 0;
  lm.for_each_projection([&](const BitLinear& p) {
    bytes += p.matrix->is_ternary() ? p.matrix->ternary.codes.bytes() : p.matrix->plain.bytes();
  });
  return bytes;
}

std::vector<int32_t> some_ids(int64_t n, int64_t vocab) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(int32_t((i * 7919 + 13) % vocab));
  return ids;
}

/// Tokens per second of a prompt from an empty state, with logits of its last token.
double prefill_rate(Engine& engine, const std::vector<int32_t>& ids) {
  engine.reset(0);
  const double start = now();
  engine.prefill(0, ids);
  return double(ids.size()) / (now() - start);
}

/// Tokens per second of all sequences together.
double decode_rate(Engine& engine, int64_t batch, int64_t tokens) {
  std::vector<int64_t> slots;
  for (int64_t i = 0; i < batch; ++i) slots.push_back(i), engine.reset(i);
  const std::vector<int32_t> ids = some_ids(batch + tokens, engine.vocab_size());
  engine.step(slots, std::span(ids).first(size_t(batch)));
  const double start = now();
  for (int64_t t = 0; t < tokens; ++t) engine.step(slots, std::span(ids).subspan(size_t(t), size_t(batch)));
  return double(batch * tokens) / (now() - start);
}

Model bench_model(const std::string& path) {
  const LeaveAtOnce nothing_to_clean_up;
  return path.ends_with(".yaml") ? random_model(load_config(path).model) : map_model(path);
}

Json measure(const Options& o, const Model& model, int threads) {
  const int64_t batch = *std::max_element(o.batches.begin(), o.batches.end());
  Engine engine(*model.lm, {.slots = batch, .context = std::max(o.prompt, o.tokens + 1), .threads = threads});
  Rates memory, prefill;
  std::vector<Rates> decode(o.batches.size());
  const std::vector<int32_t> prompt = some_ids(o.prompt, engine.vocab_size());
  for (int64_t i = 0; i < o.repeat; ++i) {
    throw_if_stopped();
    memory.all.push_back(host_read_rate(weight_bytes(*model.lm), threads));
    for (size_t b = 0; b < decode.size(); ++b) decode[b].all.push_back(decode_rate(engine, o.batches[b], o.tokens));
    prefill.all.push_back(prefill_rate(engine, prompt));
  }
  Json result = {{"threads", threads}, {"read_bytes_per_second", memory.median()}, {"read_spread", memory.spread()}};
  for (size_t b = 0; b < decode.size(); ++b) {
    const double rate = decode[b].median();
    result["decode"].push_back(
        {{"batch", o.batches[b]},
         {"tokens_per_second", rate},
         {"spread", decode[b].spread()},
         {"share_of_read_rate", rate / double(o.batches[b]) * double(weight_bytes(*model.lm)) / memory.median()}});
  }
  result["prefill"] = {{"tokens", o.prompt}, {"tokens_per_second", prefill.median()}, {"spread", prefill.spread()}};
  return result;
}

void print(const Json& r) {
  const auto line = [](const std::string& name, double rate, double spread, const std::string& note) {
    console::out.format("  %-16s %10.1f tokens/s  ± %4.1f %%%s\n", name.c_str(), rate, 100 * spread, note.c_str());
  };
  const int threads = r["threads"];
  console::out.format("%d thread%s: reads %.1f GB/s ± %.1f %%\n", threads, threads == 1 ? "" : "s",
                      r["read_bytes_per_second"].get<double>() / 1e9, 100 * r["read_spread"].get<double>());
  for (const Json& d : r["decode"]) {
    char note[64] = "";
    if (d["batch"] == 1)
      std::snprintf(note, sizeof note, "  %.0f %% of the read rate", 100 * d["share_of_read_rate"].get<double>());
    line(concat("decode, batch ", d["batch"].get<int64_t>()), d["tokens_per_second"], d["spread"], note);
  }
  const Json& p = r["prefill"];
  line(concat("prefill of ", p["tokens"].get<int64_t>()), p["tokens_per_second"], p["spread"], "");
}

void run(Options o) {
  const StopSignals signals;
  if (o.rates) return bench_rates(o.device, o.rates_file);
  MMFREE_CHECK(UsageError, !o.model.empty(), "bench: no model given; try `mmfree bench --help`");
  const Model model = bench_model(o.model);
  if (!o.save.empty()) write_ternary_file(o.save, model, EmbeddingStore::int8);
  if (o.threads.empty()) {
    o.threads = {1};
    if (omp_get_max_threads() > 1) o.threads.push_back(omp_get_max_threads());
  }
  const double bytes = double(weight_bytes(*model.lm));
  Json all = {{"model", o.model}, {"parameters", model.config.parameter_count()}, {"matrix_bytes", bytes}};
  if (!o.json)
    console::out.format("%s: %.1f M parameters, matrices of %.1f MB\n", o.model.c_str(),
                        double(model.config.parameter_count()) / 1e6, bytes / 1e6);
  for (int threads : o.threads) {
    all["runs"].push_back(measure(o, model, threads));
    if (!o.json) print(all["runs"].back());
  }
  if (o.json) console::out.print(all.dump() + "\n");
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c =
      app.add_subcommand("bench", "Measure decoding and prefill on this processor, or a device's rates for dry runs");
  c->add_option("model", o->model, "model, or a YAML file: its model with random weights");
  c->add_flag(
      "--rates", o->rates,
      "instead measure what a training step's ops take on a device, which `mmfree train --dry-run` needs to tell "
      "the time; takes half a minute");
  c->add_option("--device", o->device, "of --rates: auto, cpu, cuda or cuda:N")->capture_default_str();
  c->add_option("--rates-file", o->rates_file, "where --rates keeps it; other devices' rates stay")
      ->capture_default_str();
  c->add_option("--threads", o->threads, "numbers of threads (default: 1, and all)")->check(CLI::Range(1, 1024));
  c->add_option("--batch", o->batches, "numbers of sequences that are decoded together")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  c->add_option("--prompt", o->prompt, "tokens of the prompt")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  c->add_option("--tokens", o->tokens, "tokens that are decoded")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  c->add_option("--repeat", o->repeat, "measurements; medians and the largest deviations are printed")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  c->add_option("--save", o->save, "also write the model as a ternary export");
  c->add_flag("--json", o->json, "one JSON object on one line");
  c->footer(
      "The read rate is that of the same number of threads over as many bytes as the matrices have: decoding one\n"
      "sequence reads each of them once per token, so it cannot be faster.\n"
      "Examples:\n"
      "  mmfree bench model.mmfree\n"
      "  mmfree bench configs/370m.yaml --threads 1 2 --json\n"
      "  mmfree bench --rates --device cuda");
  c->callback([o] { run(*o); });
}

}  // namespace mmfree
