// One training step: the same as its parts by hand, whatever the micro-batches; and what it needs, measured in a dry
// run for a GPU that is not there.
#include <gtest/gtest.h>

#include <algorithm>

#include "layers/parameters.h"
#include "optim/adamw.h"
#include "optim/schedule.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_run.h"
#include "train/run/recompute.h"
#include "train/run/rehearsal.h"
#include "train/run/step.h"
#include "train/run/telemetry.h"

namespace mmfree {
namespace {

/// Everything a run's steps need, as the trainer makes it.
struct SmallRun {
  RunConfig config;
  Corpus corpus{config.data};
  Batches batches{corpus, {config.data.seq_len, uint64_t(config.train.seed), config.data.shuffle}};
  ParamStore params{parameter_specs(config.model), DType::f32};
  LM lm{params, config.model};
  AdamW optimizer{params, config.optim};

  explicit SmallRun(RunConfig c) : config(std::move(c)) {
    params.initialise(3);
    lm.requantise();
  }
  int64_t size() const { return config.train.batch_size * config.data.seq_len; }
  std::pair<Tensor, Tensor> batch(int64_t step) const {
    Tensor ids({size()}, DType::i32), targets({size()}, DType::i32);
    batches.read(step * config.train.batch_size, config.train.batch_size, {ids.mut<int32_t>(), targets.mut<int32_t>()});
    return {ids, targets};
  }
  /// A step from its parts; gives the loss.
  double by_hand(int64_t step) {
    const auto [ids, targets] = batch(step);
    return by_hand(step, ids, targets, size());
  }
  double by_hand(int64_t step, const Tensor& ids, const Tensor& targets, int64_t scored) {
    const int64_t micro = config.train.micro_batch(), part = micro * config.data.seq_len;
    double loss = 0;
    params.begin_gradients();
    for (int64_t begin = 0; begin < size(); begin += part) {
      Tape tape;
      const Var l =
          lm.loss(ids.slice(begin, begin + part), targets.slice(begin, begin + part), micro, 1 / double(scored));
      tape.backward(l);
      loss += *l.value().data<double>();
    }
    params.finish_gradients();
    optimizer.begin_step(step + 1, config.train.steps);
    optimizer.update();
    lm.requantise();
    return loss;
  }
};

TEST(StepRunner, DoesWhatItsPartsDoByHand) {
  const TempDir dir;
  for (int64_t micro : {0, 1, 2})
    for (Recompute recompute : kAllRecomputes) {
      SCOPED_TRACE(concat("micro-batches of ", micro, ", recompute ", name_of(recompute)));
      RunConfig c = tiny_run(dir / "run");
      c.train.micro_batch_size = micro;
      mix_precisions(c.model);
      c.model.precision_rules.resize(2);  // the tiny run has two layers
      SmallRun expected(c), run(c);
      const auto [ids, targets] = run.batch(0);
      const Tensor nll = run.lm.nll(ids, targets, c.train.batch_size);
      double first = 0;
      for (int64_t i = 0; i < nll.size(); ++i) first += double(nll.data<float>()[i]) / double(nll.size());

      StepRunner runner(run.lm, run.params, run.optimizer, c, recompute);
      BatchFeed feed(run.batches, 0, c.train.steps, c.train.batch_size, c.data.seq_len, false);
      for (int64_t step = 0; step < 5; ++step) {
        const double loss = expected.by_hand(step);
        const auto result = runner.run(step, feed);
        ASSERT_TRUE(result);
        EXPECT_EQ(step + 1, result->step);
        EXPECT_EQ(loss, result->loss);
        EXPECT_EQ(run.size(), result->scored);
        if (step == 0) {
          EXPECT_NEAR(first, result->loss, 1e-6 * first);
        }
        const StepReport report = expected.optimizer.report();
        EXPECT_EQ(report.grad_norm, result->report.grad_norm);
        EXPECT_EQ(learning_rate(c.optim, step + 1, c.train.steps), result->report.learning_rate);
        EXPECT_FALSE(result->report.skipped);
        EXPECT_FALSE(runner.collect()) << "on the CPU every result is there at once";
      }
      EXPECT_TRUE(same_bits(expected.params.values(), run.params.values()));
      EXPECT_TRUE(same_bits(expected.optimizer.m(), run.optimizer.m()));
      EXPECT_TRUE(same_bits(expected.optimizer.v(), run.optimizer.v()));
      const Tensor some = run.batch(7).first;
      EXPECT_TRUE(same_bits(expected.lm.logits(some, 4), run.lm.logits(some, 4))) << "requantised from the new values";
      EXPECT_EQ(5, run.optimizer.updates());
    }
}

TEST(StepRunner, ReportsASkippedStepAndGoesOn) {
  const TempDir dir;
  SmallRun run(tiny_run(dir / "run"));
  Tensor norm = run.params["model.norm.weight"].value();
  const float kept = norm.data<float>()[3];
  StepRunner runner(run.lm, run.params, run.optimizer, run.config, Recompute::none);
  BatchFeed feed(run.batches, 0, 12, 4, 17, false);
  norm.mut<float>()[3] = float(kNaN);
  const Tensor before = run.params.values().clone();
  const auto bad = runner.run(0, feed);
  EXPECT_TRUE(bad->report.skipped);
  EXPECT_FALSE(std::isfinite(bad->loss));
  EXPECT_TRUE(same_bits(before, run.params.values()));
  norm.mut<float>()[3] = kept;
  run.optimizer.measure();
  const auto good = runner.run(1, feed);
  EXPECT_FALSE(good->report.skipped);
  EXPECT_TRUE(std::isfinite(good->loss));
  EXPECT_EQ(1, run.optimizer.updates());
}

TEST(StepRunner, PassesOnWhatReadingThrows) {
  const TempDir dir;
  SmallRun run(tiny_run(dir / "run"));
  StepRunner runner(run.lm, run.params, run.optimizer, run.config, Recompute::none);
  BatchFeed feed(run.batches, 0, 1, 4, 17, false);
  EXPECT_TRUE(runner.run(0, feed));
  EXPECT_THROW(runner.run(1, feed), Error);
}

TEST(StepRunner, LaunchesOnItsOwnInputs) {
  const TempDir dir;
  SmallRun expected(tiny_run(dir / "run")), run(tiny_run(dir / "run"));
  StepRunner runner(run.lm, run.params, run.optimizer, run.config, Recompute::none);
  const auto [ids, targets] = run.batch(5);
  runner.ids().copy_from(ids);
  runner.targets().copy_from(targets);
  runner.launch(5, run.size());
  const auto result = runner.collect();
  ASSERT_TRUE(result);
  EXPECT_EQ(6, result->step);
  EXPECT_EQ(expected.by_hand(5), result->loss);
  EXPECT_TRUE(same_bits(expected.params.values(), run.params.values()));
  EXPECT_FALSE(runner.collect()) << "a result is given once";
}

/// Leaves only the targets of `kept` in micro-batches of which some are empty. Returns how many are scored.
int64_t mask(Tensor& targets, const std::function<bool(int64_t)>& kept) {
  int64_t scored = 0;
  for (int64_t i = 0; i < targets.size(); ++i)
    if (kept(i))
      ++scored;
    else
      targets.mut<int32_t>()[i] = kIgnoreTarget;
  return scored;
}

TEST(StepRunner, DividesByTheScoredTargetsOfTheWholeBatch) {
  const TempDir dir;
  double losses[3] = {};
  for (int64_t micro : {4, 2, 1}) {
    RunConfig c = tiny_run(dir / "run");
    c.train.micro_batch_size = micro;
    SmallRun expected(c), run(c);
    auto [ids, targets] = run.batch(0);
    // Of the four rows the second and a part of the others.
    const int64_t scored = mask(targets, [&](int64_t i) { return i / c.data.seq_len == 1 || i % 5 == 2; });
    ASSERT_LT(scored, run.size());
    const Tensor nll = run.lm.nll(ids, targets, c.train.batch_size);
    double mean = 0;
    for (int64_t i = 0; i < nll.size(); ++i) mean += double(nll.data<float>()[i]) / double(scored);
    StepRunner runner(run.lm, run.params, run.optimizer, c, Recompute::none);
    runner.ids().copy_from(ids);
    runner.targets().copy_from(targets);
    runner.launch(0, scored);
    const StepResult result = *runner.collect();
    EXPECT_EQ(scored, result.scored);
    EXPECT_NEAR(mean, result.loss, 1e-6 * mean) << "the mean over the scored targets";
    EXPECT_EQ(expected.by_hand(0, ids, targets, scored), result.loss);
    EXPECT_TRUE(same_bits(expected.params.values(), run.params.values()));
    losses[micro / 2] = result.loss;
  }
  EXPECT_NEAR(losses[2], losses[1], 1e-6 * losses[2]);
  EXPECT_NEAR(losses[2], losses[0], 1e-6 * losses[2]);
}

TEST(StepRunner, ABatchWithoutScoredTargetsChangesNothing) {
  const TempDir dir;
  SmallRun run(tiny_run(dir / "run"));
  StepRunner runner(run.lm, run.params, run.optimizer, run.config, Recompute::none);
  const auto [ids, targets] = run.batch(0);
  runner.ids().copy_from(ids);
  runner.targets().copy_from(targets);
  runner.launch(0, run.size());
  EXPECT_FALSE(runner.collect()->report.skipped);
  const Tensor values = run.params.values().clone(), m = run.optimizer.m().clone(), v = run.optimizer.v().clone();
  mask(runner.targets(), [](int64_t) { return false; });
  runner.launch(1, 0);
  const StepResult empty = *runner.collect();
  EXPECT_EQ(2, empty.step);
  EXPECT_EQ(0, empty.scored);
  EXPECT_TRUE(empty.report.skipped);
  EXPECT_TRUE(same_bits(values, run.params.values()));
  EXPECT_TRUE(same_bits(m, run.optimizer.m()) && same_bits(v, run.optimizer.v()));
  EXPECT_EQ(1, run.optimizer.updates());
  runner.targets().copy_from(targets);
  runner.launch(2, run.size());
  EXPECT_FALSE(runner.collect()->report.skipped);
}

/// A run that carries its state, by a step runner and by hand, on batches with starts of documents.
struct CarriedRun {
  SmallRun by_runner, by_hand;
  StepRunner runner;
  std::vector<DecodeState> states;  // of each micro-batch, by hand

