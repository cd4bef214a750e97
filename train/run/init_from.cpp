#include "train/run/init_from.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <set>

#include "core/quantize.h"
#include "layers/parameters.h"
#include "train/run/run_folder.h"

namespace mmfree {
namespace {

/// "model.norm.weight, model.layers.*.attn_norm.weight (12)": names that differ in the number of a layer are one.
std::string summary(const std::vector<std::string>& names) {
  std::vector<std::pair<std::string, std::vector<std::string>>> groups;
  for (const std::string& name : names) {
    const std::string mark = ".layers.";
    const size_t at = name.find(mark);
    std::string pattern = name;
    if (at != std::string::npos)
      pattern.replace(at + mark.size(), name.find('.', at + mark.size()) - at - mark.size(), "*");
    const auto same = [&](const auto& group) { return group.first == pattern; };
    auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end()) group = groups.insert(group, {pattern, {}});
    group->second.push_back(name);
  }
  std::string text;
  for (const auto& [pattern, members] : groups)
    text +=
        (text.empty() ? "" : ", ") + (members.size() == 1 ? members[0] : concat(pattern, " (", members.size(), ")"));
  return text;
}

/// The changed model keys of which each alone gives parameter `name` the shape that `config` gives it; all changed ones
/// if there is no such key.
std::string keys_behind(const std::string& name, const Shape& shape, const RunConfig& config, const Model& source) {
  RunConfig before = config;
  before.model = source.config;
  std::string all, behind;
  const auto add = [](std::string& list, const ConfigChange& change) {
    list += (list.empty() ? "" : ", ") + concat(change.key, '=', change.after);
  };
  for (const ConfigChange& change : compare(before, config)) {
    add(all, change);
    try {
      const ModelConfig alone = load_config_text(to_yaml(before), "", {change.key + "=" + change.after}).model;
      for (const ParamSpec& spec : parameter_specs(alone))
        if (spec.name == name && spec.shape == shape) add(behind, change);
    } catch (const ConfigError&) {  // makes sense with others only
    }
  }
  return behind.empty() ? all : behind;
}

/// Parameter `name` of `params` where one of the two models holds the gate and the up projection in one matrix: a part
/// of the source's, or both of its. Undefined in all other cases. Adds the names that it took to `taken`.
Tensor regrouped_gate(const ParamStore& params, const std::string& name, const ParamStore& source,
                      std::set<std::string>& taken) {
  const std::string glu = name.substr(0, name.find(".mlp.") + 5);
  const std::string gate = glu + "gate_proj.weight", up = glu + "up_proj.weight", norm = glu + "gate_proj.norm.weight";
  if (name.find(".mlp.") == std::string::npos || !params.has(gate) || !source.has(gate)) return {};
  const Tensor theirs = source[gate].value();
  const int64_t inner = theirs.dim(0) / 2;
  if (params.has(up) && !source.has(up)) {
    taken.insert(gate);
    if (name == gate) return theirs.slice(0, inner);
    if (name == up) return theirs.slice(inner, theirs.dim(0));
    if (name == glu + "up_proj.norm.weight" && source.has(norm)) return source[norm].value();
  } else if (name == gate && !params.has(up) && source.has(up)) {
    const Tensor other = source[up].value();
    Tensor both({theirs.dim(0) + other.dim(0), theirs.dim(1)}, theirs.dtype());
    both.slice(0, theirs.dim(0)).copy_from(theirs);
    both.slice(theirs.dim(0), both.dim(0)).copy_from(other);
    taken.insert(up);
    return both;
  }
  return {};
}

/// The head of a source whose head multiplies by the embedding table, if `name` is a head of its own; else undefined.
Tensor tied_head(const std::string& name, const Model& source) {
  if (name != "lm_head.weight" || !source.config.tie_word_embeddings) return {};
  return (*source.params)["model.embeddings.weight"].value();
}

/// What a model that becomes ternary should know about its head; "" if nothing.
std::string about_head(const ModelConfig& config, const ModelConfig& source) {
  const auto ternary = [](const ModelConfig& c) {
    const std::vector<ProjectionSpec> all = projections(c);
    return std::any_of(all.begin(), all.end(), [](const auto& p) { return p.precision == Precision::ternary; });
  };
  const Precision head = config.layer(-1).precision_of("lm_head");
  if (ternary(source) || !ternary(config) || head == Precision::ternary) return "";
  return concat("projections become ternary, the head stays ", name_of(head),
                "; model.precision_rules=[] makes it ternary too");
}

}  // namespace

