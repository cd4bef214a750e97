// Generation by the engine on a GPU, with random weights:  bench_decode [SIZE [key=value ...]]
//   SIZE is 8M, 50M, 370M (the default) or 1.3B; keys: tokens (512), temperature (0.8), top_p (0.95), top_k (0), rounds
//   (5), captured (1), only (0: all; else the number of sequences or of the prompt's tokens that is measured).
// Prints a RESULT {json} per line. decode: tokens per second of 1, 64 and 256 sequences from the first chosen token to
// the last, sampling on the device and reading by the host included, the median of the rounds and their spread; and µs
// of a step per dependency. prefill: 2,048 tokens in one call, beside the model's own
// forward pass in bf16 with the head at the last position and at every one (as in training).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "core/gpu.h"
#include "core/rng.h"
#include "layers/decode/engine.h"
#include "layers/parameters.h"
#include "tests/bench/sizes.h"

using namespace mmfree;

namespace {

constexpr int64_t kPrompt = 2048;  // tokens

using Clock = std::chrono::steady_clock;
double seconds(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

struct Spread {
  double median, least, most;
  explicit Spread(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    median = v[v.size() / 2], least = v.front(), most = v.back();
  }
};

std::vector<int32_t> random_tokens(int64_t n, int64_t vocabulary, uint64_t seed) {
  const RandomStream random(seed, 0, "ids");
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(int32_t(random.uniform(uint64_t(i)) * double(vocabulary)));
  return ids;
}

void bench_batch(const LM& lm, int64_t batch, int64_t rounds, int64_t tokens, SampleSettings settings, bool captured) {
  Engine engine(lm, {.slots = batch, .context = tokens + 32});
  std::vector<std::vector<int32_t>> prompts;
  for (int64_t b = 0; b < batch; ++b) prompts.push_back(random_tokens(16, lm.config().vocab_size, uint64_t(b)));
  std::vector<EngineInput> inputs;
  std::vector<SampleSettings> all;
  for (int64_t b = 0; b < batch; ++b) {
    inputs.push_back({b, prompts[size_t(b)]});
    settings.request = uint64_t(b);
    all.push_back(settings);
  }
  std::vector<double> rates;
  for (int64_t round = -1; round < rounds; ++round) {
    int64_t steps = 0;
    Clock::time_point first, last;
    engine.generate(
        inputs, all, tokens,
        [&](std::span<const int32_t>) {
          last = Clock::now();
          if (steps++ == 0) first = last;
          return true;
        },
        captured);
    if (round >= 0) rates.push_back(double(batch * (tokens - 1)) / seconds(first, last));
  }
  const Spread s(rates);
  // What waits for what: few rows, four phases a layer, the head and the sampling; many, norms and products one by one.
  const int64_t layers = lm.config().num_hidden_layers, waits = (batch <= 4 ? 4 : batch < 96 ? 8 : 9) * layers + 4;
  const double step = 1e6 * double(batch) / s.median;
  std::printf(
      "RESULT {\"decode\": %lld, \"tokens_per_s\": %.0f, \"least\": %.0f, \"most\": %.0f, \"step_us\": %.1f, "
      "\"dependencies\": %lld, \"us_each\": %.2f, \"engine_mb\": %.0f}\n",
      static_cast<long long>(batch), s.median, s.least, s.most, step, static_cast<long long>(waits),
      step / double(waits), double(engine.bytes()) * 1e-6);
  std::fflush(stdout);
}

template <class Work>
Spread timed(int64_t rounds, Work&& work) {
  std::vector<double> times;
  for (int64_t round = -2; round < rounds; ++round) {
    gpu::synchronize();
    const auto begin = Clock::now();
    work();
    gpu::synchronize();
    if (round >= 0) times.push_back(seconds(begin, Clock::now()));
  }
  return Spread(times);
}

void bench_prefill(const LM& lm, const LM& trained, int64_t rounds) {
  const std::vector<int32_t> ids = random_tokens(kPrompt, lm.config().vocab_size, 7);
  const Tensor device = Tensor::from({kPrompt}, ids.data()).to(Device::cuda);
  Engine engine(lm, {.slots = 1, .context = kPrompt, .chunk = kPrompt});
  const Spread ours = timed(rounds, [&] {
    engine.reset(0);
    engine.prefill(0, ids);
  });
  const Spread last = timed(rounds, [&] { trained.logits_at(device, 1, {{kPrompt - 1, kPrompt}}); });
  const Spread all = timed(rounds, [&] { trained.nll(device, device, 1); });
  std::printf(
      "RESULT {\"prefill\": %lld, \"tokens_per_s\": %.0f, \"ms\": %.2f, \"least_ms\": %.2f, \"most_ms\": %.2f, "
      "\"forward_last_ms\": %.2f, \"forward_ms\": %.2f, \"of_forward_last\": %.3f, \"of_forward\": %.3f}\n",
      static_cast<long long>(kPrompt), double(kPrompt) / ours.median, 1e3 * ours.median, 1e3 * ours.least,
      1e3 * ours.most, 1e3 * last.median, 1e3 * all.median, last.median / ours.median, all.median / ours.median);
}

int run(int argc, char** argv) {
  const std::string size = argc > 1 ? argv[1] : "370M";
  std::map<std::string, double> keys = {{"tokens", 512}, {"temperature", 0.8}, {"top_p", 0.95}, {"top_k", 0},
                                        {"rounds", 5},   {"captured", 1},      {"only", 0}};
  for (int i = 2; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if (equals == std::string::npos || !keys.count(argument.substr(0, equals)))
      return std::fprintf(stderr, "bench_decode: unknown argument %s\n", argv[i]), 2;
    keys[argument.substr(0, equals)] = std::stod(argument.substr(equals + 1));
  }
  if (!kSizes.count(size)) return std::fprintf(stderr, "usage: bench_decode [SIZE [key=value ...]]\n"), 2;
  const Size s = kSizes.at(size);
  ModelConfig c;
  c.hidden_size = s.width, c.num_hidden_layers = s.layers, c.intermediate_size = s.inner, c.vocab_size = s.vocabulary;
  ParamStore params(parameter_specs(c), DType::f32, Device::cuda);
  params.initialise(1);
  const LM lm(params, c), trained(params, c, DType::bf16);
  std::printf("%s on %s\n", size.c_str(), gpu::info().name.c_str());
  const SampleSettings settings{
      .temperature = keys["temperature"], .top_k = int64_t(keys["top_k"]), .top_p = keys["top_p"]};
  const auto measured = [&](int64_t what) { return keys["only"] == 0 || keys["only"] == double(what); };
  for (int64_t batch : {1, 64, 256})
    if (measured(batch))
      bench_batch(lm, batch, int64_t(keys["rounds"]), int64_t(keys["tokens"]), settings, keys["captured"] != 0);
  if (measured(kPrompt)) bench_prefill(lm, trained, 10);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_decode: %s\n", e.what());
    return 1;
  }
}
