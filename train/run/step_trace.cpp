#include "train/run/step_trace.h"

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/op_work.h"
#include "core/system/files.h"

namespace mmfree {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Microseconds, in whole nanoseconds: events that touch stay so.
double microseconds(double seconds) { return std::round(seconds * 1e9) / 1e3; }

}  // namespace

StepTrace::StepTrace(Device device, std::string where) : device_(device), where_(std::move(where)) {
  if (device == Device::cuda) marks_.emplace();
}

StepTrace::~StepTrace() {
  if (op_watch == this) op_watch = nullptr;
}

void StepTrace::begin(int64_t step) {
  thread_ = std::this_thread::get_id();
  begun_ = events_.size();
  marked_ = 0;
  times_.clear();
  step_begin_ = now();
  if (first_ < 0) first_ = step_begin_;
  open(concat("step ", step), false);
  op_watch = this;
}

void StepTrace::end() {
  op_watch = nullptr;
  while (!open_.empty()) close();
  if (marks_) {
    times_ = marks_->take();
    for (double& t : times_) t += step_begin_;
  }
  if (events_.size() > kMostEvents) events_.resize(begun_), ++left_out_;
  for (size_t i = begun_; i < events_.size(); ++i) {
    Event& e = events_[i];
    e.begin = times_[size_t(e.begin)] - first_, e.end = times_[size_t(e.end)] - first_;
  }
}

/// Forgets the step at work.
void StepTrace::abandon() {
  op_watch = nullptr;
  for (size_t i = 0; marks_ && i < open_.size(); ++i) gpu::end_range();
  open_.clear();
  events_.resize(begun_);
}

/// Takes the time; its index.
double StepTrace::mark() {
  if (marks_)
    marks_->mark();
  else
    times_.push_back(now());
  return marked_++;
}

void StepTrace::open(std::string name, bool is_op) {
  if (marks_) gpu::begin_range(name.c_str());
  open_.push_back(events_.size());
  events_.push_back({std::move(name), mark(), 0, 0, 0, is_op});
}

void StepTrace::close() {
  events_[open_.back()].end = mark();
  open_.pop_back();
  if (marks_) gpu::end_range();
}

void StepTrace::starts(const char* op) {
  if (mine()) open(op, true);
}

void StepTrace::ran(const OpCall& call) {
  if (!mine()) return;
  const OpWork work = work_of(call);
  Event& event = events_[open_.back()];
  event.name = name_of(call, work), event.operations = work.operations, event.bytes = work.bytes;
  close();
}

void StepTrace::enters(const char* range) {
  if (mine()) open(range, false);
}

void StepTrace::leaves() {
  if (mine()) close();
}

std::string StepTrace::write(const std::string& path) const try {
  write_file(path, json());
  return left_out_
             ? concat(path, ": ", left_out_, " traced steps are left out, because the trace would have more than ",
                      kMostEvents, " events; trace fewer steps, or with fewer micro-batches")
             : "";
} catch (const Error& e) {
  return concat("the trace of steps could not be written: ", e.what());
}

std::string StepTrace::json() const {
  using Json = nlohmann::ordered_json;
  std::string text = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  const Json process = {
      {"name", "process_name"}, {"ph", "M"}, {"pid", 1}, {"tid", 1}, {"args", {{"name", "mmfree on " + where_}}}};
  text += process.dump();
  for (const Event& e : events_) {
    const double begin = microseconds(e.begin);
    Json event = {{"name", e.name},
                  {"cat", e.is_op ? "op" : "part"},
                  {"ph", "X"},
                  {"ts", begin},
                  {"dur", std::round((microseconds(e.end) - begin) * 1e3) / 1e3},
                  {"pid", 1},
                  {"tid", 1}};
    if (e.operations > 0) event["args"] = {{"operations", e.operations}};
    if (e.bytes > 0) event["args"] = {{"bytes", e.bytes}};
    text += ",\n" + event.dump();
  }
  return text + "\n]}\n";
}

}  // namespace mmfree
