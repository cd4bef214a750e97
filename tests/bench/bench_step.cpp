// Whole training steps on random tokens:  bench_step SIZE BATCH [key=value ...]
//   SIZE is 8M, 50M, 370M or 1.3B; keys: seq (2048), steps (20), warmup (5), recompute (auto), keep_blocks (1), micro
//   (BATCH), compute (bf16), device (cuda), capture (1), reset (0: data.reset_state, a document every 300 tokens),
//   carry (0: data.carry_state), backward (compute; or int8), arch (matmulfree; transformer: Transformer++ of the same
//   sizes, heads of 64, bf16 products), profile (0; 1: on the CPU a table of where the steps' time goes, op by op; for
//   a GPU see timeline.py and profile.py), leaves (0: the number of ranks), shard (none).
// Started as several ranks, each has BATCH sequences, and rank 0 prints the tokens of all.
// Prints RESULT {json}: tokens per second from the median step, each step timed on its own with the device idle before
// and after, peak memory (arena and workspace) in decimal GB, loss and gradient norm of the last step in full, so that
// two programs' bits can be compared, and what the start took: start_s, until the first two steps were made (the second
// records), and first_ms and second_ms of it; faults, the page faults of a step after the warm-up. With profile=1 also
// floor_ms: what the products of a step take at the best measured rates and its other ops at the rate of a copy; see
// step_profile.h.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/gpu.h"
#include "core/ranks/group.h"
#include "layers/parameters.h"
#include "optim/optimizer.h"
#include "tests/bench/sizes.h"
#include "tests/bench/step_profile.h"
#include "train/run/compute_target.h"
#include "train/run/recompute.h"
#include "train/run/shards.h"
#include "train/run/step.h"

using namespace mmfree;

