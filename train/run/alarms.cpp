#include "train/run/alarms.h"

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "optim/schedule.h"
#include "train/run/progress.h"
#include "train/watch/growing_file.h"
#include "train/watch/metrics_line.h"

namespace mmfree {
namespace {

std::string figure(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

}  // namespace

Alarms::Alarms(const RunConfig& config, const std::vector<WatchedMatrix>& matrices) : config_(config) {
  for (const WatchedMatrix& m : matrices) states_[m.name].matrix = &m;
}

std::vector<std::string> Alarms::judge(const Metrics& line) {
  int64_t step = 0;
  for (const auto& [key, value] : line) {
    if (key == "step") step = std::get<int64_t>(value);
    if (const double* number = std::get_if<double>(&value)) note(key, *number);
  }
  return end_line(step);
}

void Alarms::replay(const std::string& metrics) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(metrics, ignored)) return;
  GrowingFile(metrics).read([&](std::string_view text) {
    if (text.find("\"ternary/") == text.npos) return;
    MetricsLine line(text);
    double value = 0, step = 0;
    for (std::string_view key; line.next(key, value);) key == "step" ? void(step = value) : note(key, value);
    end_line(int64_t(step));
  });
}

/// Takes ternary/M/STATISTIC and act/M/STATISTIC; M has no slash.
void Alarms::note(std::string_view key, double value) {
  const size_t first = key.find('/'), last = key.rfind('/');
  if (first == key.npos || first == last) return;
  const auto found = states_.find(key.substr(first + 1, last - first - 1));
  if (found == states_.end()) return;
  State& s = found->second;
  const std::string_view prefix = key.substr(0, first), what = key.substr(last + 1);
  if (prefix == "act" && what == "saturation") s.saturation = value;
  if (prefix != "ternary") return;
  if (what == "dead_rows") s.dead_rows = value;
  if (what == "scale") s.scale = value;
  if (what == "flips") s.flips = value;
  if (what == "grad_norm") s.grad_norm = value;
}

std::vector<std::string> Alarms::end_line(int64_t step) {
  std::vector<std::string> texts(kKinds);
  std::vector<int> more(kKinds, -1);  // matrices of which the same is true, besides the first
  for (auto& [name, s] : states_) {
    if (s.first_step < 0) {
      s.first_step = step, s.first_scale = s.scale;
      s.still_since = s.flips < 0 ? step : step - config_.train.telemetry_every;
    }
    count_still(s, step);
    for (const Kind kind : {dead, collapsed, still, saturated})
      if (rings(s, kind, step) && ++more[kind] == 0) texts[kind] = text(s, kind, step);
    s.dead_rows = s.saturation = s.grad_norm = 0, s.flips = -1;
  }
  std::vector<std::string> said;
  for (int kind = 0; kind < kKinds; ++kind)
    if (more[kind] >= 0)
      said.push_back(texts[kind] + (more[kind] > 0 ? concat(" (so it is with ", more[kind], " more)") : std::string()));
  return said;
}

void Alarms::count_still(State& s, int64_t step) const {
  const bool learns =
      learning_rate(config_.optim, step, config_.train.steps) > kMoving * config_.optim.lr && s.matrix->lr_factor > 0;
  if (s.flips > 0 || !learns)
    s.still_lines = 0, s.still_since = step;
  else if (s.flips == 0)
    ++s.still_lines;
}

/// Whether this is to be said now.
bool Alarms::rings(State& s, Kind kind, int64_t step) {
  bool bad = false, good = false;
  switch (kind) {
    case dead:
      bad = s.dead_rows > 0, good = s.dead_rows == 0 || s.dead_rows >= 2 * s.told_rows;
      break;
    case collapsed:
      bad = s.scale<kCollapsed * s.first_scale, good = s.scale> 2 * kCollapsed * s.first_scale;
      break;
    case still:
      bad = s.still_lines >= kStillLines && step - s.still_since >= kStillSteps, good = s.still_lines == 0;
      break;
    case saturated:
      bad = s.saturation > kSaturated && s.saturation * double(s.matrix->cols) > 4;
      good = s.saturation < kSaturated / 2;
      break;
  }
  if (good) s.told[kind] = false;
  if (!bad || s.told[kind]) return false;
  if (kind == dead) s.told_rows = s.dead_rows;
  return s.told[kind] = true;
}

std::string Alarms::text(const State& s, Kind kind, int64_t step) const {
  const WatchedMatrix& m = *s.matrix;
  switch (kind) {
    case dead:
      return concat(m.name, ": ", int64_t(s.dead_rows), " of ", m.rows,
                    " rows have only zeros as codes: these outputs are always 0, and the layer is narrower than it "
                    "looks; if they become more, lower optim.lr or optim.weight_decay");
    case collapsed:
      return concat(m.name, ": its scale fell from ", figure(s.first_scale), " in step ", s.first_step, " to ",
                    figure(s.scale),
                    ": weight decay shrinks the weights faster than they learn; lower "
                    "optim.weight_decay, for this matrix alone by optim.rules");
    case still:
      return concat(m.name, ": none of its codes changed in the last ", step - s.still_since,
                    " steps: it does not learn any more, its gradient norm is ", figure(s.grad_norm),
                    "; if the loss still falls slowly, raise optim.lr, for this matrix alone by optim.rules");
    case saturated:
      return concat(m.name, ": ", format_share(s.saturation),
                    " of the codes of its input are 127 or -127: most of what it sees has one size, and 8 bits tell "
                    "little of it; look at its act/.../rms, and lower optim.lr or optim.clip_grad if that grows");
  }
  return {};
}

}  // namespace mmfree
