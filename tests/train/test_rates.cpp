// Dry runs: they count the ops and the memory of whole steps, and reckon with rates that were measured and kept.
#include <gtest/gtest.h>

#include <cmath>

#include "layers/parameters.h"
#include "tests/support/model_variants.h"
#include "tests/support/program.h"
#include "tests/support/training.h"
#include "train/run/rates_file.h"
#include "train/run/step.h"
#include "train/run/telemetry.h"

namespace mmfree {
namespace {

struct Seen : OpWatch {
  StepWork work;
  Seen() { op_watch = this; }
  ~Seen() override { op_watch = nullptr; }
  void ran(const OpCall& call) override {
    const OpWork one = work_of(call);
    ++work[name_of(call, one)][{one.amount(), one.inner, one.kind}];
  }
};

/// Makes a step on the CPU; expects that it has the ops and takes the memory that a rehearsal tells.
void expect_rehearsed(const RunConfig& c, Recompute recompute, Products products) {
  const ComputeTarget target{Device::cpu, DType::f32, products};
  const Rehearsal expected = rehearse(c, target, recompute);
  const auto arena = Arena::host();
  const ArenaScope scope(arena);
  ParamStore params(parameter_specs(c.model), DType::f32);
  params.initialise(1);
  LM lm(params, c.model, DType::f32, backward_products(target, c.train.backward));
  const auto optimizer = make_optimizer(params, c.optim);
  lm.requantise();
  const auto alone = Group::alone();
  const Telemetry telemetry(lm, params, *optimizer, c, *alone);
  StepRunner runner(lm, params, *optimizer, c, recompute);
  runner.ids().fill_zero(), runner.targets().fill_zero();
  const Seen seen;
  runner.work();
  EXPECT_EQ(expected.work.size(), seen.work.size());
  for (const auto& [name, sizes] : seen.work) {
    const auto found = expected.work.find(name);
    ASSERT_NE(found, expected.work.end()) << name;
    EXPECT_EQ(found->second, sizes) << name;
  }
  // The bar for dry runs; kernels' own scratch memory is not counted.
  const auto peak = double(arena->stats().peak);
  EXPECT_LE(double(expected.peak), peak);
  EXPECT_NEAR(double(expected.peak), peak, 0.05 * peak);
}

RunConfig small_config() {
  RunConfig c;
  c.model = tiny_model_config();
  c.model.layers.resize(2);
  c.model.layers[0].repeat = 2;
  c.model.layers[1].token = TokenKind::attention;
  c.model.hidden_size = 48;
  c.model.heads = 2;
  c.data.seq_len = 12;
  c.train.batch_size = 16;
  return c;
}

TEST(Rehearsal, CountsTheOpsAndTheMemoryOfAWholeStepOnTheCpu) {
  for (const Recompute recompute : kAllRecomputes)
    for (const bool mixed : {false, true}) {
      RunConfig c = small_config();
      if (mixed) mix_precisions(c.model);
      expect_rehearsed(c, recompute, Products::compute);
    }
  RunConfig c = small_config();
  c.train.backward = Products::int8;
  expect_rehearsed(c, Recompute::none, Products::compute);
  c.train.backward = Products::compute;
  expect_rehearsed(c, Recompute::none, Products::bf16);
}

TEST(Rehearsal, CountsMicroBatchesAndLeavesAsOftenAsAStepHasThem) {
  for (const int64_t leaves : {1, 4})
    for (const int64_t micro : {1, 2, 4}) {
      RunConfig c = small_config();
      c.train.leaves = leaves;
      c.train.micro_batch_size = micro;
      expect_rehearsed(c, Recompute::selective, Products::compute);
    }
}

OpRates some_rates() {
  OpRates r;
  r.device = "GPU Some \"card\"";
  r.program = MMFREE_VERSION;
  r.date = "2026-11-27";
  r.beside = 1.25;
  r.ops["matmul f32 nn"] = {{{1e6, 10, OpWork::f32}, 1e-3}, {{1e8, 100, OpWork::f32}, 1e-2}};
  r.ops["sum"] = {{{400, 0, OpWork::passes}, 1e-6}};
  r.ops["adamw_begin"] = {{{0, 0, OpWork::passes}, 3e-6}, {{0, 0, OpWork::passes}, 5e-6}};
  return r;
}

TEST(OpRates, GiveWhatWasMeasuredAndWhatLiesBetween) {
  const OpRates r = some_rates();
  // Weights of 1e6 at no distance against at most 1 at a distance above 1: six digits.
  EXPECT_NEAR(r.seconds("matmul f32 nn", {1e6, 10, OpWork::f32}), 1e-3, 1e-8);
  EXPECT_NEAR(r.seconds("matmul f32 nn", {1e8, 100, OpWork::f32}), 1e-2, 1e-7);
  // In the middle of both logarithms: the geometric mean of both rates, 1e9 and 1e10 a second. ln(inner + 1) moves it.
  EXPECT_NEAR(r.seconds("matmul f32 nn", {1e7, 32, OpWork::f32}), 1e7 / std::sqrt(1e19), 1e-4);
  // Far outside: between the rates that there are.
  EXPECT_GT(r.seconds("matmul f32 nn", {1e12, 1000, OpWork::f32}), 1e12 / 1e10);
  EXPECT_LT(r.seconds("matmul f32 nn", {1e12, 1000, OpWork::f32}), 1e12 / 1e9);
  // Not measured: the kind's mean rate; of a kind without any, nothing is known.
  EXPECT_NEAR(r.seconds("linear_forward f32", {1e9, 7, OpWork::f32}), 1e9 * 11e-3 / 101e6, 1e-6);
  EXPECT_EQ(r.seconds("ternary_linear int8", {1e9, 7, OpWork::int8}), 0);
  // No call is shorter than the shortest; of ops without an amount the mean.
  EXPECT_EQ(r.seconds("sum", {8, 0, OpWork::passes}), 1e-6);
  EXPECT_NEAR(r.seconds("adamw_begin", {0, 0, OpWork::passes}), 4e-6, 1e-18);
  const StepWork work = {{"sum", {{{400, 0, OpWork::passes}, 6}}}, {"adamw_begin", {{{0, 0, OpWork::passes}, 1}}}};
  EXPECT_NEAR(step_seconds(work, r), 1.25 * (6e-6 + 4e-6), 1e-12);
}

TEST(RatesFile, KeepsTheNewestOfEachDeviceOfThisVersion) {
  const TempDir dir;
  const std::string path = dir / "new/rates.json";
  EXPECT_TRUE(read_rates(path).empty());
  EXPECT_TRUE(read_rates("").empty());
  OpRates a = some_rates(), old = some_rates(), cpu = some_rates();
  old.program = "0.0.1", old.device = "GPU of before", cpu.device = "Processor, avx2, 2 threads";
  for (const OpRates& r : {old, a, cpu}) write_rates(path, r);
  a.beside = 1.5;
  write_rates(path, a);
  const std::vector<OpRates> all = read_rates(path);
  ASSERT_EQ(all.size(), 2u);
  const OpRates got = *find_rates(all, a.device);
  EXPECT_EQ(got.device, a.device);
  EXPECT_EQ(got.program, a.program);
  EXPECT_EQ(got.date, a.date);
  EXPECT_EQ(got.beside, 1.5);
  ASSERT_EQ(got.ops.size(), a.ops.size());
  for (const auto& [name, samples] : a.ops)
    for (size_t i = 0; i < samples.size(); ++i) {
      EXPECT_EQ(got.ops.at(name).at(i).size, samples[i].size) << name;
      EXPECT_EQ(got.ops.at(name).at(i).seconds, samples[i].seconds) << name;
    }
  EXPECT_EQ(find_rates(all, "")->device, a.device) << "a GPU's";
  EXPECT_EQ(find_rates(all, cpu.device)->device, cpu.device);
  EXPECT_FALSE(find_rates(all, "GPU of before"));
}

TEST(RatesFile, IsReadWithoutTrust) {
  const TempDir dir;
  const std::string path = dir / "rates.json";
  const auto file = [](const std::string& rows, const std::string& beside = "1") {
    return R"({"mmfree_rates": 1, "devices": [{"device": "d", "program": "p", "beside": )" + beside +
           R"(, "ops": {"sum": )" + rows + "}}]}";
  };
  spit(path, file("[[0, 1, 2, 3]]"));
  EXPECT_EQ(read_rates(path).size(), 1u);
  for (const std::string& bad : {std::string("{"),
                                 std::string("[]"),
                                 std::string(R"({"mmfree_rates": 2})"),
                                 std::string("{}"),
                                 file("1"),
                                 file("[]"),
                                 file("[1]"),
                                 file("[[0, 1, 2]]"),
                                 file("[[4, 1, 2, 3]]"),
                                 file("[[0.5, 1, 2, 3]]"),
                                 file("[[-1, 1, 2, 3]]"),
                                 file("[[0, -1, 2, 3]]"),
                                 file("[[0, 1, 1e300, 3]]"),
                                 file("[[0, 1, 2, 0]]"),
                                 file("[[0, 1, 2, -3]]"),
                                 file("[[0, 1, 2, \"x\"]]"),
                                 file("[[0, 1, 2, null]]"),
                                 file("[[0, 1, 2, 3]]", "0"),
                                 file("[[0, 1, 2, 3]]", "[]"),
                                 std::string(R"({"mmfree_rates": 1, "devices": [{}]})"),
                                 std::string(R"({"mmfree_rates": 1, "devices": 3})")}) {
    spit(path, bad);
    const std::string said = error_of<DataError>([&] { read_rates(path); });
    EXPECT_TRUE(said.starts_with(path)) << bad << ": " << said;
    EXPECT_EQ(said.find('\n'), said.npos) << said;
  }
  write_rates(path, some_rates());
  EXPECT_EQ(read_rates(path).size(), 1u) << "what is damaged is replaced";
}

TEST(MeasuredRates, KnowEveryOpOfTheStepsThatTheyCameFrom) {
  const ComputeTarget target = choose_target("cpu", "auto", "test");
  const std::vector<Study> studies = {{64, 96, 97, 8, 2, Products::compute, 1, 1},
                                      {128, 160, 97, 8, 2, Products::int8, 1, 1}};
  std::vector<std::string> said;
  const OpRates rates = measure_rates(target, studies, [&](const std::string& line) { said.push_back(line); });
  EXPECT_EQ(said.size(), studies.size());
  EXPECT_EQ(rates.device, device_key(Device::cpu));
  EXPECT_GE(rates.beside, 1);
  for (const Study& study : studies)
    for (const auto& [name, sizes] : rehearse(config_of(study), target, Recompute::none).work)
      for (const auto& [size, calls] : sizes) {
        const auto found = rates.ops.find(name);
        ASSERT_NE(found, rates.ops.end()) << name;
        EXPECT_TRUE(std::any_of(found->second.begin(), found->second.end(),
                                [&size = size](const OpSample& s) { return s.size == size && s.seconds > 0; }))
            << name << " of " << size.amount;
      }
  EXPECT_GE(studies_of(Device::cpu).size(), 4u);
  EXPECT_GE(studies_of(Device::cuda).size(), 4u);
}

TEST(Plan, TellsTimeAndCostByRatesOfThisDevice) {
  const TempDir dir;
  spit(dir / "tiny.yaml",
       "model: {vocab_size: 97, hidden_size: 64, num_hidden_layers: 2, intermediate_size: 96}\n"
       "data: {seq_len: 100}\n"
       "train: {device: cpu, threads: 1, batch_size: 10, micro_batch_size: 5, steps: 7200}\n");
  const auto plan = [&](std::vector<std::string> more) {
    std::vector<std::string> command = {"train", dir / "tiny.yaml", "--dry-run", "--rates-file", dir / "rates.json"};
    command.insert(command.end(), more.begin(), more.end());
    Program p(command);
    EXPECT_EQ(p.wait(), 0) << p.err();
    return p.out();
  };
  EXPECT_TRUE(contains(plan({}), "\ntime        not known of ")) << plan({});
  EXPECT_TRUE(contains(plan({}), "mmfree bench --rates\n"));
  omp_set_num_threads(1);
  // Every op takes a second, and a step as long as its ops.
  const RunConfig config = load_config(dir / "tiny.yaml");
  OpRates rates;
  rates.device = device_key(Device::cpu), rates.program = MMFREE_VERSION, rates.date = "2026-11-27";
  double calls = 0;
  for (const auto& [name, sizes] : rehearse(config, rehearsal_target(config.train), Recompute::none).work)
    for (const auto& [size, count] : sizes) rates.ops[name].push_back({size, 1}), calls += count;
  write_rates(dir / "rates.json", rates);
  const std::string said = plan({"--price", "2.5"});
  double seconds = 0, hours = 0, cost = 0;
  const size_t line = said.find("\ntime        ");
  ASSERT_NE(line, said.npos) << said;
  ASSERT_EQ(3, std::sscanf(said.c_str() + line,
                           " time %lf s a step, %*s tokens/s, %*s days for 7200 steps cost %lf "
                           "device hours, %lf at 2.5 each",
                           &seconds, &hours, &cost))
      << said;
  EXPECT_NEAR(seconds, calls, 0.01 * calls) << "three digits, and samples near each other count a little";
  EXPECT_NEAR(hours, 2 * calls, 0.02 * calls);
  EXPECT_NEAR(cost, 5 * calls, 0.05 * calls);
  EXPECT_TRUE(contains(said, "by rates of " + rates.device + ", 2026-11-27")) << said;
  EXPECT_FALSE(contains(plan({}), " each\n")) << "without a price no cost";
  EXPECT_TRUE(contains(plan({"train.threads=2"}), "not known of")) << "of two threads nothing is known";
  EXPECT_TRUE(contains(plan({"train.device=cuda"}), gpu::problem().empty() ? "time " : "not known of a GPU"));
  rates.device = "GPU elsewhere";
  write_rates(dir / "rates.json", rates);
  if (!gpu::problem().empty()) {
    EXPECT_TRUE(contains(plan({"train.device=cuda"}), "by rates of GPU elsewhere"));
  }
}

TEST(DryRun, ChoosesToRecomputeOnTheCpuWhereThatSavesEnough) {
  Program program({"train", source_dir() + "/configs/50m.yaml", "--dry-run", "train.device=cpu", "train.batch_size=4",
                   "train.micro_batch_size=0", "data.seq_len=512"});
  ASSERT_EQ(program.wait(), 0) << program.err();
  const std::string said = program.out();
  EXPECT_TRUE(contains(said, "where that saves more than 0.20 GB, here 0.25 GB")) << said;
  const size_t line = said.find("train.recompute=selective");
  EXPECT_TRUE(contains(said.substr(line, said.find('\n', line) - line), "<- this configuration")) << said;
}

}  // namespace
}  // namespace mmfree
