#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <limits>
#include <memory>
#include <set>

#include "core/ranks/group.h"
#include "core/system/console.h"
#include "core/system/files.h"
#include "core/system/signals.h"
#include "data/paths.h"
#include "data/text/text_reader.h"
#include "train/commands/commands.h"
#include "train/commands/eval_report.h"
#include "train/commands/model_options.h"
#include "train/commands/text_options.h"
#include "train/inference/recall.h"
#include "train/run/progress.h"

namespace mmfree {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  ModelOptions model;
  std::vector<std::string> data, tasks;
  TextOptions text;
  std::string task_dir = "tasks", samples;
  int64_t seq_len = 0, limit = 0, batch = 0, task_limit = 0;
  uint64_t seed = 1;
  bool json = false;
};

/// Token shards if the names say so, else text for the model's own tokenizer. Warnings are for `tell`.
TokenSource open_source(const Options& o, const Model& model, std::unique_ptr<TokenShards>& shards,
                        const std::function<void(const std::string&)>& tell) {
  std::vector<std::string> suffixes = TextReader::suffixes();
  suffixes.push_back(".h5");
  const std::vector<std::string> files = FoundFiles(o.data, suffixes).files;
  const auto is_shard = [](const std::string& file) { return has_suffix(file, ".h5"); };
  const bool mixed =
      std::any_of(files.begin(), files.end(), is_shard) && !std::all_of(files.begin(), files.end(), is_shard);
  MMFREE_CHECK(UsageError, !mixed, "eval: give token shards or text, not both");
  if (is_shard(files.front())) {
    shards = std::make_unique<TokenShards>(files);
    MMFREE_CHECK(DataError, shards->vocab_size() <= model.config.vocab_size, files.front(), ": has ",
                 shards->vocab_size(), " token ids, the model only ", model.config.vocab_size);
    MMFREE_CHECK(DataError, !model.tokenizer || model.tokenizer->hash() == shards->info().tokenizer_hash, files.front(),
                 ": was prepared with another tokenizer than the model's");
    const Framing framing = shards->info().framing;
    if (framing != model.framing)
      tell(concat("warning: ", files.front(), ": documents are framed by ", name_of(framing),
                  ", those that the model was trained on by ", name_of(model.framing)));
    return TokenSource::shards(*shards);
  }
  TextOptions options = o.text;
  options.vocab_size = model.need_tokenizer().vocab_size();
  TextReader reader(o.data, options);
  tell(passed_over_text(reader.passed_over()));
  const auto next = [&](Document* document) { return reader.next(document); };
  const int64_t most = o.limit > 0 ? o.limit : std::numeric_limits<int64_t>::max();
  TokenSource source = source_of_texts(model.encoder(), next, most);
  if (const std::string skipped = skipped_text(reader.skipped()); !skipped.empty()) tell("skipped " + skipped);
  return source;
}

Evaluation evaluate_data(const Options& o, const Model& model, int64_t seq_len, Group& group) {
  std::unique_ptr<TokenShards> shards;
  const TokenSource source = open_source(o, model, shards, [&](const std::string& text) {
    if (!text.empty() && group.rank() == 0) console::err.print(text + "\n");
  });
  group.require_same("data", concat(source.tokens, " tokens"));
  ShareProgress progress("evaluating");
  const auto show = [&](int64_t done, int64_t total) {
    if (group.rank() == 0) progress.update(double(done) / double(total));
    return true;
  };
  return evaluate(*model.lm, source, {seq_len, o.limit, show, model.reset_state, o.batch, &group});
}

std::vector<Task> read_tasks(const Options& o, const Model& model) {
  const int64_t window = o.seq_len > 0 ? o.seq_len : model.seq_len;
  std::vector<Task> tasks;
  std::set<std::string> names;
  for (const std::string& name : o.tasks) {
    if (name == "recall") {
      RecallOptions recall{.seed = o.seed, .longest = window};
      if (o.task_limit > 0) recall.items = o.task_limit;
      for (Task& task : recall_tasks(model, recall)) tasks.push_back(std::move(task));
    } else {
      tasks.push_back(read_task(find_task(name, o.task_dir), model, window, o.task_limit));
    }
  }
  for (const Task& task : tasks)
    MMFREE_CHECK(UsageError, names.insert(task.name).second, "--tasks: two tasks are called ", quote(task.name));
  return tasks;
}

std::vector<Answers> answer_tasks(const Model& model, const std::vector<Task>& tasks, Group& group) {
  ShareProgress progress("answering");
  const auto show = [&](double share) {
    if (group.rank() == 0) progress.update(share);
  };
  return answer(*model.lm, tasks, {.on_progress = show, .group = &group});
}

void run_rank(const Options& o, Group& group) {
  MMFREE_CHECK(UsageError, !o.data.empty() || !o.tasks.empty(), "eval: give data, or --tasks");
  std::error_code ignored;
  MMFREE_CHECK(CreateError, o.samples.empty() || !std::filesystem::exists(o.samples, ignored), o.samples,
               ": exists already; choose another name for --log-samples");
  const StopSignals signals;
  const LeaveAtOnce nothing_to_clean_up;
  if (group.threads() > 0) omp_set_num_threads(group.threads());
  const Model model = load_model(o.model, group.local_rank());
  const int64_t seq_len = o.seq_len > 0 ? o.seq_len : model.seq_len;
  const std::vector<Task> tasks = read_tasks(o, model);
  Evaluation e;
  if (!o.data.empty()) e = evaluate_data(o, model, seq_len, group);
  const std::vector<Answers> answers = answer_tasks(model, tasks, group);
  if (group.rank() != 0) return;
  if (o.json) {
    Json j = {{"model", o.model.model}};
    if (!o.data.empty()) j.update(data_report(e, seq_len));
    for (size_t i = 0; i < tasks.size(); ++i) j["tasks"][tasks[i].name] = task_report(tasks[i], answers[i]);
    console::out.print(j.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  } else {
    console::out.format("%s (%s)\n", model.source.c_str(), model.kind.c_str());
    if (!o.data.empty()) print_data(e, seq_len);
    if (!tasks.empty()) print_tasks(tasks, answers);
  }
  if (o.samples.empty()) return;
  std::string samples;
  for (size_t i = 0; i < tasks.size(); ++i) samples += sample_lines(tasks[i], answers[i]);
  write_file(o.samples, samples);
}

void run(const Options& o) {
  const std::unique_ptr<Group> group = Group::join(detect_launch());
  group->run([&] { run_rank(o, *group); });
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("eval", "Loss and perplexity of a model on held-out data, accuracy on tasks");
  add_model_options(*c, o->model);
  c->add_option(
      "data", o->data,
      "token shards (.h5), or text (.txt, .jsonl, .json, also with .zst or .gz): files, folders, globs, - for "
      "standard input");
  add_text_options(*c, o->text);
  c->add_option("--seq-len", o->seq_len, "tokens per window (default: as trained)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 24));
  c->add_option("--limit", o->limit, "score exactly so many tokens of the data, or all if there are fewer")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 40));
  c->add_option("--batch-size", o->batch,
                "windows per forward pass, at most as many as are by default; no digit depends on it on the CPU")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 20));
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
