#include "train/run/loop_state.h"

#include <cmath>

#include "core/error.h"
#include "train/formats/strict_json.h"

namespace mmfree {
namespace {

constexpr int64_t kMostCounted = int64_t(1) << 60;

/// Calls visit(key, value, least) for each number.
template <class State, class Visit>
void numbers(State& s, Visit&& visit) {
  visit("norm_mean", s.norms.mean, 0.0);
  visit("norms", s.norms.count, int64_t(0));
  visit("evaluated", s.evaluations.step, int64_t(-1));
  visit("least_loss", s.evaluations.least, 0.0);
  visit("without_gain", s.evaluations.without_gain, int64_t(0));
  visit("best_step", s.evaluations.best_step, int64_t(-1));
  visit("best_loss", s.evaluations.best_loss, 0.0);
  visit("rollbacks", s.rollbacks, int64_t(0));
  visit("left_out", s.left_out, int64_t(0));
}

/// Infinities are null.
void read(const nlohmann::json& from, const std::string& where, double least, double& to) {
  MMFREE_CHECK(DataError, from.is_null() || from.is_number(), where, "expected a number or null");
  const double value = from.is_null() ? EvaluationHistory::kNone : from.get<double>();
  MMFREE_CHECK(DataError, value >= least, where, "is ", value, ", expected ", least, " or more");
  to = value;
}

void read(const nlohmann::json& from, const std::string& where, int64_t least, int64_t& to) {
  const bool fits = from.is_number_unsigned() ? from.get<uint64_t>() <= uint64_t(kMostCounted)
                                              : from.is_number_integer() && from.get<int64_t>() >= least;
  MMFREE_CHECK(DataError, fits, where, "expected a whole number from ", least, " to ", kMostCounted);
  to = from.get<int64_t>();
}

}  // namespace

std::string to_json(const LoopState& state) {
  nlohmann::ordered_json json;
  numbers(state, [&](const char* key, const auto& value, auto) { json[key] = value; });
  return json.dump();
}

void read_json(const std::string& text, const std::string& path, LoopState& state) {
  const nlohmann::json json = parse_json(text, path);
  MMFREE_CHECK(DataError, json.is_object(), path, ": the attribute 'loop' is no JSON object");
  numbers(state, [&](const char* key, auto& value, auto least) {
    if (json.contains(key)) read(json[key], concat(path, ": '", key, "' of the attribute 'loop': "), least, value);
  });
  MMFREE_CHECK(DataError, std::isfinite(state.norms.mean), path, ": 'norm_mean' of the attribute 'loop' is null");
}

}  // namespace mmfree
