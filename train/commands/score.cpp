#include "train/inference/score.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/system/console.h"
#include "core/system/signals.h"
#include "data/text/line_reader.h"
#include "train/commands/commands.h"
#include "train/commands/model_options.h"
#include "train/formats/strict_json.h"

namespace mmfree {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  ModelOptions model;
  std::string input;
  std::vector<std::string> texts;
  bool no_bos = false;
};

std::vector<int32_t> tokens_of(const Model& model, const std::string& text, bool no_bos) {
  return no_bos ? model.need_tokenizer().encode(text) : model.encoder().prompt(text);
}

std::string scores_line(const Model& model, const std::vector<int32_t>& tokens, const std::string& where) {
  MMFREE_CHECK(DataError, !tokens.empty(), where, ": nothing to score: the list of tokens is empty");
  for (int32_t id : tokens)
    MMFREE_CHECK(DataError, id >= 0 && id < model.config.vocab_size, where, ": token id ", id, " is outside 0..",
                 model.config.vocab_size - 1);
  const TokenScores s = score(*model.lm, tokens);
  Json logprobs = Json::array({nullptr}), greedy = Json::array({nullptr}), pieces = Json::array();
  double sum = 0;
  for (size_t i = 0; i < s.logprobs.size(); ++i) {
    logprobs.push_back(s.logprobs[i]);
    greedy.push_back(bool(s.greedy[i]));
    sum += s.logprobs[i];
  }
  Json line = {{"tokens", tokens}};
  if (model.tokenizer) {
    for (int32_t id : tokens)
      pieces.push_back(id < model.tokenizer->vocab_size() ? Json(model.tokenizer->piece(id)) : Json(nullptr));
    line["pieces"] = pieces;
  }
  line["logprobs"] = logprobs;
  line["greedy"] = greedy;
  line["sum_logprob"] = sum;
  line["scored"] = s.logprobs.size();
  return line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::vector<int32_t> token_list(const nlohmann::json& list, const std::string& where) {
  std::vector<int32_t> ids;
  for (const auto& id : list) {
    MMFREE_CHECK(DataError, id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() < (1 << 24), where,
                 ": token ids must be non-negative integers, got ", id.dump());
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

/// One input line: "a text", {"text": "…"}, [1, 2, 3] or {"tokens": [1, 2, 3]}.
std::string score_line(const Model& model, const std::string& line, const std::string& where, bool no_bos) {
  nlohmann::json j = parse_json(line, where);
  if (j.is_object() && j.contains("tokens")) j = nlohmann::json(j["tokens"]);
  if (j.is_object() && j.contains("text")) j = nlohmann::json(j["text"]);
  MMFREE_CHECK(DataError, j.is_string() || j.is_array(), where,
               ": expected a text, a list of token ids, or an object with \"text\" or \"tokens\"");
  return scores_line(model, j.is_array() ? token_list(j, where) : tokens_of(model, j.get<std::string>(), no_bos),
                     where);
}

/// A signal during `work` ends the process.
template <class Work>
auto at_once(Work&& work) {
  const LeaveAtOnce leaving;
  return work();
}

void run(const Options& o) {
  MMFREE_CHECK(UsageError, !o.texts.empty() || !o.input.empty(),
               "score: give --text, or --input FILE with one JSON value per line (- for standard input)");
  const StopSignals signals;
  const Model model = at_once([&] { return load_model(o.model); });
  // Signals end the process between lines only, so that each line is whole.
  const auto print = [](const std::string& line) {
    console::out.print(line);
    throw_if_stopped();
  };
  for (size_t i = 0; i < o.texts.size(); ++i)
    print(
        at_once([&] { return scores_line(model, tokens_of(model, o.texts[i], o.no_bos), concat("--text ", i + 1)); }));
  if (o.input.empty()) return;
  LineReader in = at_once([&] { return LineReader(o.input); });
  int64_t number = 0;
  for (std::string line; at_once([&] { return in.next(&line); });) {
    ++number;
    if (line.find_first_not_of(" \t\r") != std::string::npos)
      print(at_once([&] { return score_line(model, line, concat(o.input, ':', number), o.no_bos); }));
  }
}

}  // namespace

void add_score_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("score", "Log-probability of every token of given texts, as JSON lines");
  add_model_options(*c, o->model);
  c->add_option("-t,--text", o->texts, "a text to score; may be repeated");
  c->add_option("-i,--input", o->input, "file with one JSON value per line, - for standard input");
  c->add_flag("--no-bos", o->no_bos, "do not put what opens the model's documents (bos) before texts");
  c->footer(
      "Input lines: \"a text\", {\"text\": \"a text\"}, [1, 17, 4] or {\"tokens\": [1, 17, 4]}. Token lists are scored "
      "as given.\n"
      "Output lines: tokens, pieces, logprobs (natural logarithm; null for the first token), greedy, sum_logprob, "
      "scored.\n"
      "Examples:\n"
      "  mmfree score runs/quickstart --text 'It was a dark and stormy night'\n"
      "  echo '{\"tokens\": [1, 42, 7]}' | mmfree score model.mmfree --input -");
  c->callback([o] { run(*o); });
}

}  // namespace mmfree
