#include "train/formats/architecture.h"

#include <algorithm>
#include <cctype>
#include <optional>

namespace mmfree {
namespace {

/// The number that `*` in `pattern` stands for in `name`, or nullopt if `name` does not match. A pattern without `*`
/// matches only itself, with "".
std::optional<std::string> match(const std::string& pattern, const std::string& name) {
  const size_t star = pattern.find('*');
  if (star == std::string::npos) return pattern == name ? std::optional<std::string>("") : std::nullopt;
  const std::string head = pattern.substr(0, star), tail = pattern.substr(star + 1);
  if (name.size() <= head.size() + tail.size() || !name.starts_with(head) || !name.ends_with(tail)) return std::nullopt;
  const std::string layer = name.substr(star, name.size() - head.size() - tail.size());
  return std::all_of(layer.begin(), layer.end(), [](unsigned char c) { return std::isdigit(c); })
             ? std::optional<std::string>(layer)
             : std::nullopt;
}

std::string filled(const std::string& pattern, const std::string& layer) {
  const size_t star = pattern.find('*');
  return star == std::string::npos ? pattern : pattern.substr(0, star) + layer + pattern.substr(star + 1);
}

/// The entry of the table for our tensor `name`, and the number of its layer. A tensor without an entry maps to itself.
std::pair<TensorMap, std::string> find_ours(const Architecture& a, const std::string& name) {
  for (const TensorMap& map : a.tensors)
    if (const auto layer = match(map.ours, name)) return {map, *layer};
  return {{name, {name}}, ""};
}

/// The names of Hugging Face's Llama, Mistral and BitNet. A BitLinear's norm is called rms_norm there.
std::vector<TensorMap> llama_tensors(bool fused_gate) {
  std::vector<TensorMap> all = {
      {"model.embeddings.weight", {"model.embed_tokens.weight"}},
      {"model.layers.*.attn_norm.weight", {"model.layers.*.input_layernorm.weight"}},
      {"model.layers.*.mlp_norm.weight", {"model.layers.*.post_attention_layernorm.weight"}},
      {"model.layers.*.attn.sub_norm.weight", {"model.layers.*.self_attn.attn_sub_norm.weight"}},
      {"model.layers.*.mlp.sub_norm.weight", {"model.layers.*.mlp.ffn_sub_norm.weight"}},
      {"lm_head.norm.weight", {"lm_head.rms_norm.weight"}}};
  const std::string layer = "model.layers.*.";
  for (const std::string name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
    all.push_back({layer + "attn." + name + ".weight", {layer + "self_attn." + name + ".weight"}});
    all.push_back({layer + "attn." + name + ".norm.weight", {layer + "self_attn." + name + ".rms_norm.weight"}});
  }
  for (const std::string name : {"gate_proj", "up_proj", "down_proj"})
    all.push_back({layer + "mlp." + name + ".norm.weight", {layer + "mlp." + name + ".rms_norm.weight"}});
  if (fused_gate)
    all.push_back({layer + "mlp.gate_proj.weight", {layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight"}});
  return all;
}

}  // namespace

const Architecture& hgrn_bit_architecture() {
  static const Architecture a{"hgrn_bit", "HGRNBitForCausalLM", {}};
  return a;
}

const Architecture& own_architecture() {
  static const Architecture a{"mmfree", "MMFreeForCausalLM", {}};
  return a;
}

const Architecture& llama_architecture(const std::string& model_type, bool fused_gate) {
  static const std::vector<Architecture> all = [] {
    std::vector<Architecture> a;
    for (const bool fused : {false, true})
      for (const auto& [type, name] :
           {std::pair{"llama", "LlamaForCausalLM"}, {"mistral", "MistralForCausalLM"}, {"bitnet", "BitNetForCausalLM"}})
        a.push_back({type, name, llama_tensors(fused)});
    return a;
  }();
  for (size_t i = fused_gate ? all.size() / 2 : 0; i < all.size(); ++i)
    if (all[i].model_type == model_type) return all[i];
  throw Error("architecture: no table for model_type " + quote(model_type));
}

NamedShapes foreign_tensors(const Architecture& a, const NamedShapes& ours) {
  NamedShapes all;
  for (const auto& [name, shape] : ours) {
    const auto [map, layer] = find_ours(a, name);
    const int64_t parts = int64_t(map.theirs.size());
    MMFREE_CHECK(DataError, parts == 1 || (shape.rank() == 2 && shape[0] % parts == 0), "tensor '", name, "' ", shape,
                 " cannot be split into ", parts);
    const Shape part = parts == 1 ? shape : Shape{shape[0] / parts, shape[1]};
    for (const std::string& theirs : map.theirs) all.emplace_back(filled(theirs, layer), part);
  }
  return all;
}

Tensor from_foreign(const Architecture& a, const std::string& name,
                    const std::function<Tensor(const std::string&)>& read) {
  const auto [map, layer] = find_ours(a, name);
  if (map.theirs.size() == 1) return read(filled(map.theirs[0], layer));
  std::vector<Tensor> parts;
  int64_t rows = 0;
  for (const std::string& theirs : map.theirs) {
    parts.push_back(read(filled(theirs, layer)));
    rows += parts.back().dim(0);
  }
  const Tensor& first = parts[0];
  Tensor whole({rows, first.dim(1)}, first.dtype());
  int64_t begin = 0;
  for (const Tensor& part : parts) {
    whole.slice(begin, begin + part.dim(0)).copy_from(part);
    begin += part.dim(0);
  }
  return whole;
}

Tensor to_foreign(const Architecture& a, const std::string& name,
                  const std::function<Tensor(const std::string&)>& read) {
  for (const TensorMap& map : a.tensors)
    for (size_t i = 0; i < map.theirs.size(); ++i) {
      const auto layer = match(map.theirs[i], name);
      if (!layer) continue;
      const Tensor whole = read(filled(map.ours, *layer));
      if (map.theirs.size() == 1) return whole;
      const int64_t rows = whole.dim(0) / int64_t(map.theirs.size());
      return whole.slice(int64_t(i) * rows, int64_t(i + 1) * rows);
    }
  return read(name);
}

}  // namespace mmfree