  CarriedRun(const RunConfig& c, Recompute recompute)
      : by_runner(c), by_hand(c), runner(by_runner.lm, by_runner.params, by_runner.optimizer, c, recompute) {
    for (int64_t row = 0; row < c.train.batch_size; row += c.train.micro_batch())
      states.push_back(by_hand.lm.zero_state(c.train.micro_batch()));
  }
  void fill(int64_t step) {
    const auto [ids, targets] = by_runner.batch(step);
    runner.ids().copy_from(ids);
    runner.targets().copy_from(targets);
    for (int64_t i = 0; i < runner.starts().size(); ++i) runner.starts().mut<uint8_t>()[i] = (i + 5 * step) % 23 == 7;
  }
  StepResult step(int64_t step) {
    fill(step);
    runner.launch(step, by_runner.size());
    return *runner.collect();
  }
  double step_by_hand(int64_t step) {
    const RunConfig& c = by_hand.config;
    const int64_t part = c.train.micro_batch() * c.data.seq_len;
    double loss = 0;
    by_hand.params.begin_gradients();
    for (int64_t m = 0; m < int64_t(states.size()); ++m) {
      const auto cut = [&](const Tensor& t) { return t.slice(m * part, (m + 1) * part); };
      DecodeState state = states[size_t(m)].copy();
      Tape tape;
      const Var l = by_hand.lm.loss(cut(runner.ids()), cut(runner.targets()),
                                    {c.train.micro_batch(), cut(runner.starts()), &state}, 1 / double(by_hand.size()));
      tape.backward(l);
      loss += *l.value().data<double>();
      states[size_t(m)] = state;
    }
    by_hand.params.finish_gradients();
    by_hand.optimizer.begin_step(step + 1, c.train.steps);
    by_hand.optimizer.update();
    by_hand.lm.requantise();
    return loss;
  }
  bool same_states() {
    bool same = true;
    const int64_t micro = by_hand.config.train.micro_batch();
    runner.carried().for_each([&](int64_t l, size_t i, const Tensor& t) {
      for (int64_t m = 0; m < int64_t(states.size()); ++m)
        same &= same_bits(t.slice(m * micro, (m + 1) * micro), states[size_t(m)].layer(l).at(i));
    });
    return same;
  }
};

RunConfig carrying_run(const TempDir& dir) {
  RunConfig c = tiny_run(dir / "run");
  c.data.reset_state = true;
  c.data.carry_state = true;
  return c;
}

TEST(CarriedState, EachRowGoesOnWhereItEnded) {
  const TempDir dir;
  for (int64_t micro : {0, 1, 2})
    for (Recompute recompute : kAllRecomputes) {
      SCOPED_TRACE(concat("micro-batches of ", micro, ", recompute ", name_of(recompute)));
      RunConfig c = carrying_run(dir);
      c.train.micro_batch_size = micro;
      CarriedRun run(c, recompute);
      ASSERT_EQ(run.runner.carried().bytes(), 2 * 4 * 37 * 4);
      std::vector<const char*> places;
      run.runner.carried().for_each([&](int64_t, size_t, const Tensor& t) {
        places.push_back(t.raw());
        EXPECT_EQ(0, sum_of_squares(t)) << "zeros at first";
      });
      for (int64_t step = 0; step < 4; ++step) {
        const double found = run.step(step).loss;
        EXPECT_EQ(run.step_by_hand(step), found) << step;
        EXPECT_TRUE(run.same_states()) << step;
      }
      EXPECT_TRUE(same_bits(run.by_hand.params.values(), run.by_runner.params.values()));
      size_t i = 0;
      run.runner.carried().for_each([&](int64_t, size_t, const Tensor& t) {
        EXPECT_EQ(places[i++], t.raw()) << "a recorded step knows the place";
      });
    }
}

TEST(CarriedState, GoesOnThroughASkippedUpdateAndABatchWithoutScoredTargets) {
  const TempDir dir;
  for (int64_t micro : {0, 2}) {
    RunConfig c = carrying_run(dir);
    c.train.micro_batch_size = micro;
    CarriedRun run(c, Recompute::none), other(c, Recompute::none);
    run.step(0), other.step(0);
    // The final norm comes behind all states.
    Tensor norm = run.by_runner.params["model.norm.weight"].value();
    norm.mut<float>()[3] = float(kNaN);
    const Tensor before = run.by_runner.params.values().clone();
    EXPECT_TRUE(run.step(1).report.skipped);
    EXPECT_TRUE(same_bits(before, run.by_runner.params.values()));
    other.fill(1);
    mask(other.runner.targets(), [](int64_t) { return false; });
    const Tensor values = other.by_runner.params.values().clone(), m = other.by_runner.optimizer.m().clone();
    other.runner.launch(1, 0);
    const StepResult empty = *other.runner.collect();
    EXPECT_EQ(0, empty.scored);
    EXPECT_TRUE(same_bits(values, other.by_runner.params.values()));
    EXPECT_TRUE(same_bits(m, other.by_runner.optimizer.m()));
    for (CarriedRun* r : {&run, &other}) {
      r->fill(0), r->step_by_hand(0);
      r->fill(1), r->step_by_hand(1);
      EXPECT_TRUE(r->same_states());
    }
  }
}

TEST(CarriedState, ThereIsNoneWithoutTheKeys) {
  const TempDir dir;
  SmallRun run(tiny_run(dir / "run"));
  StepRunner runner(run.lm, run.params, run.optimizer, run.config, Recompute::none);
  EXPECT_TRUE(runner.carried().empty());
  EXPECT_FALSE(runner.starts().defined());
}

TEST(Memory, RecomputesByNameOrByDeviceAndSize) {
  RunConfig c;
  c.model.intermediate_size = 704;
  c.data.seq_len = 256;
  c.train.batch_size = 16;
  c.train.micro_batch_size = 8;
  EXPECT_EQ(7 * 8 * 256 * 2 * 704 * 4, selective_saves(c)) << "of eight blocks the last keeps its output";
  EXPECT_EQ(Recompute::none, recompute_of(c, Device::cpu));
  EXPECT_EQ(Recompute::selective, recompute_of(c, Device::cuda));
  c.model.layers.resize(2);
  c.model.layers[0].channel = ChannelKind::mlp;
  c.model.layers[0].intermediate_size = 1000;
  c.model.layers[1].repeat = 7;
  EXPECT_EQ(8 * 256 * (1000 + 6 * 2 * 704) * 4, selective_saves(c));
  c.data.seq_len = 1024;
  EXPECT_EQ(Recompute::selective, recompute_of(c, Device::cpu));
  c.train.micro_batch_size = 2;
  EXPECT_EQ(Recompute::none, recompute_of(c, Device::cpu)) << "what counts is one micro-batch";
  for (const int64_t keep : {0, 3, 7, 8, 9}) {
    c.train.keep_blocks = keep;
    const int64_t kept_glus = std::min<int64_t>(keep, 7), mlps = keep < 8;
    EXPECT_EQ(2 * 1024 * (1000 * mlps + (7 - kept_glus) * 2 * 704) * 4, selective_saves(c)) << keep;
  }
  for (Recompute r : kAllRecomputes) {
    c.train.recompute = r;
    EXPECT_EQ(r, recompute_of(c, Device::cpu));
    EXPECT_EQ(r, recompute_of(c, Device::cuda));
  }
}

/// Peak memory of one step for `c` on a GPU, in a dry run.
size_t peak_of(const RunConfig& c, Recompute recompute, DType compute = DType::bf16) {
  const auto arena = Arena::counted();
  const DryRun dry;
  const ArenaScope scope(arena);
  ParamStore params(parameter_specs(c.model), DType::f32, Device::cuda);
  params.initialise(1);
  const auto lm = std::make_unique<LM>(params, c.model, compute);
  AdamW optimizer(params, c.optim);
  const auto alone = Group::alone();
  const Telemetry telemetry(*lm, params, optimizer, c, *alone);
  StepRunner runner(*lm, params, optimizer, c, recompute);
  optimizer.begin_step(1, 10);
  runner.work();
  const ArenaStats first = arena->stats();
  runner.work();
  EXPECT_EQ(first.peak, arena->stats().peak) << "the second step needs what the first did";
  EXPECT_EQ(first.live, arena->stats().live);
  const Rehearsal estimate = rehearse(c, {Device::cuda, compute}, recompute);
  EXPECT_EQ(first.peak, estimate.peak);
  EXPECT_EQ(first.live, estimate.state);
  return first.peak;
}

RunConfig wide_vocabulary() {
  RunConfig c;
  c.model.vocab_size = 4096;
  c.model.hidden_size = 64;
  c.model.intermediate_size = 128;
  c.model.num_hidden_layers = 3;
  c.data.seq_len = 64;
  c.train.batch_size = 8;
  return c;
}

TEST(DryRunOfAStep, NeedsWhatOneCountsByHand) {
  RunConfig c = wide_vocabulary();
  c.train.telemetry_every = 0;
  const int64_t n = 512, d = 64, inner = 128, v = 4096, layers = 3;
  const auto padded = [](int64_t size) { return (size + kParamBlock - 1) / kParamBlock * kParamBlock; };
  int64_t flat = 0, matrices = 0;
  for (const ParamSpec& s : parameter_specs(c.model)) {
    flat += padded(s.shape.size());
    if (s.role == ParamRole::matrix || s.role == ParamRole::head) matrices += s.shape.size();
  }
  // Values, gradients and both moments; int8 codes of the matrices.
  const int64_t fixed = 16 * flat + matrices + 2 * 4 * n;
  // Of each layer. Token mixer: the stream, three rounded inputs, i, f and g, the state, o_proj's rounded input.
  // Channel mixer: the stream, gate_proj's rounded input and output, down_proj's rounded input. Then 13 numbers per
  // row: statistics (2 + 2 + 2 + 1) and steps (3 + 1 + 1 + 1).
  const int64_t layer = n * d * (4 + 3 + 3 * 2 + 2 + 1) + n * (4 * d + d + 2 * 2 * inner + inner) + 4 * 13 * n;
  // The last norm: stream and codes; the head: all logits, the gradient of its input, and for a while its matrix.
  const int64_t head = n * (4 * d + d) + 2 * n * v + 2 * n * d + 2 * v * d + 4 * 4 * n;
  const double expected = double(fixed + layers * layer + head);
  EXPECT_NEAR(expected, double(peak_of(c, Recompute::none)), 0.01 * expected);
  // Without the large vocabulary's share, which is the same for all, the layers decide.
  EXPECT_NEAR(double(layers * layer + head), double(peak_of(c, Recompute::none)) - double(fixed),
              0.02 * double(layers * layer + head));
}

TEST(DryRunOfAStep, NeedsLessWithRecomputeMicroBatchesAndBf16) {
  RunConfig c = wide_vocabulary();
  c.model.vocab_size = 64;
  c.model.num_hidden_layers = 8;
  const size_t none = peak_of(c, Recompute::none), selective = peak_of(c, Recompute::selective),
               full = peak_of(c, Recompute::full);
  EXPECT_LT(selective, none);
  EXPECT_LT(full, selective);
  EXPECT_GT(peak_of(c, Recompute::none, DType::f32), none);
  // A block that keeps its first output, of the 512 rows of a batch, instead of its codes and their steps.
  const size_t block = 512 * (2 * 2 * 128 - 64 - 4);
  for (const int64_t keep : {2, 5, 7}) {
    c.train.keep_blocks = keep;
    EXPECT_EQ(selective + size_t(keep - 1) * block, peak_of(c, Recompute::selective)) << keep;
    EXPECT_EQ(none, peak_of(c, Recompute::none));
    EXPECT_EQ(full, peak_of(c, Recompute::full));
  }
  c.train.keep_blocks = 1;
  c.train.micro_batch_size = 2;
  EXPECT_LT(peak_of(c, Recompute::none), none);
}

TEST(DryRunOfAStep, CountsTheCarriedStateAndTheStarts) {
  RunConfig c = wide_vocabulary();
  const size_t without = peak_of(c, Recompute::full);
  c.data.carry_state = c.data.reset_state = true;
  const size_t with = peak_of(c, Recompute::full);
  EXPECT_GE(with, without + 2 * 3 * 8 * 64 * 4 + 8 * 64) << "the old and the new state of 3 layers, and the starts";
}

TEST(DryRunOfAStep, RunsEveryVariantOfTheModel) {
  for (GateOrder order : {GateOrder::reference, GateOrder::fixed, GateOrder::paper})
    for (DType compute : {DType::bf16, DType::f32})
      for (Recompute recompute : kAllRecomputes)
        for (bool mixed : {false, true}) {
          RunConfig c = wide_vocabulary();
          c.model = tiny_model_config();
          c.model.gate_order = order;
          if (mixed) mix_precisions(c.model);
          c.train.micro_batch_size = 4;
          EXPECT_GT(peak_of(c, recompute, compute), 16u * size_t(c.model.parameter_count()));
        }
}

}  // namespace
}  // namespace mmfree
