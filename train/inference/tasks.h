#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "train/inference/model.h"
#include "train/inference/score.h"

namespace mmfree {

/// One row of a task file: texts of which the likelihood of the second part is asked, one pair per choice. A single
/// pair asks whether the model would say the continuation itself.
struct Question {
  struct Pair {
    std::string context, continuation;
  };
  std::vector<Pair> choices;
  std::vector<int64_t> characters;  ///< of each choice, for acc_norm; empty: it is not defined
  int64_t gold = 0;                 ///< index of the right choice
};

/// Reads a row, and makes of it what lm-evaluation-harness 0.4 asks in the task of that name. The row's keys decide:
/// - query (or query_lmeval, which is preferred), choices, gold: each choice after the query and a space. The task
///   "piqa" asks its `goal`; "openbookqa" asks the question without "Question: " and "\nAnswer:".
/// - sentence with one "_", option1, option2, answer "1" or "2": what stands behind "_", after either option.
/// - context, continuation: the continuation after the context and a space.
/// `where` (file and line) starts every message. @throws DataError
Question parse_question(const std::string& line, const std::string& task, const std::string& where);

/// Context and continuation as tokens, split as lm-evaluation-harness does: spaces (Unicode's) at the end of the
/// context belong to the continuation, and the continuation is what the tokens of both together have beyond the number
/// of tokens of the context. `opening` comes first. Of more than window + 1 tokens the last ones are kept.
/// @throws DataError if no token is left for the context or the continuation
Request make_request(const Tokenizer& tokenizer, const std::vector<int32_t>& opening, const Question::Pair& pair,
                     int64_t window, const std::string& where);

/// What is reported of a task: means over its items.
enum class Metric {
  acc,          ///< the right choice has the largest log-likelihood; of a single choice as exact_match
  acc_norm,     ///< the same with log-likelihoods divided by the choice's number of characters
  exact_match,  ///< each token of the right choice is the most likely one of the whole vocabulary
  logprob,      ///< log-likelihood of the right choice
  perplexity,   ///< e^−logprob of the mean
};
const char* name_of(Metric metric);

struct TaskItem {
  std::vector<Request> choices;
  std::vector<int64_t> characters;
  int64_t gold = 0;
};

struct Task {
  std::string name;
  std::vector<Metric> metrics;
  std::vector<TaskItem> items;
};

struct TaskFile {
  std::string name, path;
};

/// The file of a task: `task` itself if it is a path (it holds a '/' or ends with .jsonl or .jsonl.zst), named by what
/// stands before .jsonl; else NAME, NAME_test or NAME_validation with one of these endings in `folder`.
/// @throws MissingError
TaskFile find_task(const std::string& task, const std::string& folder);

/// Reads the first `limit` items of a task (0: all).
/// @throws MissingError, IoError, DataError with the line of a row that is malformed or unlike the first
Task read_task(const TaskFile& file, const Model& model, int64_t window, int64_t limit);

/// A mean and its standard error; the error of a single item is NaN.
struct Estimate {
  double value = 0, error = 0;
};

/// The likelihoods of a task's choices, per item and choice.
using Answers = std::vector<std::vector<Likelihood>>;

/// The answers to each task. @throws what `likelihoods` throws
std::vector<Answers> answer(const LM& lm, const std::vector<Task>& tasks, const LikelihoodOptions& options = {});

/// The metric of a task from the answers to it. Standard errors are lm-evaluation-harness's:
/// sample deviation / √n; for perplexity, where it draws samples, perplexity · that of logprob (the delta method).
Estimate estimate(Metric metric, const Task& task, const Answers& answers);

/// The index of the choice with the largest log-likelihood, the first of several; `characters` divide it if given.
int64_t taken(const std::vector<Likelihood>& choices, const std::vector<int64_t>& characters = {});

}  // namespace mmfree
