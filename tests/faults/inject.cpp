// inject SITES SEED [CASE]: puts bad numbers into a tiny model's training step and sees what becomes of them.
//
// Each of SITES random sites (a step, a kind of number, a tensor, an element) gets each bad number in turn. The step
// must either be caught (skipped and reported, parameters, moments and the count of updates the same to the bit, and
// the next clean step as if nothing had happened where the bad number was a passing one) or be harmless (everything
// finite after it); and no state that holds a non-finite number may become a checkpoint. Clean steps must never be
// skipped. With CASE only that case runs.
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>

#include "layers/block.h"
#include "optim/adamw.h"
#include "tests/support/compare.h"
#include "tests/support/tiny_run.h"
#include "train/run/checkpoint.h"

namespace mmfree {
namespace {

constexpr int64_t kBatch = 3, kSteps = 11, kStates = 12, kTotal = 100;

struct Bad {
  const char* name;
  float value;
  bool finite;
};
const Bad kBad[] = {{"NaN", NAN, false},
                    {"+Inf", INFINITY, false},
                    {"-Inf", -INFINITY, false},
                    {"1e30", 1e30f, true},
                    {"denormal", 1e-40f, true}};

enum class Kind {
  activation,
  gradient,
  quantiser_step,
  ternary_scale,
  parameter_gradient,
  first_moment,
  second_moment,
  parameter,
  learning_rate
};
constexpr int kKinds = 9;
const char* const kNames[kKinds] = {"activation",         "gradient between ops", "activations' step", "ternary scale",
                                    "parameter gradient", "first moment",         "second moment",     "parameter",
                                    "learning rate"};
/// Numbers that stay when their step is skipped.
bool lasting(Kind k) { return k == Kind::first_moment || k == Kind::second_moment || k == Kind::parameter; }

/// Where: the `tensor`-th of the kind's tensors and the share of its elements before the one that is hit.
struct Site {
  Kind kind;
  int64_t state;
  double tensor, element;
};

int64_t pick(double share, int64_t n) { return std::min(n - 1, int64_t(share * double(n))); }

void poke(const Tensor& t, double element, float value) {
  reinterpret_cast<float*>(const_cast<char*>(t.raw()))[pick(element, t.size())] = value;
}

/// The identity, but for one element of its value or of its gradient.
Var disturbed(const Var& x, bool backward, double element, float value) {
  QuantTensor y = x.quant();
  if (!backward) {
    Tensor& bad = y.quantised() ? y.scale : y.values;
    bad = bad.clone();
    poke(bad, element, value);
  }
  return record("disturbed", {x}, {y}, {}, [backward, element, value](const BackwardCtx& c) {
    const Tensor gradient = c.out_grad().clone();
    if (backward) poke(gradient, element, value);
    c.pass(0, gradient);
  })[0];
}

/// The model of layers/lm.h with a place to interfere behind each op, and its optimizer.
class Training {
 public:
  Training()
      : config_(small()),
        params(parameter_specs(config_), DType::f32),
        optimizer(params, optim()),
        lm_(params, config_) {
    params.initialise(5);
    requantise();
  }

  static ModelConfig small() {
    ModelConfig c = tiny_model_config();
    c.initializer_range = 0.02;
    c.num_hidden_layers = 2;
    return c;
  }
  static OptimConfig optim() {
    OptimConfig c;
    c.lr = 1e-2;
    c.warmup_steps = 3;
    return c;
  }

  std::vector<const BitLinear*> projections() const {
    std::vector<const BitLinear*> all;
    lm_.for_each_projection([&](const BitLinear& p) { all.push_back(&p); });
    return all;
  }
  void requantise() { lm_.requantise(); }

