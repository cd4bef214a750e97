#include <algorithm>
#include <chrono>
#include <ctime>
#include <random>

#include "core/gpu.h"
#include "core/system/signals.h"
#include "layers/parameters.h"
#include "train/run/op_rates.h"
#include "train/run/recompute.h"
#include "train/run/step.h"

namespace mmfree {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// The value a quarter from the least: what something takes that others disturb now and then.
double lower_quartile(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 4];
}

/// Takes the time of each op that it sees. On a GPU an op lasts from the end of what was launched before it.
class Sampler : public OpWatch {
 public:
  explicit Sampler(Device device) {
    if (device == Device::cuda) marks_.emplace();
    op_watch = this;
  }
  ~Sampler() override { op_watch = nullptr; }
  void starts(const char*) override {
    if (marks_) marks_->mark();
  }
  void ran(const OpCall& call) override {
    const OpWork work = work_of(call);
    seen_.push_back({name_of(call, work), {work.amount(), work.inner, work.kind}, call.seconds});
    if (marks_) marks_->mark();
  }
  /// After each step: adds its ops to `all` and returns their seconds.
  double end_step(std::map<std::string, std::map<OpCount, std::vector<double>>>& all) {
    double sum = 0;
    const std::vector<double> times = marks_ ? marks_->take() : std::vector<double>();
    for (size_t i = 0; i < seen_.size(); ++i) {
      const double seconds = marks_ ? times[2 * i + 1] - times[2 * i] : seen_[i].seconds;
      all[seen_[i].name][seen_[i].size].push_back(seconds);
      sum += seconds;
    }
    seen_.clear();
    return sum;
  }

 private:
  struct Seen {
    std::string name;
    OpCount size;
    double seconds;
  };
  std::vector<Seen> seen_;
  std::optional<gpu::Timeline> marks_;
};

struct Measured {
  double step = 0, ops = 0;  ///< seconds of a step as training makes it, and of a watched step's ops
};

Measured run(const Study& study, const RunConfig& c, const ComputeTarget& target, OpRates& rates) {
  ParamStore params(parameter_specs(c.model), DType::f32, target.device);
  params.initialise(1);
  LM lm(params, c.model, target.compute, backward_products(target, c.train.backward));
  const auto optimizer = make_optimizer(params, c.optim);
  lm.requantise();
  StepRunner runner(lm, params, *optimizer, c, recompute_of(c, target.device));
  std::mt19937 random(1);
  for (Tensor* tokens : {&runner.ids(), &runner.targets()}) {
    Tensor host(tokens->shape(), DType::i32);
    for (int64_t i = 0; i < host.size(); ++i) host.mut<int32_t>()[i] = int32_t(random() % uint64_t(study.vocabulary));
    tokens->copy_from(host);
  }
  const bool gpu = target.device == Device::cuda;
  int64_t made = 0;
  const auto step = [&] {
    throw_if_stopped();
    if (gpu) gpu::synchronize();
    const auto begin = Clock::now();
    runner.launch(made++, runner.ids().size());
    if (gpu) gpu::synchronize();
    const double seconds = since(begin);
    runner.collect();
    return seconds;
  };
  for (int s = 0; s < study.warm; ++s) step();
  std::vector<double> recorded, steps, sums;
  for (int s = 0; gpu && s < study.steps; ++s) recorded.push_back(step());
  Sampler sampler(target.device);
  std::map<std::string, std::map<OpCount, std::vector<double>>> all;
  for (int s = 0; s < study.steps; ++s) {
    steps.push_back(step());
    sums.push_back(sampler.end_step(all));
  }
  for (auto& [name, sizes] : all)
    for (auto& [size, taken] : sizes) {
      rates.ops[name].push_back({size, std::max(lower_quartile(taken), 1e-9)});
    }
  return {lower_quartile(gpu ? recorded : steps), lower_quartile(sums)};
}

/// Samples of one size become one, their mean.
void merge(std::vector<OpSample>& samples) {
  std::map<OpCount, std::pair<double, int>> sums;
  for (const OpSample& s : samples) sums[s.size].first += s.seconds, ++sums[s.size].second;
  samples.clear();
  for (const auto& [size, sum] : sums) samples.push_back({size, sum.first / sum.second});
}

bool fits(const RunConfig& c, const ComputeTarget& target) {
  const size_t free = target.device == Device::cuda ? gpu::info().free : available_host_memory();
  return free == 0 || double(rehearse(c, target, recompute_of(c, target.device)).peak) < 0.8 * double(free);
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", &utc);
  return text;
}

}  // namespace

std::vector<Study> studies_of(Device device) {
  std::vector<Study> all;
  for (const Products backward : {Products::compute, Products::int8}) {
    if (device == Device::cpu) {
      all.push_back({256, 704, 8192, 256, 8, backward, 1, 3});
      all.push_back({512, 1408, 16384, 256, 4, backward, 1, 2});
      all.push_back({1024, 2816, 4096, 256, 2, backward, 1, 2});
    } else {
      for (const auto& [width, inner] : {std::pair(512, 1408), std::pair(1024, 2816), std::pair(2048, 5632)})
        for (const int64_t rows : {4, 16}) all.push_back({width, inner, 32000, 2048, rows, backward, 3, 5});
    }
  }
  return all;
}

RunConfig config_of(const Study& s) {
  RunConfig c;
  c.model.hidden_size = s.width;
  c.model.intermediate_size = s.inner;
  c.model.vocab_size = s.vocabulary;
  c.model.num_hidden_layers = 2;
  LayerEntry first, second;
  first.token = TokenKind::mlgru;
  second.token = TokenKind::attention;
  second.heads = s.width / 64;
  second.precision = Precision::bf16;
  second.inner_norm = false;
  c.model.layers = {first, second};
  c.data.seq_len = s.length;
  c.train.batch_size = 2 * s.rows;
  c.train.micro_batch_size = s.rows;
  c.train.backward = s.backward;
  c.train.steps = 1000;
  return c;
}

OpRates measure_rates(const ComputeTarget& target, const std::vector<Study>& studies,
                      const std::function<void(const std::string&)>& tell) {
  OpRates rates;
  rates.device = device_key(target.device);
  rates.program = MMFREE_VERSION;
  rates.date = today();
  Measured sum;
  for (size_t i = 0; i < studies.size(); ++i) {
    const Study& study = studies[i];
    const RunConfig config = config_of(study);
    const bool measures = fits(config, target);
    tell(concat("model ", i + 1, " of ", studies.size(), ": width ", study.width, ", ", study.rows * study.length,
                " tokens at a time, backward products in ", name_of(study.backward),
                measures ? "" : ": left out, too little memory is free"));
    if (!measures) continue;
    const ArenaScope scope(target.device == Device::cuda ? Arena::gpu() : Arena::host());
    const Measured one = run(study, config, target, rates);
    sum.step += one.step, sum.ops += one.ops;
  }
  MMFREE_CHECK(OutOfMemory, sum.ops > 0, "bench: not enough memory is free to measure anything");
  rates.beside = sum.step / sum.ops;
  for (auto& [name, samples] : rates.ops) merge(samples);
  return rates;
}

}  // namespace mmfree
