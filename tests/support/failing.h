#pragma once
#include <cstring>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "tests/support/interpose.h"

namespace mmfree {

/// While it lives, the first `times` calls of one kind on the files whose path contains `path` fail with `error`.
class Failing : public interpose::Watch {
 public:
  Failing(interpose::Op op, std::string path, int error, int times)
      : op_(op), path_(std::move(path)), error_(error), times_(times) {
    interpose::set_watch(this);
  }
  ~Failing() override { interpose::set_watch(nullptr); }
  interpose::Verdict before(const interpose::Call& call) override {
    const std::lock_guard lock(mutex_);
    const bool is_mine = call.op == op_ && (call.path ? leads_to_it(call.path) : files_.count(call.fd) > 0);
    if (call.op == interpose::Op::close) files_.erase(call.fd);
    if (!is_mine || times_ == 0) return {};
    --times_, ++failed_;
    return {.error = error_};
  }
  void after(const interpose::Call& call, int64_t result) override {
    const std::lock_guard lock(mutex_);
    if (call.op == interpose::Op::open && result >= 0 && leads_to_it(call.path)) files_.insert(int(result));
  }
  int failed() const { return failed_; }

 private:
  bool leads_to_it(const char* path) const { return std::strstr(path, path_.c_str()) != nullptr; }

  const interpose::Op op_;
  const std::string path_;
  const int error_;
  int times_, failed_ = 0;
  std::set<int> files_;
  std::mutex mutex_;
};

/// Calls `act` as soon as this process writes `text` to a file.
class AtWrite : public interpose::Watch {
 public:
  AtWrite(std::string text, std::function<void()> act) : text_(std::move(text)), act_(std::move(act)) {
    interpose::set_watch(this);
  }
  ~AtWrite() override { interpose::set_watch(nullptr); }
  interpose::Verdict before(const interpose::Call& call) override {
    const std::lock_guard lock(mutex_);
    if (act_ && call.op == interpose::Op::write && memmem(call.bytes, call.size, text_.data(), text_.size()))
      std::exchange(act_, nullptr)();
    return {};
  }

 private:
  const std::string text_;
  std::function<void()> act_;
  std::mutex mutex_;
};

}  // namespace mmfree