  /// The loss of the batch of `step`; with `site`, disturbed there.
  Var loss(int64_t step, const Site* site, float value) {
    site_ = site, value_ = value, places_ = 0;
    wanted_ = site ? pick(site->tensor, kPlaces) : -1;
    const Tensor ids = random_ids(kBatch * kSteps, config_.vocab_size, uint64_t(step));
    const Tensor targets = random_ids(kBatch * kSteps, config_.vocab_size, uint64_t(step + kTotal));
    Residual r = {at(embedding(params["model.embeddings.weight"], ids, DType::f32)), Var()};
    const auto bounds = lower_bounds(params["model.lower_bounds"]);
    const ModelParts& m = lm_.parts();
    for (size_t l = 0; l < m.blocks.size(); ++l) r = block(m.blocks[l], r, l ? at(bounds[l]) : Var());
    Var q = norm_quant(r.source(), m.norm, config_.rms_norm_eps, BitLinear::kEps, {m.head.branch()})[0];
    if (site && site->kind == Kind::quantiser_step) q = disturbed(q, false, site->element, value);
    MMFREE_CHECK(Error, places_ == kPlaces, "inject: ", places_, " places to interfere, expected ", kPlaces);
    return head_loss(q, m.head.weight, *m.head.matrix, targets, 1.0 / double(kBatch * kSteps));
  }

  /// One training step, as StepRunner::work makes it.
  double step(int64_t step, const Site* site = nullptr, float value = 0) {
    const bool codes_too = site && site->element < 0.5;
    const auto hit_flat = [&](const Tensor& flat) {
      const size_t i = size_t(pick(site->tensor, int64_t(params.specs().size())));
      poke(params.view(flat, i), site->element, value);
    };
    const auto is = [&](Kind k) { return site && site->kind == k; };
    optimizer.begin_step(step + 1, kTotal);
    if (is(Kind::parameter)) hit_flat(params.values());
    if (is(Kind::parameter) && codes_too) requantise();
    if (is(Kind::ternary_scale)) {
      const auto all = projections();
      poke(all[size_t(pick(site->tensor, int64_t(all.size())))]->matrix->ternary.scale, 0, value);
    }
    params.begin_gradients();
    const bool inside = is(Kind::activation) || is(Kind::gradient) || is(Kind::quantiser_step);
    Tape tape;
    const Var l = loss(step, inside ? site : nullptr, value);
    tape.backward(l);
    params.finish_gradients();
    if (is(Kind::parameter_gradient)) hit_flat(params.grads());
    if (is(Kind::first_moment)) hit_flat(optimizer.m());
    if (is(Kind::second_moment)) hit_flat(optimizer.v());
    if (is(Kind::learning_rate)) const_cast<double*>(optimizer.step().data<double>())[codes_too] = value;
    if (site && lasting(site->kind)) optimizer.measure();  // as the update before would have left it
    if (before_update) before_update();
    optimizer.update(l.value());
    requantise();
    return *l.value().data<double>();
  }

 private:
  static constexpr int64_t kPlaces = 2 + 2 * 8;

  Var at(const Var& x, bool saturating = false) {
    if (places_++ != wanted_ || site_->kind == Kind::quantiser_step) return x;
    saturates = saturating;
    return disturbed(x, site_->kind == Kind::gradient, site_->element, value_);
  }

  Residual block(const Block& b, const Residual& in, const Var& bound) {
    const MlGru& m = std::get<MlGru>(b.token);
    const Glu& glu = std::get<Glu>(b.channel);
    const auto y = norm_linear(in.source(), b.token_norm, m.eps, BitLinear::kEps,
                               {m.i_proj.projection(), m.f_proj.projection(), m.g_proj.projection()}, Keep::all);
    const Var a = at(y[0]), z = at(y[1], true), g = at(y[2]), s = at(mlgru_scan(z, a, bound, kBatch));
    const Source gate = Source::gate(g, s, m.gate_norm, m.eps);
    const Residual mid = {at(in.value(y)), at(norm_linear(gate, Var(), BitLinear::kEps, BitLinear::kEps,
                                                          {m.o_proj.projection()}, Keep::all)[0])};
    const auto c =
        norm_linear(mid.source(), b.channel_norm, m.eps, BitLinear::kEps, {glu.gate_proj.projection()}, Keep::all);
    const Var out = norm_linear(Source::glu(at(c[0]), glu.activation), Var(), BitLinear::kEps, BitLinear::kEps,
                                {glu.down_proj.projection()}, Keep::all)[0];
    return {mid.value(c), at(out)};
  }

