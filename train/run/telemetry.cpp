#include "train/run/telemetry.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <utility>

#include "autograd/norm_watch.h"
#include "core/ops/blocks.h"
#include "core/ops/code_counts.h"
#include "optim/rules.h"

namespace mmfree {
namespace {

/// Six significant digits: enough to see, and half the bytes.
double shortened(double value) {
  if (!std::isfinite(value)) return value;
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return std::strtod(text, nullptr);
}

double number(const Tensor& t, int64_t i) {
  return t.dtype() == DType::f64 ? t.data<double>()[i] : double(t.data<float>()[i]);
}

std::string short_name(const std::string& name) { return name.starts_with("model.") ? name.substr(6) : name; }

/// Counts the codes of all rounded inputs of one forward pass, and keeps the size of each row.
class InputCounts : public NormWatch {
 public:
  InputCounts(const LM& lm, int64_t rows) : rows_(rows) {
    lm.for_each_projection([&](const BitLinear& p) { names_.emplace_back(p.matrix.get(), short_name(p.name)); });
    const auto most = int64_t(names_.size());
    counts_ = Tensor({most * rows, 2}, DType::i64, lm.device());
    norm_watch = this;
  }
  ~InputCounts() override { norm_watch = nullptr; }
  InputCounts(const InputCounts&) = delete;

  void rounded(const WeightMatrix* matrix, const QuantTensor& codes, const Tensor& rstd) override {
    const auto found = std::find_if(names_.begin(), names_.end(), [&](const auto& n) { return n.first == matrix; });
    const auto begin = int64_t(seen_.size()) * rows_, end = begin + rows_;
    seen_.push_back(
        {found == names_.end() ? names_.back().second : found->second, codes.values.cols(), rstd.defined()});
    Tensor counts = counts_.slice(begin, end);
    row_code_counts(codes.values, counts);
    if (!sizes_.defined()) sizes_ = Tensor({counts_.dim(0)}, codes.scale.dtype(), codes.scale.device());
    sizes_.slice(begin, end).copy_from(rstd.defined() ? rstd : codes.scale);
  }

  void write(Metrics& line) const {
    if (seen_.empty()) return;
    const Tensor counts = counts_.to(Device::cpu), sizes = sizes_.to(Device::cpu);
    double all = 0, saturated = 0;
    for (size_t i = 0; i < seen_.size(); ++i) {
      const Input& in = seen_[i];
      const double cols = double(in.cols);
      double squares = 0, ratio = 0, most = 0, rounded = 0;
      for (int64_t n = int64_t(i) * rows_; n < int64_t(i + 1) * rows_; ++n) {
        const auto of_row = double(counts.data<int64_t>()[2 * n]);
        const double size = number(sizes, n);  // 1 / rms, or the step of the codes
        squares += in.normed ? 1 / (size * size) : size * size * of_row / cols;
        if (of_row > 0) ratio += 127 / std::sqrt(of_row / cols), rounded += 1;
        most += double(counts.data<int64_t>()[2 * n + 1]);
      }
      const auto add = [&](const char* what, double value) {
        line.emplace_back(concat("act/", in.name, "/", what), shortened(value));
      };
      add("rms", std::sqrt(squares / double(rows_)));
      add("absmax_over_rms", ratio / rounded);
      add("saturation", most / (double(rows_) * cols));
      all += double(rows_) * cols, saturated += most;
    }
    line.emplace_back("act/all/saturation", shortened(saturated / all));
  }

