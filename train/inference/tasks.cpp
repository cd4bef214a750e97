#include "train/inference/tasks.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "data/text/line_reader.h"
#include "train/formats/strict_json.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

/// The characters that Python's str.strip takes away, in UTF-8: the harness strips with it.
constexpr std::string_view kSpaces[] = {" ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\x1C",   "\x1D",
                                        "\x1E",   "\x1F",   "\u0085", "\u00A0", "\u1680", "\u2000", "\u2001", "\u2002",
                                        "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200A",
                                        "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};

/// The object in one line of a task file.
class Row {
 public:
  Row(const std::string& line, const std::string& where) : row_(parse_json(line, where)), where_(where) {
    MMFREE_CHECK(DataError, row_.is_object(), where, ": expected a JSON object, one item of a task");
  }
  bool has(const char* key) const { return row_.contains(key); }
  std::string text(const char* key) const {
    const json& value = at(key);
    MMFREE_CHECK(DataError, value.is_string(), where_, ": key '", key, "' must be a text, got ", shown(value));
    return value.get<std::string>();
  }
  std::vector<std::string> texts(const char* key) const {
    const json& value = at(key);
    const bool good =
        value.is_array() && value.size() >= 2 && std::all_of(value.begin(), value.end(), [](const json& t) {
          return t.is_string() && !t.get_ref<const std::string&>().empty();
        });
    MMFREE_CHECK(DataError, good, where_, ": key '", key,
                 "' must be a list of two or more texts that are not empty, got ", shown(value));
    return value.get<std::vector<std::string>>();
  }
  int64_t index(const char* key, size_t size) const {
    const json& value = at(key);
    MMFREE_CHECK(DataError, value.is_number_unsigned() && value.get<uint64_t>() < size, where_, ": key '", key,
                 "' must be an integer in 0..", size - 1, ", got ", shown(value));
    return value.get<int64_t>();
  }

 private:
  static std::string shown(const json& value) { return quote(value.dump()); }
  const json& at(const char* key) const {
    MMFREE_CHECK(DataError, has(key), where_, ": key '", key, "' is missing");
    return row_[key];
  }
  json row_;
  std::string where_;
};

/// Unicode characters of a valid UTF-8 text.
int64_t characters_of(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

std::string_view without_spaces_behind(std::string_view text) {
  const auto last = [&text] { return std::ranges::find_if(kSpaces, [&](auto c) { return text.ends_with(c); }); };
  for (auto space = last(); space != std::end(kSpaces); space = last()) text.remove_suffix(space->size());
  return text;
}

std::string_view without_spaces_around(std::string_view text) {
  const auto first = [&text] { return std::ranges::find_if(kSpaces, [&](auto c) { return text.starts_with(c); }); };
  for (auto space = first(); space != std::end(kSpaces); space = first()) text.remove_prefix(space->size());
  return without_spaces_behind(text);
}

/// "piqa" for itself and for "piqa_validation".
bool is_task(const std::string& name, const std::string& task) { return name == task || name.starts_with(task + "_"); }

/// The context of the choices. The usual files of piqa and openbookqa hold other prompts than the harness has.
std::string query_of(const Row& row, const std::string& task) {
  const std::string before = "Question: ", behind = "\nAnswer:";
  if (is_task(task, "piqa")) return before + row.text("goal") + behind;
  std::string query = row.text(row.has("query_lmeval") ? "query_lmeval" : "query");
  if (is_task(task, "openbookqa") && query.starts_with(before) && query.ends_with(behind) &&
      query.size() >= before.size() + behind.size())
    return query.substr(before.size(), query.size() - before.size() - behind.size());
  return query;
}

Question choices_of(const Row& row, const std::string& task) {
  Question q;
  const std::string query = query_of(row, task);
  for (const std::string& choice : row.texts("choices")) {
    q.choices.push_back({query, " " + choice});
    q.characters.push_back(characters_of(choice));
  }
  q.gold = row.index("gold", q.choices.size());
  return q;
}

Question sentence_of(const Row& row, const std::string& where) {
  const std::string sentence = row.text("sentence"), answer = row.text("answer");
  const size_t gap = sentence.find('_');
  MMFREE_CHECK(DataError, gap != std::string::npos, where, ": key 'sentence' must hold a '_' for the option");
  MMFREE_CHECK(DataError, answer == "1" || answer == "2", where, ": key 'answer' must be \"1\" or \"2\", got ",
               quote(answer));
  const std::string rest = concat(' ', without_spaces_around(std::string_view(sentence).substr(gap + 1)));
  Question q;
  for (const char* option : {"option1", "option2"})
    q.choices.push_back({sentence.substr(0, gap) + row.text(option), rest});
  q.gold = answer == "2";
  return q;
}

std::vector<Metric> metrics_of(const Question& q) {
  if (q.choices.size() == 1) return {Metric::acc, Metric::perplexity};
  if (q.characters.empty()) return {Metric::acc};
  return {Metric::acc, Metric::acc_norm};
}

double value_of(Metric metric, const TaskItem& item, const std::vector<Likelihood>& choices) {
  const Likelihood& right = choices[size_t(item.gold)];
  switch (metric) {
    case Metric::acc:
      return choices.size() == 1 ? right.greedy : taken(choices) == item.gold;
    case Metric::acc_norm:
      return taken(choices, item.characters) == item.gold;
    case Metric::exact_match:
      return right.greedy;
    default:
      return right.logprob;
  }
}

}  // namespace

const char* name_of(Metric metric) {
  switch (metric) {
    case Metric::acc:
      return "acc";
    case Metric::acc_norm:
      return "acc_norm";
    case Metric::exact_match:
      return "exact_match";
    case Metric::logprob:
      return "logprob";
    default:
      return "perplexity";
  }
}

Question parse_question(const std::string& line, const std::string& task, const std::string& where) {
  const Row row(line, where);
  if (row.has("choices")) return choices_of(row, task);
  if (row.has("sentence")) return sentence_of(row, where);
  MMFREE_CHECK(DataError, row.has("context"), where,
               ": not an item of a task; expected the keys query, choices and gold, or sentence, option1, option2 and "
               "answer, or context and continuation");
  const std::string continuation = row.text("continuation");
  MMFREE_CHECK(DataError, !continuation.empty(), where, ": the continuation is empty");
  return {{{row.text("context"), " " + continuation}}, {}, 0};
}

Request make_request(const Tokenizer& tokenizer, const std::vector<int32_t>& opening, const Question::Pair& pair,
                     int64_t window, const std::string& where) {
  const std::string context(without_spaces_behind(pair.context));
  Request r;
  r.tokens = opening;
  const std::vector<int32_t> all = tokenizer.encode(pair.context + pair.continuation);
  r.tokens.insert(r.tokens.end(), all.begin(), all.end());
  r.scored = int64_t(all.size()) - int64_t(tokenizer.encode(context).size());
  MMFREE_CHECK(DataError, r.scored > 0, where, ": the continuation ", quote(pair.continuation),
               " has no token of its own");
  MMFREE_CHECK(DataError, r.scored < int64_t(r.tokens.size()), where,
               ": the context is empty, and the tokenizer has no bos to begin with");
  MMFREE_CHECK(DataError, r.scored <= window, where, ": the continuation has ", r.scored, " tokens, a window only ",
               window, "; give a larger --seq-len");
  const int64_t excess = int64_t(r.tokens.size()) - (window + 1);
  if (excess > 0) r.tokens.erase(r.tokens.begin(), r.tokens.begin() + excess);
  return r;
}

TaskFile find_task(const std::string& task, const std::string& folder) {
  if (task.find('/') != std::string::npos || task.ends_with(".jsonl") || task.ends_with(".jsonl.zst")) {
    const std::string file = fs::path(task).filename().string();
    return {file.substr(0, file.find(".jsonl")), task};
  }
  for (const char* part : {"", "_test", "_validation"})
    for (const char* ending : {".jsonl", ".jsonl.zst"})
      if (const fs::path path = fs::path(folder) / (task + part + ending); fs::exists(path))
        return {task, path.string()};
  throw MissingError(concat("task ", quote(task), ": folder ", quote(folder), " holds no ", task,
                            "[_test|_validation].jsonl[.zst]; name the folder with --task-dir, or give a path"));
}

Task read_task(const TaskFile& file, const Model& model, int64_t window, int64_t limit) {
  const Tokenizer& tokenizer = model.need_tokenizer();
  const std::vector<int32_t> before = model.encoder().opening();
  Task task{file.name, {}, {}};
  LineReader lines(file.path);
  int64_t number = 0;
  for (std::string line; (limit == 0 || int64_t(task.items.size()) < limit) && lines.next(&line);) {
    const std::string where = concat(file.path, ':', ++number);
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const Question q = parse_question(line, task.name, where);
    if (task.items.empty()) task.metrics = metrics_of(q);
    MMFREE_CHECK(DataError, metrics_of(q) == task.metrics, where, ": has other keys than the first item of the task");
    TaskItem item{{}, q.characters, q.gold};
    for (const Question::Pair& pair : q.choices)
      item.choices.push_back(make_request(tokenizer, before, pair, window, where));
    task.items.push_back(std::move(item));
  }
  MMFREE_CHECK(DataError, !task.items.empty(), file.path, ": holds no item of a task");
  return task;
}

int64_t taken(const std::vector<Likelihood>& choices, const std::vector<int64_t>& characters) {
  const auto rank = [&](size_t i) { return choices[i].logprob / (characters.empty() ? 1 : double(characters[i])); };
  size_t best = 0;
  for (size_t i = 1; i < choices.size(); ++i)
    if (rank(i) > rank(best)) best = i;
  return int64_t(best);
}

Estimate estimate(Metric metric, const Task& task, const Answers& answers) {
  const double n = double(task.items.size());
  double sum = 0, squares = 0;
  for (size_t i = 0; i < task.items.size(); ++i) sum += value_of(metric, task.items[i], answers[i]);
  const double mean = sum / n;
  for (size_t i = 0; i < task.items.size(); ++i)
    squares += std::pow(value_of(metric, task.items[i], answers[i]) - mean, 2);
  const double error = n > 1 ? std::sqrt(squares / (n - 1) / n) : std::nan("");
  if (metric != Metric::perplexity) return {mean, error};
  return {std::exp(-mean), std::exp(-mean) * error};
}

std::vector<Answers> answer(const LM& lm, const std::vector<Task>& tasks, const LikelihoodOptions& options) {
  std::vector<Request> requests;
  for (const Task& task : tasks)
    for (const TaskItem& item : task.items) requests.insert(requests.end(), item.choices.begin(), item.choices.end());
  const std::vector<Likelihood> results = likelihoods(lm, requests, options);
  auto next = results.begin();
  std::vector<Answers> answers;
  for (const Task& task : tasks) {
    answers.emplace_back();
    for (const TaskItem& item : task.items) {
      answers.back().emplace_back(next, next + int64_t(item.choices.size()));
      next += int64_t(item.choices.size());
    }
  }
  return answers;
}

}  // namespace mmfree
