#pragma once
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "core/gpu.h"
#include "core/op_work.h"
#include "core/ranks/group.h"

namespace mmfree {

/// What the ops and exchanges of a step's update take on a GPU, one after the other: watched steps run kernel by kernel
/// on one stream.
class UpdateProfile : public OpWatch {
 public:
  explicit UpdateProfile(const Group& group) : group_(group) {}
  ~UpdateProfile() override { op_watch = nullptr; }

  void enters(const char* range) override {
    ranges_.emplace_back(range);
    if (ranges_.back() == "update") inside_ = true;
    if (is_exchange()) begin(), sent_ = group_.traffic().bytes;
  }
  void leaves() override {
    if (is_exchange()) end(ranges_.back(), double(group_.traffic().bytes - sent_));
    if (ranges_.back() == "update") inside_ = false;
    ranges_.pop_back();
  }
  void starts(const char*) override {
    if (inside_) begin();
  }
  void ran(const OpCall& call) override {
    if (inside_) end(call.op, work_of(call).bytes);
  }

  /// A table of `steps` steps; takes the device's time.
  void print(int steps) {
    const std::vector<double> times = marks_.take();
    std::map<std::string, Row> rows;
    for (size_t i = 0; i < names_.size(); ++i) {
      Row& row = rows[names_[i]];
      row.seconds += times[2 * i + 1] - times[2 * i], row.bytes += bytes_[i], ++row.calls;
    }
    std::printf("| part of an update | calls | MB | GB/s | ms |\n| --- | --- | --- | --- | --- |\n");
    for (const auto& [name, row] : rows)
      std::printf("| %s | %d | %.1f | %.0f | %.3f |\n", name.c_str(), row.calls / steps, row.bytes * 1e-6 / steps,
                  row.bytes * 1e-9 / row.seconds, row.seconds * 1e3 / steps);
  }

 private:
  struct Row {
    double seconds = 0, bytes = 0;
    int calls = 0;
  };
  bool is_exchange() const {
    return inside_ && (ranges_.back().rfind("send", 0) == 0 || ranges_.back().rfind("gather", 0) == 0);
  }
  void begin() { marks_.mark(); }
  void end(const std::string& name, double bytes) {
    marks_.mark();
    names_.push_back(name);
    bytes_.push_back(bytes);
  }

  const Group& group_;
  gpu::Timeline marks_;
  std::vector<std::string> ranges_, names_;
  std::vector<double> bytes_;
  bool inside_ = false;
  uint64_t sent_ = 0;
};

}  // namespace mmfree