Model load_source(const TrainConfig& train) {
  std::error_code error;
  MMFREE_CHECK(MissingError, std::filesystem::exists(train.init_from, error), "train.init_from: no model at ",
               quote(train.init_from), "; expected a checkpoint, run folder, ternary export or Hugging Face folder");
  return load_model(train.init_from);
}

ModelConfig inherited_model(const TrainConfig& train, bool resume, std::optional<Model>& source) {
  const bool continues = resume || train.resume.mode != ResumeFrom::nothing;
  const std::string resolved = (std::filesystem::path(train.run_dir) / "config.resolved.yaml").string();
  if (continues && !checkpoint_steps(train.run_dir).empty() && std::filesystem::exists(resolved))
    return load_config(resolved).model;
  source.emplace(load_source(train));
  return source->config;
}

std::vector<std::string> init_parameters(ParamStore& params, const RunConfig& config, const Model& source) {
  std::map<std::string, const WeightMatrix*> exported;  // without latents
  source.lm->for_each_projection([&](const BitLinear& p) {
    if (!p.weight.defined()) exported[p.name + ".weight"] = p.matrix.get();
  });
  std::vector<std::string> fresh, unused, lines;
  std::set<std::string> taken;
  bool head_is_table = false;
  for (size_t i = 0; i < params.specs().size(); ++i) {
    const std::string& name = params.specs()[i].name;
    const Shape& shape = params.specs()[i].shape;
    Tensor other = exported.count(name) ? Tensor() : tied_head(name, source);
    head_is_table |= other.defined();
    if (!other.defined()) other = regrouped_gate(params, name, *source.params, taken);
    if (other.defined() && other.shape() == shape) {
      params.assign(i, other);
      continue;
    }
    const auto codes = exported.find(name);
    if (codes == exported.end() && !source.params->has(name)) {
      fresh.push_back(name);
      continue;
    }
    const Tensor from = codes == exported.end() ? (*source.params)[name].value()
                                                : latents_of(codes->second->ternary, concat(source.source, ": ", name));
    MMFREE_CHECK(ConfigError, from.shape() == shape, config.source, ": ", keys_behind(name, shape, config, source),
                 " does not fit train.init_from: tensor '", name, "' is ", from.shape(), " in ", source.source,
                 ", and this model needs ", shape);
    params.assign(i, from);
  }
  const auto leave = [&](const std::string& name) {
    if (!params.has(name) && !taken.count(name)) unused.push_back(name);
  };
  for (const ParamSpec& spec : source.params->specs()) leave(spec.name);
  for (const auto& [name, matrix] : exported) leave(name);
  lines.push_back(concat("starting with the weights of ", source.source, " (", source.kind, ")",
                         exported.empty() ? ""
                                          : "; it holds no latent weights: ternary ones start as codes times a "
                                            "magnitude that quantises to the same codes and scale"));
  if (head_is_table) lines.push_back("the head starts as a copy of the embedding table");
  if (const std::string head = about_head(config.model, source.config); !head.empty()) lines.push_back(head);
  if (!fresh.empty()) lines.push_back("it lacks these parameters, which start fresh: " + summary(fresh));
  if (!unused.empty()) lines.push_back("this model lacks these parameters of it: " + summary(unused));
  return lines;
}

Tensor latents_of(const TernaryTensor& w, const std::string& name) {
  Tensor latents({w.rows(), w.cols}, DType::f32);
  ternary_dequantise(w, latents, false);
  float* x = latents.mut<float>();
  const int64_t nonzero = latents.size() - std::count(x, x + latents.size(), 0.0f);
  if (nonzero == 0) return latents;
  const float scale = *w.scale.data<float>();
  const double sum = double(scale) * double(latents.size());  // what the magnitudes must add up to
  auto low = float(sum / double(nonzero));
  MMFREE_CHECK(DataError, scale >= float(kMinScale) && std::isfinite(low), name, ": has scale ", scale, " and ",
               nonzero, " non-zero codes; quantisation of finite weights gives no such scale");
  if (double(low) * double(nonzero) > sum) low = std::nextafter(low, 0.0f);
  const float high = std::nextafter(low, std::numeric_limits<float>::max());
  auto raised = std::llround((sum - double(low) * double(nonzero)) / (double(high) - double(low)));
  for (int64_t i = 0; i < latents.size(); ++i)
    if (x[i] != 0) x[i] *= raised-- > 0 ? high : low;
  return latents;
}

}  // namespace mmfree