  ModelConfig config_;

 public:
  ParamStore params;
  AdamW optimizer;
  std::function<void()> before_update;
  bool saturates = false;  ///< the last disturbance was before a sigmoid, of which an infinity is a proper argument

 private:
  LM lm_;
  const Site* site_ = nullptr;
  float value_ = 0;
  int64_t places_ = 0, wanted_ = -1;
};

/// Everything that a step changes.
struct State {
  Tensor values, m, v;
  int64_t updates = 0;

  static State of(Training& t) {
    return {t.params.values().clone(), t.optimizer.m().clone(), t.optimizer.v().clone(), t.optimizer.updates()};
  }
  void restore(Training& t) const {
    t.params.values().copy_from(values);
    t.optimizer.m().copy_from(m);
    t.optimizer.v().copy_from(v);
    t.optimizer.set_updates(updates);
    t.requantise();
  }
  bool operator==(const State& o) const {
    return same_bits(values, o.values) && same_bits(m, o.m) && same_bits(v, o.v) && updates == o.updates;
  }
  bool finite() const {
    for (const Tensor* t : {&values, &m, &v})
      for (int64_t i = 0; i < t->size(); ++i)
        if (!std::isfinite(t->data<float>()[i])) return false;
    return true;
  }
};

class Injection {
 public:
  Injection(int64_t sites, uint64_t seed) : sites_(sites), seed_(seed) {
    for (int64_t s = 0; s <= kStates + 1; ++s) {
      states_.push_back(State::of(training_));
      training_.step(s);
    }
  }

  /// The forward pass of this program is the model's.
  bool same_as_the_model() {
    states_[3].restore(training_);
    const LM lm(training_.params, Training::small());
    const Tensor ids = random_ids(kBatch * kSteps, 61, 3), targets = random_ids(kBatch * kSteps, 61, 3 + kTotal);
    const double expected = *lm.loss(ids, targets, kBatch, 1.0 / double(kBatch * kSteps)).value().data<double>();
    return expected == *training_.loss(3, nullptr, 0).value().data<double>();
  }

  int64_t false_alarms(int64_t steps) {
    int64_t alarms = 0;
    for (int64_t s = 0; s < steps; ++s) {
      if (s % kTotal == 0) states_[size_t(s / kTotal % kStates)].restore(training_);
      training_.step(s % kTotal);
      alarms += training_.optimizer.report().skipped;
    }
    return alarms;
  }

  void run(int64_t only) {
    const int64_t cases = sites_ * int64_t(std::size(kBad));
    for (int64_t i = 0; i < cases; ++i) {
      if (only >= 0 && i != only) continue;
      if (i % 100 == 0) std::printf("case %lld of %lld\n", (long long)i, (long long)cases), std::fflush(stdout);
      const Site site = site_of(i / int64_t(std::size(kBad)));
      const Bad& bad = kBad[i % int64_t(std::size(kBad))];
      const std::string wrong = judge(site, bad);
      if (wrong.empty()) continue;
      ++failures_;
      std::printf(
          "FAILED seed %llu case %lld: %s in a %s, tensor %.3f element %.3f, step %lld: %s\n"
          "  again: inject %lld %llu %lld\n",
          (unsigned long long)seed_, (long long)i, bad.name, kNames[int(site.kind)], site.tensor, site.element,
          (long long)site.state, wrong.c_str(), (long long)sites_, (unsigned long long)seed_, (long long)i);
    }
  }

