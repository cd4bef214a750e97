// How far rounding moves the gradients of a whole model:  bench_gradient [key=value ...]
//   keys: width (512), layers (12), inner (0: by the rule), vocab (1000), seq (256), batch (2), seed (1), device
//   (cuda), precision (ternary; bf16 and f32 leave out the codes, which a rounding of the forward pass can flip).
// Takes the gradients in f64 on the CPU, then with the same weights and tokens in f32 on `device` and, on a GPU, with
// bf16 activations. Prints RESULT {json} for each: |g − g64| / |g64| and the cosine between both, of all parameters
// together and of the embedding, each layer, and the head with the last norm.
#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "core/gpu.h"
#include "core/ops/elementwise.h"
#include "layers/lm.h"
#include "layers/parameters.h"
#include "train/run/compute_target.h"

using namespace mmfree;

namespace {

struct Setting {
  ModelConfig model;
  int64_t seq = 0, batch = 0;
  uint64_t seed = 0;
};

Tensor random_ids(const Setting& s, std::mt19937& random) {
  Tensor ids({s.batch * s.seq}, DType::i32);
  for (int64_t i = 0; i < ids.size(); ++i) ids.mut<int32_t>()[i] = int32_t(random() % uint32_t(s.model.vocab_size));
  return ids;
}

struct Gradients {
  std::vector<Tensor> of;  ///< f64 on the host, one per parameter
  double loss = 0;
};

Gradients gradients(const Setting& s, DType master, DType compute, Device device) {
  ParamStore params(parameter_specs(s.model), master, device);
  params.initialise(s.seed);
  const LM lm(params, s.model, compute);
  std::mt19937 random{uint32_t(s.seed)};
  const Tensor ids = random_ids(s, random).to(device), targets = random_ids(s, random).to(device);
  params.begin_gradients();
  Tape tape;
  const Var loss = lm.loss(ids, targets, s.batch, 1.0 / double(ids.size()));
  tape.backward(loss);
  params.finish_gradients();
  Gradients g;
  g.loss = *loss.value().to(Device::cpu).data<double>();
  for (size_t i = 0; i < params.specs().size(); ++i) {
    g.of.emplace_back(params.specs()[i].shape, DType::f64);
    cast(params.view(params.grads(), i).to(Device::cpu), g.of.back());
  }
  return g;
}

/// How a vector differs from another, gathered part by part.
struct Difference {
  double error = 0, dot = 0, here = 0, there = 0;  ///< sums of squares and products
  void add(const Tensor& g, const Tensor& exact) {
    for (int64_t i = 0; i < g.size(); ++i) {
      const double a = g.data<double>()[i], b = exact.data<double>()[i];
      error += (a - b) * (a - b), dot += a * b, here += a * a, there += b * b;
    }
  }
  std::string json() const {
    char text[64];
    std::snprintf(text, sizeof text, "[%.4e, %.8f]", std::sqrt(error / there), dot / std::sqrt(here * there));
    return text;
  }
};

void compare(const Setting& s, const char* run, const Gradients& g, const Gradients& exact) {
  Difference total, embedding, head;
  std::vector<Difference> layers(size_t(s.model.num_hidden_layers));
  const std::vector<ParamSpec> specs = parameter_specs(s.model);
  const std::string layer = "model.layers.";
  for (size_t i = 0; i < specs.size(); ++i) {
    const std::string& name = specs[i].name;
    Difference& part = name.starts_with(layer)                ? layers.at(std::stoul(name.substr(layer.size())))
                       : name.starts_with("model.embeddings") ? embedding
                                                              : head;
    part.add(g.of[i], exact.of[i]);
    total.add(g.of[i], exact.of[i]);
  }
  std::string each;
  for (const Difference& d : layers) each += (each.empty() ? "" : ", ") + d.json();
  std::printf(
      "RESULT {\"run\": \"mmfree %s\", \"precision\": \"%s\", \"width\": %lld, \"tokens\": %lld, \"loss\": %.6f, "
      "\"loss64\": %.6f, \"total\": %s, \"embedding\": %s, \"head\": %s, \"layers\": [%s]}\n",
      run, name_of(s.model.precision), static_cast<long long>(s.model.hidden_size),
      static_cast<long long>(s.batch * s.seq), g.loss, exact.loss, total.json().c_str(), embedding.json().c_str(),
      head.json().c_str(), each.c_str());
  std::fflush(stdout);
}

int run(int argc, char** argv) {
  std::map<std::string, std::string> keys = {{"width", "512"},  {"layers", "12"},   {"inner", "0"},
                                             {"vocab", "1000"}, {"seq", "256"},     {"batch", "2"},
                                             {"seed", "1"},     {"device", "cuda"}, {"precision", "ternary"}};
  for (int i = 1; i < argc; ++i) {
    const std::string text = argv[i], key = text.substr(0, text.find('='));
    if (!keys.count(key)) return std::fprintf(stderr, "bench_gradient: unknown key %s\n", key.c_str()), 2;
    keys[key] = text.substr(text.find('=') + 1);
  }
  Setting s;
  s.model.hidden_size = std::stoll(keys["width"]);
  s.model.num_hidden_layers = std::stoll(keys["layers"]);
  s.model.intermediate_size = std::stoll(keys["inner"]);
  s.model.vocab_size = std::stoll(keys["vocab"]);
  for (Precision p : {Precision::ternary, Precision::bf16, Precision::f32})
    if (keys["precision"] == name_of(p)) s.model.precision = p;
  MMFREE_CHECK(UsageError, keys["precision"] == name_of(s.model.precision), "precision: expected ternary, bf16 or f32");
  s.seq = std::stoll(keys["seq"]);
  s.batch = std::stoll(keys["batch"]);
  s.seed = std::stoull(keys["seed"]);
  const ComputeTarget target = choose_target(keys["device"], "f32", "device");
  const Gradients exact = gradients(s, DType::f64, DType::f64, Device::cpu);
  compare(s, concat("f32 on ", target.name).c_str(), gradients(s, DType::f32, DType::f32, target.device), exact);
  if (target.device == Device::cuda)
    compare(s, concat("bf16 on ", target.name).c_str(), gradients(s, DType::f32, DType::bf16, target.device), exact);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_gradient: %s\n", e.what());
    return 1;
  }
}
