#include "layers/parameters.h"

#include <cmath>
#include <set>

namespace mmfree {
namespace {

class SpecList {
 public:
  void vector(const std::string& name, int64_t n, double value) {
    specs.push_back({name, {n}, {Init::constant, value}, ParamRole::vector});
  }
  void projection(const std::string& name, int64_t out, int64_t in, Init init, ParamRole role = ParamRole::matrix) {
    specs.push_back({name + ".weight", {out, in}, init, role});
    vector(name + ".norm.weight", in, 1);
  }
  std::vector<ParamSpec> specs;
};

}  // namespace

std::vector<ParamSpec> parameter_specs(const ModelConfig& c) {
  const int64_t d = c.hidden_size, inner = c.intermediate(), layers = c.num_hidden_layers;
  const Init normal{Init::normal, c.initializer_range};
  const Init xavier{Init::uniform, std::pow(2, -2.5) * std::sqrt(6.0 / double(2 * d))};
  const Init rescaled{Init::normal, c.initializer_range / std::sqrt(2.0 * double(layers))};
  SpecList list;
  list.specs.push_back({"model.embeddings.weight", {c.vocab_size, d}, normal, ParamRole::embedding});
  if (c.use_lower_bound)
    list.specs.push_back({"model.lower_bounds", {layers, d}, {Init::constant, 0}, ParamRole::vector});
  for (int64_t l = 0; l < layers; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    list.vector(layer + "attn_norm.weight", d, 1);
    for (const char* p : {"i_proj", "f_proj", "g_proj", "o_proj"}) list.projection(layer + "attn." + p, d, d, xavier);
    if (c.gate_order != GateOrder::paper) list.vector(layer + "attn.g_norm.weight", d, 1);
    list.vector(layer + "mlp_norm.weight", d, 1);
    list.projection(layer + "mlp.gate_proj", 2 * inner, d, normal);
    list.projection(layer + "mlp.down_proj", d, inner, rescaled);
  }
  list.vector("model.norm.weight", d, 1);
  list.projection("lm_head", c.vocab_size, d, normal, ParamRole::head);
  return list.specs;
}

std::vector<std::pair<std::string, Precision>> projections(const ModelConfig& c) {
  std::vector<std::pair<std::string, Precision>> list;
  for (int l = 0; l < int(c.num_hidden_layers); ++l)
    for (const char* p :
         {"attn.i_proj", "attn.f_proj", "attn.g_proj", "attn.o_proj", "mlp.gate_proj", "mlp.down_proj"}) {
      const std::string path = p;
      list.emplace_back(concat("model.layers.", l, '.', path), c.precision_of(l, path.substr(path.find('.') + 1)));
    }
  list.emplace_back("lm_head", c.precision_of(-1, "lm_head"));
  return list;
}

std::vector<ParamSpec> unpacked_specs(const ModelConfig& c) {
  std::set<std::string> packed;
  for (const auto& [name, precision] : projections(c))
    if (precision == Precision::ternary) packed.insert(name + ".weight");
  std::vector<ParamSpec> kept;
  for (ParamSpec& spec : parameter_specs(c))
    if (!packed.count(spec.name)) kept.push_back(std::move(spec));
  return kept;
}

}  // namespace mmfree
