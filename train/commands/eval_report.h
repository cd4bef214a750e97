#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/inference/evaluate.h"
#include "train/inference/tasks.h"

/// What `mmfree eval` shows of its results.
namespace mmfree {

/// The totals, then the sums per source set under "sets" and by position in the window under "positions".
nlohmann::ordered_json data_report(const Evaluation& e, int64_t seq_len);
/// The same as tables on standard output.
void print_data(const Evaluation& e, int64_t seq_len);

/// Number of items, and each metric with its standard error.
nlohmann::ordered_json task_report(const Task& task, const Answers& answers);
void print_tasks(const std::vector<Task>& tasks, const std::vector<Answers>& answers);
/// What was answered to each item, one JSON object per line.
std::string sample_lines(const Task& task, const Answers& answers);

}  // namespace mmfree
