#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/system/files.h"
#include "data/data_config.h"
#include "data/paths.h"
#include "data/text/text_reader.h"
#include "train/commands/commands.h"
#include "train/commands/model_options.h"
#include "train/inference/evaluate.h"
#include "train/inference/recall.h"
#include "train/run/progress.h"
#include "train/run/signals.h"

namespace mmfree {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  ModelOptions model;
  std::vector<std::string> data, tasks;
  std::string task_dir = "tasks", samples;
  int64_t seq_len = 0, limit = 0, task_limit = 0;
  uint64_t seed = 1;
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

Evaluation evaluate_data(const Options& o, const Model& model, int64_t seq_len) {
  std::unique_ptr<TokenShards> shards;
  const TokenSource source = open_source(o, model, shards);
  ShareProgress progress("evaluating");
  const auto show = [&](int64_t done, int64_t total) {
    progress.update(double(done) / double(total));
    return true;
  };
  return evaluate(*model.lm, source, {seq_len, o.limit, show});
}

std::vector<Task> read_tasks(const Options& o, const Model& model) {
  const int64_t window = o.seq_len > 0 ? o.seq_len : std::min(model.config.max_position_embeddings, kMaxSeqLen);
  std::vector<Task> tasks;
  for (const std::string& name : o.tasks) {
    if (name == "recall") {
      RecallOptions recall{.seed = o.seed, .longest = window};
      if (o.task_limit > 0) recall.items = o.task_limit;
      for (Task& task : recall_tasks(model, recall)) tasks.push_back(std::move(task));
    } else {
      tasks.push_back(read_task(find_task(name, o.task_dir), model, window, o.task_limit));
    }
  }
  return tasks;
}

std::vector<Answers> answer_tasks(const Model& model, const std::vector<Task>& tasks) {
  ShareProgress progress("answering");
  return answer(*model.lm, tasks, {.on_progress = [&](double share) { progress.update(share); }});
}

/// What was answered to each item, one JSON object per line.
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
    lines += line.dump() + "\n";
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

void print_data(const Evaluation& e, int64_t seq_len) {
  std::printf("tokens      %lld scored in windows of %lld\n", static_cast<long long>(e.tokens),
              static_cast<long long>(seq_len));
  std::printf("loss        %.6f nats per token\nperplexity  %.4f per token\n", e.loss(), e.perplexity());
  if (e.text_bytes)
    std::printf("bits/byte   %.6f over %lld bytes of text\n", e.bits_per_byte(), static_cast<long long>(e.text_bytes));
}

void print_tasks(const std::vector<Task>& tasks, const std::vector<Answers>& answers) {
  std::printf("%-20s %7s  %-11s  %10s    %s\n", "task", "items", "metric", "value", "standard error");
  for (size_t i = 0; i < tasks.size(); ++i)
    for (const Metric metric : tasks[i].metrics) {
      const Estimate e = estimate(metric, tasks[i], answers[i]);
      std::printf("%-20s %7zu  %-11s  %10.4f  ± %.4f\n", tasks[i].name.c_str(), tasks[i].items.size(), name_of(metric),
                  e.value, e.error);
    }
}

void run(const Options& o) {
  MMFREE_CHECK(UsageError, !o.data.empty() || !o.tasks.empty(), "eval: give data, or --tasks");
  const StopSignals signals;
  const LeaveAtOnce nothing_to_clean_up;
  const Model model = load_model(o.model);
  const int64_t seq_len = o.seq_len > 0 ? o.seq_len : model.seq_len;
  const std::vector<Task> tasks = read_tasks(o, model);
  Evaluation e;
  if (!o.data.empty()) e = evaluate_data(o, model, seq_len);
  const std::vector<Answers> answers = answer_tasks(model, tasks);
  if (o.json) {
    Json j = {{"model", o.model.model}};
    if (!o.data.empty()) {
      j.update({{"tokens", e.tokens}, {"seq_len", seq_len}, {"loss", e.loss()}, {"ppl", e.perplexity()}});
      j["bpb"] = e.text_bytes ? Json(e.bits_per_byte()) : Json(nullptr);
    }
    for (size_t i = 0; i < tasks.size(); ++i) j["tasks"][tasks[i].name] = task_report(tasks[i], answers[i]);
    std::printf("%s\n", j.dump().c_str());
  } else {
    std::printf("%s (%s)\n", model.source.c_str(), model.kind.c_str());
    if (!o.data.empty()) print_data(e, seq_len);
    if (!tasks.empty()) print_tasks(tasks, answers);
  }
  if (o.samples.empty()) return;
  std::string samples;
  for (size_t i = 0; i < tasks.size(); ++i) samples += sample_lines(tasks[i], answers[i]);
  write_file(o.samples, samples);
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("eval", "Loss and perplexity of a model on held-out data, accuracy on tasks");
  add_model_options(*c, o->model);
  c->add_option("data", o->data, "token shards (.h5), or text (.txt, .jsonl, .jsonl.zst): files, folders, globs");
  c->add_option("--seq-len", o->seq_len, "tokens per window (default: as trained; of tasks: max_position_embeddings)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 24));
  c->add_option("--limit", o->limit, "score at most so many tokens of the data")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 40));
  c->add_option("--tasks", o->tasks, "names of tasks or paths of task files, separated by commas; recall needs no file")
      ->delimiter(',')
      ->allow_extra_args(false);
  c->add_option("--task-dir", o->task_dir, "folder of the task files")->envname("MMFREE_TASKS")->capture_default_str();
  c->add_option("--task-limit", o->task_limit, "only so many items per task (recall: per distance, 100 by default)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 40));
  c->add_option("--log-samples", o->samples, "file for the log-likelihoods of every item, as JSON lines");
  c->add_option("--seed", o->seed, "of recall's items")->capture_default_str();
  c->add_flag("--json", o->json, "one JSON object on stdout");
  c->footer(
      "Each token of the data but the first is scored once; windows do not overlap and each starts from the empty "
      "state.\n"
      "Bits per byte counts text only: special tokens are left out.\n"
      "Tasks are zero-shot, with the prompts and metrics of lm-evaluation-harness. NAME is read from NAME.jsonl,\n"
      "NAME_test.jsonl or NAME_validation.jsonl, which may be compressed (.zst). Each line is an item of one of the "
      "forms\n"
      "  {\"query\": \"…\", \"choices\": [\"…\", \"…\"], \"gold\": 0}\n"
      "  {\"sentence\": \"… _ …\", \"option1\": \"…\", \"option2\": \"…\", \"answer\": \"1\"}\n"
      "  {\"context\": \"…\", \"continuation\": \"…\"}\n"
      "acc_norm divides a choice's log-likelihood by its characters. recall asks, at growing distances, for the value "
      "of\n"
      "a key among random pairs of tokens (chance: 1/4).\n"
      "Examples:\n"
      "  mmfree eval runs/quickstart shards/valid-*.h5\n"
      "  mmfree eval model.mmfree wikitext2_test.txt --seq-len 1024 --json\n"
      "  mmfree eval model.mmfree --tasks arc_easy,hellaswag,recall --task-dir zeroshot\n"
      "  mmfree eval model.mmfree --tasks my/questions.jsonl --log-samples answers.jsonl");
  c->callback([o] { run(*o); });
}

}  // namespace mmfree
