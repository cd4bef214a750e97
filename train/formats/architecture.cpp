#include "train/formats/architecture.h"

#include <algorithm>
#include <cctype>
#include <cstring>
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

int64_t head_count(HeadRows which, const ModelConfig& c, const std::string& layer) {
  const LayerConfig l = c.layer(layer.empty() ? -1 : std::stoi(layer));
  if (which == HeadRows::none) return 0;
  return which == HeadRows::heads || l.kv_heads == 0 ? l.heads : l.kv_heads;
}

/// Reorders the rows of each of `heads` heads between the two layouts of TensorMap::permute: to ours (`to_pairs`) or to
/// theirs.
Tensor permuted(const Tensor& from, int64_t heads, bool to_pairs) {
  if (heads == 0) return from;
  const int64_t rows = from.dim(0), width = rows / heads, row_bytes = from.bytes() / rows;
  MMFREE_CHECK(DataError, rows % heads == 0 && width % 2 == 0, "tensor ", from.describe(), ": its rows are not ", heads,
               " heads of even width");
  Tensor to(from.shape(), from.dtype());
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < width / 2; ++i)
      for (int64_t j = 0; j < 2; ++j) {
        const int64_t pair = h * width + 2 * i + j, half = h * width + j * (width / 2) + i;
        std::memcpy(to.raw_mut() + (to_pairs ? pair : half) * row_bytes,
                    from.raw() + (to_pairs ? half : pair) * row_bytes, size_t(row_bytes));
      }
  return to;
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

NamedShapes foreign_tensors(const Architecture& a, const NamedShapes& ours) {
  NamedShapes all;
  for (const auto& [name, shape] : ours) {
    const auto [map, layer] = find_ours(a, name);
    const int64_t parts = int64_t(map.theirs.size());
    MMFREE_CHECK(DataError, shape[0] % parts == 0, "tensor '", name, "' ", shape, " cannot be split into ", parts);
    const Shape part = shape.rank() == 1 ? Shape{shape[0] / parts} : Shape{shape[0] / parts, shape[1]};
    for (const std::string& theirs : map.theirs) all.emplace_back(filled(theirs, layer), part);
  }
  return all;
}

Tensor from_foreign(const Architecture& a, const ModelConfig& config, const std::string& name,
                    const std::function<Tensor(const std::string&)>& read) {
  const auto [map, layer] = find_ours(a, name);
  const int64_t heads = head_count(map.permute, config, layer);
  if (map.theirs.size() == 1) return permuted(read(filled(map.theirs[0], layer)), heads, true);
  std::vector<Tensor> parts;
  int64_t rows = 0;
  for (const std::string& theirs : map.theirs) {
    parts.push_back(read(filled(theirs, layer)));
    rows += parts.back().dim(0);
  }
  const Tensor& first = parts[0];
  Tensor whole(first.shape().rank() == 1 ? Shape{rows} : Shape{rows, first.dim(1)}, first.dtype());
  int64_t begin = 0;
  for (const Tensor& part : parts) {
    whole.slice(begin, begin + part.dim(0)).copy_from(part);
    begin += part.dim(0);
  }
  return permuted(whole, heads, true);
}

Tensor to_foreign(const Architecture& a, const ModelConfig& config, const std::string& name,
                  const std::function<Tensor(const std::string&)>& read) {
  for (const TensorMap& map : a.tensors)
    for (size_t i = 0; i < map.theirs.size(); ++i) {
      const auto layer = match(map.theirs[i], name);
      if (!layer) continue;
      const Tensor whole = permuted(read(filled(map.ours, *layer)), head_count(map.permute, config, *layer), false);
      const int64_t rows = whole.dim(0) / int64_t(map.theirs.size());
      return whole.slice(int64_t(i) * rows, int64_t(i + 1) * rows);
    }
  return read(name);
}

}  // namespace mmfree