  void print_table() const {
    std::printf("%-22s %-9s %8s %8s\n", "kind", "number", "caught", "harmless");
    for (const auto& [key, n] : counts_)
      std::printf("%-22s %-9s %8d %8d\n", kNames[key.first], kBad[key.second].name, n.caught, n.harmless);
  }
  int failures() const { return failures_; }
  int refused() const { return refused_; }

 private:
  struct Counts {
    int caught = 0, harmless = 0;
  };

  Site site_of(int64_t i) const {
    const RandomStream random(seed_, uint64_t(i), "inject");
    return {Kind(i % kKinds), 1 + pick(random.uniform(0), kStates - 1), random.uniform(1), random.uniform(2)};
  }

  /// What is wrong with how the step took it; empty: nothing.
  std::string judge(const Site& site, const Bad& bad) {
    states_[size_t(site.state)].restore(training_);
    State before;
    training_.before_update = [&] { before = State::of(training_); };
    const double loss = training_.step(site.state, &site, bad.value);
    training_.before_update = {};
    const StepReport report = training_.optimizer.report();
    const State after = State::of(training_);
    Counts& counts = counts_[{int(site.kind), int(&bad - kBad)}];
    ++(report.skipped ? counts.caught : counts.harmless);
    if (!after.finite() && !save_is_refused()) return "a checkpoint of what is not finite was written";
    if (!report.skipped) {
      if (!std::isfinite(loss) || !std::isfinite(report.grad_norm)) return "made an update from what is not finite";
      if (!after.finite()) return "not noticed: parameters or moments are not finite";
      const bool proper = std::isinf(bad.value) && site.kind == Kind::activation && training_.saturates;
      return bad.finite || proper ? "" : "lost without a trace";
    }
    if (!(after == before)) return "skipped, but something changed";
    if (bad.finite && std::fpclassify(bad.value) == FP_SUBNORMAL) return "a denormal number stopped the step";
    if (lasting(site.kind)) return "";
    training_.step(site.state);
    return State::of(training_) == states_[size_t(site.state) + 1] ? "" : "the next step was not as without it";
  }

  /// Of the training's state as it is; an older checkpoint must stay.
  bool save_is_refused() {
    ++refused_;
    RunConfig config;
    config.model = Training::small();
    const std::string path = dir_ / "step.h5";
    h5::Writer(path, "checkpoint").commit();
    const std::string older = slurp(path);
    try {
      save_checkpoint(path, config, training_.params, {training_.params.values(), training_.optimizer.states()}, {},
                      "");
      return false;
    } catch (const DivergedError&) {
      return slurp(path) == older && dir_.files() == 1;
    }
  }

  int64_t sites_;
  uint64_t seed_;
  TempDir dir_;
  Training training_;
  std::vector<State> states_;
  std::map<std::pair<int, int>, Counts> counts_;
  int failures_ = 0, refused_ = 0;
};

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  using namespace mmfree;
  if (argc < 3) return std::fprintf(stderr, "usage: inject SITES SEED [CASE]\n"), 2;
  const int64_t sites = std::atoll(argv[1]), only = argc > 3 ? std::atoll(argv[3]) : -1;
  const Threads one(1);
  Injection injection(sites, std::strtoull(argv[2], nullptr, 10));
  if (!injection.same_as_the_model()) return std::printf("inject: the forward pass is not the model's\n"), 1;
  const int64_t clean = only >= 0 ? 0 : 40 * sites, alarms = injection.false_alarms(clean);
  if (alarms) std::printf("FAILED: %lld of %lld clean steps were skipped\n", (long long)alarms, (long long)clean);
  injection.run(only);
  injection.print_table();
  std::printf("inject: %lld sites x %zu numbers, %d failures; %d saves refused; %lld clean steps, %lld false alarms\n",
              (long long)sites, std::size(kBad), injection.failures(), injection.refused(), (long long)clean,
              (long long)alarms);
  return injection.failures() || alarms ? 1 : 0;
}
