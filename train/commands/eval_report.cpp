#include "train/commands/eval_report.h"

#include <algorithm>
#include <cmath>

#include "core/system/console.h"

namespace mmfree {
using Json = nlohmann::ordered_json;
namespace {

Json json_of(const LossSum& sum) {
  return {{"tokens", sum.tokens},
          {"loss", sum.loss()},
          {"ppl", sum.perplexity()},
          {"bpb", sum.text_bytes ? Json(sum.bits_per_byte()) : Json(nullptr)}};
}

}  // namespace

Json data_report(const Evaluation& e, int64_t seq_len) {
  Json json = {{"seq_len", seq_len}};
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

namespace {

void print_row(const std::string& name, const LossSum& sum) {
  console::out.format("%-24s %12lld %10.4f %10.2f", name.c_str(), static_cast<long long>(sum.tokens), sum.loss(),
                      sum.perplexity());
  if (sum.text_bytes) console::out.format(" %10.4f", sum.bits_per_byte());
  console::out.format("\n");
}

}  // namespace

void print_data(const Evaluation& e, int64_t seq_len) {
  console::out.format("tokens      %lld scored in windows of %lld\n", static_cast<long long>(e.tokens),
                      static_cast<long long>(seq_len));
  console::out.format("loss        %.6f nats per token\nperplexity  %.4f per token\n", e.loss(), e.perplexity());
  if (e.text_bytes)
    console::out.format("bits/byte   %.6f over %lld bytes of text\n", e.bits_per_byte(),
                        static_cast<long long>(e.text_bytes));
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

std::string sample_lines(const Task& task, const Answers& answers) {
  std::string lines;
  for (size_t i = 0; i < answers.size(); ++i) {
    Json logprobs = Json::array(), greedy = Json::array();
    for (const Likelihood& choice : answers[i]) {
      logprobs.push_back(choice.logprob);
      greedy.push_back(choice.greedy);
    }
    Json line = {{"task", task.name}, {"item", i}, {"logprobs", logprobs}, {"greedy", greedy}};
    line["taken"] = taken(answers[i]);
    if (!task.items[i].characters.empty()) line["taken_norm"] = taken(answers[i], task.items[i].characters);
    line["gold"] = task.items[i].gold;
    lines += line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  return lines;
}

Json task_report(const Task& task, const Answers& answers) {
  Json j = {{"items", task.items.size()}};
  for (const Metric metric : task.metrics) {
    const Estimate e = estimate(metric, task, answers);
    j[name_of(metric)] = e.value;
    j[std::string(name_of(metric)) + "_stderr"] = std::isfinite(e.error) ? Json(e.error) : Json(nullptr);
  }
  return j;
}

void print_tasks(const std::vector<Task>& tasks, const std::vector<Answers>& answers) {
  console::out.format("%-20s %7s  %-11s  %10s    %s\n", "task", "items", "metric", "value", "standard error");
  for (size_t i = 0; i < tasks.size(); ++i)
    for (const Metric metric : tasks[i].metrics) {
      const Estimate e = estimate(metric, tasks[i], answers[i]);
      console::out.format("%-20s %7zu  %-11s  %10.4f  ± %.4f\n", tasks[i].name.c_str(), tasks[i].items.size(),
                          name_of(metric), e.value, e.error);
    }
}

}  // namespace mmfree
