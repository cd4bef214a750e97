#include "layers/parameters.h"

#include <algorithm>
#include <set>

#include "layers/block.h"

namespace mmfree {
namespace {

class SpecVisitor : public DeclarationVisitor {
 public:
  void table(const std::string& name, Var&, const Shape& shape, Init init) {
    specs.push_back({prefix_ + name, shape, init, ParamRole::embedding});
  }
  void vector(const std::string& name, Var&, const Shape& shape, double start) {
    specs.push_back({prefix_ + name, shape, {Init::constant, start}, ParamRole::vector});
  }
  void projection(const std::string& name, BitLinear&, const MatrixSpec& m, const LayerConfig& c) {
    const std::string path = prefix_ + name;
    if (!m.tied) specs.push_back({path + ".weight", m.shape(), m.init, m.role});
    if (c.inner_norm_of(name)) specs.push_back({path + ".norm.weight", {m.in}, {Init::constant, 1}, ParamRole::vector});
    projections.push_back({path, name, m, c.precision_of(name)});
  }
  std::vector<ParamSpec> specs;
  std::vector<ProjectionSpec> projections;
};

SpecVisitor visited(const ModelConfig& c) {
  SpecVisitor v;
  ModelParts(c).visit(v, c);
  return v;
}

}  // namespace

std::vector<ParamSpec> parameter_specs(const ModelConfig& c) { return visited(c).specs; }

std::vector<ProjectionSpec> projections(const ModelConfig& c) { return visited(c).projections; }

std::vector<std::string> projection_names(const ModelConfig& c) {
  std::vector<std::string> names;
  for (const ProjectionSpec& p : projections(c))
    if (std::find(names.begin(), names.end(), p.name) == names.end()) names.push_back(p.name);
  return names;
}

std::vector<ParamSpec> unpacked_specs(const ModelConfig& c) {
  std::set<std::string> packed;
  for (const ProjectionSpec& p : projections(c))
    if (p.precision == Precision::ternary) packed.insert(p.path + ".weight");
  std::vector<ParamSpec> kept = parameter_specs(c);
  std::erase_if(kept, [&](const ParamSpec& spec) { return packed.count(spec.name) != 0; });
  return kept;
}

double training_flops(const ModelConfig& c, int64_t steps) {
  double forward = 2 * double(c.matrix_parameter_count());
  for (int l = 0; l < int(c.num_hidden_layers); ++l) {
    const LayerConfig layer = c.layer(l);
    forward += std::visit([&](const auto& mixer) { return mixer.mixing_flops(layer, steps); },
                          make_mixer<TokenMixer>(layer.token, layer));
  }
  return 3 * forward;
}

int64_t ModelConfig::parameter_count() const {
  int64_t n = 0;
  for (const ParamSpec& spec : parameter_specs(*this)) n += spec.shape.size();
  return n;
}

int64_t ModelConfig::matrix_parameter_count() const {
  int64_t n = 0;
  for (const ProjectionSpec& p : projections(*this)) n += p.matrix.shape().size();
  return n;
}

}  // namespace mmfree
