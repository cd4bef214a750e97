#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/gpu.h"
#include "core/op_watch.h"

namespace mmfree {

/// What whole steps did when: ops, and the parts of a step around them, on the device where they ran. On a GPU a traced
/// step runs kernel by kernel instead of as a recorded graph, with an event between them: the same bits, in more time.
/// Profilers that are at work see the same parts and ops as ranges of NVTX.
class StepTrace : public OpWatch {
 public:
  /// `where`: the device's name, for people.
  StepTrace(Device device, std::string where);
  ~StepTrace() override;
  StepTrace(const StepTrace&) = delete;

  /// Runs `work`, which computes `step` on this thread, waits for the device, and returns what `work` did. Nothing is
  /// kept of a step that would make the trace longer than kMostEvents.
  template <class Work>
  auto of(int64_t step, Work&& work) {
    begin(step);
    try {
      auto result = work();
      end();
      return result;
    } catch (...) {
      abandon();
      throw;
    }
  }
  /// The steps so far in Chrome's trace event format, which Perfetto (ui.perfetto.dev) and chrome://tracing open:
  /// complete events (ph X) with times in microseconds. An op has its operations or bytes in `args`.
  std::string json() const;
  size_t size() const { return events_.size(); }
  /// Writes json() to a file. Returns what is wrong with it, in one line: it was not written, or steps were left out.
  std::string write(const std::string& path) const;

  void starts(const char* op) override;
  void ran(const OpCall& call) override;
  void enters(const char* range) override;
  void leaves() override;

  static constexpr size_t kMostEvents = 1 << 18;

 private:
  struct Event {
    std::string name;
    double begin = 0, end = 0;  ///< indices of times until the step ends, then seconds
    double operations = 0, bytes = 0;
    bool is_op = false;
  };
  void begin(int64_t step);
  void end();
  void abandon();
  bool mine() const { return std::this_thread::get_id() == thread_; }
  double mark();
  void open(std::string name, bool is_op);
  void close();

  Device device_;
  std::string where_;
  std::optional<gpu::Timeline> marks_;  ///< of a GPU
  std::vector<double> times_;           ///< of the CPU: seconds since the first step began
  double marked_ = 0;                   ///< times taken in this step
  double first_ = -1, step_begin_ = 0;
  std::thread::id thread_;
  std::vector<Event> events_;
  std::vector<size_t> open_;
  size_t begun_ = 0;      ///< events before the step at work
  int64_t left_out_ = 0;  ///< steps
};

}  // namespace mmfree