namespace {

/// Transformer++: RMSNorm, rotary positions, SwiGLU.
void make_transformer(ModelConfig& c) {
  c.token = TokenKind::attention;
  c.heads = c.hidden_size / 64;
  c.precision = Precision::bf16;
  c.inner_norm = false;
  c.fused_gate = false;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

using Clock = std::chrono::steady_clock;
/// Page faults of this process so far that needed no reading.
long page_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

int run(int argc, char** argv) {
  const auto program = Clock::now();
  std::map<std::string, std::string> keys = {
      {"seq", "2048"},  {"steps", "20"},     {"warmup", "5"},        {"recompute", "auto"},
      {"micro", "0"},   {"compute", "bf16"}, {"device", "cuda"},     {"capture", "1"},
      {"reset", "0"},   {"carry", "0"},      {"arch", "matmulfree"}, {"backward", "compute"},
      {"profile", "0"}, {"leaves", "0"},     {"shard", "none"},      {"keep_blocks", "1"}};
  if (argc < 3 || !kSizes.count(argv[1]))
    return std::fprintf(stderr, "usage: bench_step SIZE BATCH [key=value ...]\n"), 2;
  for (int i = 3; i < argc; ++i) {
    const std::string text = argv[i];
    const std::string key = text.substr(0, text.find('='));
    if (!keys.count(key)) return std::fprintf(stderr, "unknown key %s\n", key.c_str()), 2;
    keys[key] = text.substr(text.find('=') + 1);
  }
  if (keys["arch"] != "matmulfree" && keys["arch"] != "transformer")
    return std::fprintf(stderr, "arch is %s, expected matmulfree or transformer\n", keys["arch"].c_str()), 2;
  const Size& size = kSizes.at(argv[1]);
  const std::unique_ptr<Group> group = Group::join(detect_launch());
  RunConfig config;
  config.model.hidden_size = size.width;
  config.model.num_hidden_layers = size.layers;
  config.model.intermediate_size = size.inner;
  config.model.vocab_size = size.vocabulary;
  if (keys["arch"] == "transformer") make_transformer(config.model);
  config.data.seq_len = std::stoll(keys["seq"]);
  config.train.batch_size = std::stoll(argv[2]) * group->size();
  config.train.leaves = std::stoll(keys["leaves"]);
  if (config.train.leaves == 0) config.train.leaves = group->size();
  for (const Shard shard : kAllShards)
    if (keys["shard"] == name_of(shard)) config.train.shard = shard;
  config.train.keep_blocks = std::stoll(keys["keep_blocks"]);
  config.train.micro_batch_size = std::stoll(keys["micro"]);
  config.data.reset_state = keys["reset"] == "1";
  config.data.carry_state = keys["carry"] == "1";
  config.train.steps = 1 << 20;
  config.train.capture = keys["capture"] == "1";
  config.optim.lr = 1e-3;
  const ComputeTarget target = choose_target(keys["device"], keys["compute"], "device", group->local_rank());
  if (target.device == Device::cuda) group->use_gpu();
  Recompute recompute = recompute_of(config, target.device);
  for (Recompute r : kAllRecomputes)
    if (keys["recompute"] == name_of(r)) recompute = r;
  ParamStore params(parameter_specs(config.model), DType::f32, target.device,
                    divide(config.model, *group, config.train.shard));
  params.initialise(1);
  const Products ternary = keys["backward"] == "int8" ? Products::int8 : Products::compute;
  LM lm(params, config.model, target.compute, backward_products(target, ternary));
  const auto optimizer = make_optimizer(params, config.optim);
  lm.requantise();
  StepRunner runner(lm, params, *optimizer, config, recompute, *group);
  runner.open_exchange();
  std::mt19937 random(1);
  const auto fill = [&](Tensor& device_tokens) {
    Tensor tokens(device_tokens.shape(), DType::i32);
    for (int64_t i = 0; i < tokens.size(); ++i) tokens.mut<int32_t>()[i] = int32_t(random() % size.vocabulary);
    device_tokens.copy_from(tokens);
  };
  fill(runner.ids());
  fill(runner.targets());
  if (runner.starts().defined()) {
    Tensor starts(runner.starts().shape(), DType::u8);
    for (int64_t i = 0; i < starts.size(); ++i) starts.mut<uint8_t>()[i] = random() % 300 == 0;
    runner.starts().copy_from(starts);
  }
  const bool gpu = target.device == Device::cuda;
  const auto wait = [&] {
    if (gpu) gpu::synchronize();
  };
  const int64_t warmup = std::stoll(keys["warmup"]), steps = std::stoll(keys["steps"]);
  const int64_t targets = config.train.batch_size * config.data.seq_len;
  std::vector<double> times, busy, start;
  double start_s = 0;
  StepProfile profile(size.vocabulary);
  long faults = 0;
  for (int64_t s = 0; s < warmup + steps; ++s) {
    wait();
    if (gpu && s == warmup) gpu::profile(true);
    if (s == warmup) faults = page_faults();
    if (s == warmup && !gpu && keys["profile"] == "1") profile.start();
    const auto begin = Clock::now();
    const std::clock_t used = std::clock();
    runner.launch(s, targets);
    wait();
    if (s >= warmup)
      times.push_back(seconds_since(begin)), busy.push_back(double(std::clock() - used) / CLOCKS_PER_SEC);
    if (s < 2) start.push_back(seconds_since(begin)), start_s = seconds_since(program);
  }
  if (gpu) gpu::profile(false);
  faults = (page_faults() - faults) / steps;
  op_watch = nullptr;
  ArenaStats memory = Arena::current(target.device)->stats();
  if (const auto other = group->exchange_arena(target.device); other != Arena::current(target.device))
    memory.peak += other->stats().peak, memory.reserved += other->stats().reserved;
  double floor = 0;
  if (!gpu && keys["profile"] == "1")
    floor = profile.print(steps, std::accumulate(times.begin(), times.end(), 0.0),
                          measure_rates(target.products == Products::bf16));
  const StepResult last = *runner.collect();
  if (group->rank() != 0) return 0;
  const double t = median(times), tokens = double(targets);
  const double peak = double(memory.peak + (gpu ? gpu::workspace_bytes() : 0));
  const double reserved = double(memory.reserved);
  std::printf(
      "RESULT {\"size\": \"%s\", \"arch\": \"%s\", \"params\": %lld, \"batch\": %lld, \"seq\": %lld, \"device\": "
      "\"%s\", \"compute\": "
      "\"%s\", \"recompute\": \"%s\", \"keep_blocks\": %lld, \"captured\": %s, \"ms\": %.2f, \"ms_min\": %.2f, "
      "\"ms_max\": %.2f, "
      "\"cpu_ms_min\": %.2f, "
      "\"tokens_per_s\": %.0f, \"peak_GB\": %.2f, \"reserved_GB\": %.2f, \"loss\": %.17g, \"grad_norm\": %.17g, "
      "\"skipped\": %d, \"micro\": "
      "%lld, \"ranks\": %d, \"leaves\": %lld, \"shard\": \"%s\", "
      "\"start_s\": %.2f, \"first_ms\": %.2f, \"second_ms\": %.2f, \"faults\": %ld, \"floor_ms\": %.2f}\n",
      argv[1], keys["arch"].c_str(), static_cast<long long>(config.model.parameter_count()),
      static_cast<long long>(config.train.batch_size), static_cast<long long>(config.data.seq_len), target.name.c_str(),
      name_of(target.compute), name_of(recompute), static_cast<long long>(config.train.keep_blocks),
      config.train.capture && gpu ? "true" : "false", t * 1e3, *std::min_element(times.begin(), times.end()) * 1e3,
      *std::max_element(times.begin(), times.end()) * 1e3, *std::min_element(busy.begin(), busy.end()) * 1e3,
      tokens / t, peak / 1e9, reserved / 1e9, last.loss, last.report.grad_norm, int(last.report.skipped),
      static_cast<long long>(config.train.micro_batch()), group->size(), static_cast<long long>(config.train.leaves),
      name_of(config.train.shard), start_s, start[0] * 1e3, start.back() * 1e3, faults, floor * 1e3);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_step: %s\n", e.what());
    return 1;
  }
}
