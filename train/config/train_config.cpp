#include "train/config/train_config.h"

#include <algorithm>

namespace mmfree {

std::string name_of(const ResumeFrom& resume) {
  switch (resume.mode) {
    case ResumeFrom::nothing:
      return "false";
    case ResumeFrom::newest:
      return "true";
    case ResumeFrom::newest_if_any:
      return "auto";
    case ResumeFrom::checkpoint:
      break;
  }
  return resume.path;
}

ResumeFrom parse_resume(const std::string& text) {
  for (const auto mode : {ResumeFrom::nothing, ResumeFrom::newest, ResumeFrom::newest_if_any})
    if (text == name_of(ResumeFrom{mode})) return {mode};
  return {ResumeFrom::checkpoint, text};
}

std::string name_of(const StepRange& range) {
  const std::string first = std::to_string(range.first);
  return range.first == range.last ? first : first + ".." + std::to_string(range.last);
}

bool TrainConfig::traces(int64_t step) const {
  return std::any_of(trace_steps.begin(), trace_steps.end(),
                     [&](const StepRange& r) { return step >= r.first && step <= r.last; });
}

const char* name_of(OnSaveError choice) { return choice == OnSaveError::stop ? "stop" : "continue"; }

const char* name_of(Shard shard) {
  return shard == Shard::none ? "none" : shard == Shard::optimizer ? "optimizer" : "gradients";
}

const char* name_of(const std::optional<Recompute>& recompute) { return recompute ? name_of(*recompute) : "auto"; }
const char* name_of(const std::optional<Products>& products) { return products ? name_of(*products) : "auto"; }

}  // namespace mmfree