 private:
  struct Input {
    std::string name;
    int64_t cols;
    bool normed;
  };
  int64_t rows_;
  std::vector<std::pair<const WeightMatrix*, std::string>> names_;  ///< of all projections, the head last
  std::vector<Input> seen_;
  Tensor counts_;  ///< [inputs · rows, 2] as row_code_counts writes them
  Tensor sizes_;   ///< [inputs · rows]: rstd, or the steps
};

}  // namespace

std::vector<WatchedMatrix> watched_matrices(const LM& lm, const ParamStore& params, const OptimConfig& config) {
  std::vector<WatchedMatrix> matrices;
  lm.for_each_projection([&](const BitLinear& p) {
    if (p.precision != Precision::ternary || !p.weight.defined()) return;
    const ParamSpec& spec = params.specs()[params.index(p.parameter)];
    matrices.push_back(
        {short_name(p.name), &p, p.matrix->ternary.rows(), p.matrix->ternary.cols, rates_of(spec, config).lr_factor});
  });
  return matrices;
}

Telemetry::Telemetry(const LM& lm, const ParamStore& params, const Optimizer& optimizer, const RunConfig& config,
                     const Group& group)
    : lm_(lm),
      params_(params),
      optimizer_(optimizer),
      leads_(group.rank() == 0),
      every_(config.train.telemetry_every),
      seq_len_(config.data.seq_len),
      leaf_rows_(config.train.leaf_rows()),
      matrices_(watched_matrices(lm, params, config.optim)) {
  if (matrices_.empty()) every_ = 0;
  if (every_ == 0 || !leads_) return;
  for (const WatchedMatrix& m : matrices_)
    before_.push_back(Tensor::zeros({m.rows, ternary_row_bytes(m.cols)}, DType::u8, lm.device()));
}

void Telemetry::restart(int64_t step) {
  if (every_ == 0 || !leads_) return;
  count_codes();
  since_ = step;
}

/// Of each matrix: zeros, flips, dead rows. The codes become those that the next call compares with.
Tensor Telemetry::count_codes() {
  const auto count = int64_t(matrices_.size());
  Tensor counts = Tensor::zeros({count, 3}, DType::i64, lm_.device());
  for (int64_t i = 0; i < count; ++i) {
    Tensor of_matrix = counts.slice(i, i + 1).reshape({3});
    ternary_code_counts(matrices_[size_t(i)].projection->matrix->ternary, before_[size_t(i)], of_matrix);
  }
  return counts.to(Device::cpu);
}

/// Σ g² of each block of the last step's gradients, of all ranks.
std::vector<double> Telemetry::block_squares() const {
  const Share& share = params_.share();
  Tensor squares({params_.size() / kParamBlock}, DType::f64, lm_.device()), mine = share.my_blocks(squares);
  squares_of_blocks(optimizer_.my_gradients(), mine);
  share.gather_blocks({squares});
  if (!leads_) return {};
  const Tensor host = squares.to(Device::cpu);
  return {host.data<double>(), host.data<double>() + host.size()};
}

Metrics Telemetry::measure(int64_t step, const Tensor& ids, const Tensor& starts) {
  const std::vector<double> squares = block_squares();
  if (!leads_) return {};
  Metrics line = {{"step", step}};
  add_codes(squares, since_ == step - every_, line);
  since_ = step;
  add_inputs(ids, starts, line);
  line.emplace_back("time", double(std::time(nullptr)));
  return line;
}

void Telemetry::add_codes(const std::vector<double>& squares, bool flips, Metrics& line) {
  const auto count = int64_t(matrices_.size());
  Tensor scales({count}, matrices_[0].projection->matrix->ternary.scale.dtype(), lm_.device());
  for (int64_t i = 0; i < count; ++i)
    scales.slice(i, i + 1).copy_from(matrices_[size_t(i)].projection->matrix->ternary.scale);
  const Tensor counts = count_codes(), host_scales = scales.to(Device::cpu);
  double weights = 0, zeros = 0, changed = 0;
  for (int64_t i = 0; i < count; ++i) {
    const WatchedMatrix& m = matrices_[size_t(i)];
    const int64_t* c = counts.data<int64_t>() + 3 * i;
    const double size = double(m.rows) * double(m.cols);
    const auto add = [&](const char* what, double value) {
      line.emplace_back(concat("ternary/", m.name, "/", what), shortened(value));
    };
    add("zeros", double(c[0]) / size);
    add("scale", number(host_scales, i));
    if (flips) add("flips", double(c[1]) / size);
    if (c[2] > 0) add("dead_rows", double(c[2]));
    const int64_t first = params_.offset(params_.index(m.projection->parameter)) / kParamBlock;
    double sum = 0;
    for (int64_t b = first; b < first + (m.rows * m.cols + kParamBlock - 1) / kParamBlock; ++b)
      sum += squares[size_t(b)];
    add("grad_norm", std::sqrt(sum));
    weights += size, zeros += double(c[0]), changed += double(c[1]);
  }
  line.emplace_back("ternary/all/zeros", shortened(zeros / weights));
  if (flips) line.emplace_back("ternary/all/flips", shortened(changed / weights));
}

void Telemetry::add_inputs(const Tensor& ids, const Tensor& starts, Metrics& line) const {
  const int64_t length = std::min(seq_len_, kTokens), rows = std::clamp<int64_t>(kTokens / length, 1, leaf_rows_);
  const auto first = [&](const Tensor& t) { return t.defined() ? t.slice(0, rows * length) : t; };
  InputCounts counts(lm_, rows * length);
  lm_.hidden(first(ids), Sequences(rows, first(starts)));
  counts.write(line);
}

}  // namespace mmfree
