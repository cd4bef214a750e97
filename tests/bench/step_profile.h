#pragma once
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "core/op_work.h"
#include "core/ops/matmul.h"
#include "core/ops/ternary.h"
#include "core/parallel.h"

namespace mmfree {

/// Rates of this machine with the threads in use: products of each kind in operations a second, and a copy in bytes a
/// second, read and written.
struct MachineRates {
  double f32 = 0, bf16 = 0, int8 = 0, copy = 0;

  /// Seconds that work takes at these rates.
  double seconds(const OpWork& work) const {
    if (work.kind == OpWork::passes) return work.bytes / copy;
    return work.operations / (work.kind == OpWork::f32 ? f32 : work.kind == OpWork::bf16 ? bf16 : int8);
  }
};

namespace step_profile {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Calls a second: the best of some rounds that fill 0.3 s.
template <class Body>
double best_rate(Body&& body) {
  body();
  double best = 1e30;
  for (double spent = 0; spent < 0.3;) {
    const double begin = now();
    body();
    const double seconds = now() - begin;
    best = std::min(best, seconds), spent += seconds;
  }
  return 1 / best;
}

}  // namespace step_profile

/// Measures products of [2048, 1024] and [1024, 2816], and a copy of 128 MiB.
inline MachineRates measure_rates(bool with_bf16) {
  using step_profile::best_rate;
  const int64_t n = 2048, k = 1024, o = 2816, bytes = int64_t(128) << 20;
  std::mt19937 random(1);
  Tensor x({n, k}, DType::f32), w({o, k}, DType::f32), dense({k, o}, DType::f32), y({n, o}, DType::f32);
  Tensor q({n, k}, DType::i8), step({n}, DType::f32), from({bytes}, DType::u8), to({bytes}, DType::u8);
  for (Tensor* t : {&x, &w, &dense, &step})
    for (int64_t i = 0; i < t->size(); ++i) t->mut<float>()[i] = float(int(random() % 255) - 127) / 127;
  for (int64_t i = 0; i < q.size(); ++i) q.mut<int8_t>()[i] = int8_t(int(random() % 255) - 127);
  from.fill_zero(), to.fill_zero();
  TernaryTensor ternary = make_ternary(o, k, DType::f32);
  ternary_quantise(w, ternary);
  const double operations = 2.0 * double(n) * double(k) * double(o);
  MachineRates rates;
  rates.f32 = operations * best_rate([&] { matmul(x, false, dense, false, y); });
  if (with_bf16)
    rates.bf16 = operations * best_rate([&] { matmul(x, false, dense, false, y, 1, 0, Tensor(), Products::bf16); });
  rates.int8 = operations * best_rate([&] { ternary_linear(q, step, ternary, y); });
  const char* source = from.raw();
  char* target = to.raw_mut();
  rates.copy = 2.0 * double(bytes) * best_rate([&] {
                 parallel_for(bytes, int64_t(1) << 20, [=](int64_t begin, int64_t end) {
                   std::memcpy(target + begin, source + begin, size_t(end - begin));
                 });
               });
  return rates;
}

/// Where steps spend their time, op by op.
class StepProfile : public OpWatch {
 public:
  explicit StepProfile(int64_t vocabulary) : vocabulary_(vocabulary) {}
  ~StepProfile() override { op_watch = nullptr; }

  void start() { op_watch = this; }
  void ran(const OpCall& call) override {
    const OpWork work = work_of(call);
    Row& row = rows_[std::string(call.op) + (work.side == vocabulary_ ? ", head" : "")];
    row.kind = work.kind, row.operations += work.operations, row.bytes += work.bytes;
    row.seconds += call.seconds, ++row.calls;
  }

  /// A table of `steps` steps that took `seconds` together. Returns the seconds of a step at `rates`, which every op's
  /// work needs at least.
  double print(int64_t steps, double seconds, const MachineRates& rates) const {
    std::vector<std::pair<std::string, Row>> rows(rows_.begin(), rows_.end());
    std::sort(rows.begin(), rows.end(),
              [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
    double floor = 0, ops = 0;
    for (const auto& [name, row] : rows) floor += rates.seconds(row), ops += row.seconds;
    std::printf("rates: f32 products %.0f Gop/s, int8 %.0f, copy %.1f GB/s (read and written)\n", rates.f32 * 1e-9,
                rates.int8 * 1e-9, rates.copy * 1e-9);
    std::printf(
        "| op | calls | ms a step | share | Gop/s or GB/s | of its floor |\n| --- | --- | --- | --- | --- | --- |\n");
    for (const auto& [name, row] : rows) {
      const bool product = row.kind != OpWork::passes;
      char rate[32] = "";
      if (product || row.bytes > 0)
        std::snprintf(rate, sizeof rate, "%.1f %s", (product ? row.operations : row.bytes) * 1e-9 / row.seconds,
                      product ? "Gop/s" : "GB/s");
      std::printf("| %s | %lld | %.2f | %.1f %% | %s | %.2f |\n", name.c_str(),
                  static_cast<long long>(row.calls / steps), row.seconds * 1e3 / double(steps),
                  100 * row.seconds / seconds, rate, rates.seconds(row) / row.seconds);
    }
    std::printf("| outside ops | | %.2f | %.1f %% | | |\n", (seconds - ops) * 1e3 / double(steps),
                100 * (1 - ops / seconds));
    return floor / double(steps);
  }

 private:
  struct Row : OpWork {
    double seconds = 0;
    int64_t calls = 0;
  };
  int64_t vocabulary_;
  std::map<std::string, Row> rows_;
};

}  // namespace mmfree
