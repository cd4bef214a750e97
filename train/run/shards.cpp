#include "train/run/shards.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include "layers/parameters.h"
#include "optim/owners.h"

namespace mmfree {
namespace {

/// Parts of the update of a piece of so many elements. The first part's update and the last part's exchange are hidden
/// by nothing, and each part costs 0.1 to 0.2 ms of waiting and of small copies (H200), as much as the update of some
/// 16 M elements; the sum is least at the square root.
int update_parts(int64_t elements) {
  constexpr double kCostOfPart = 16e6;
  return int(std::clamp<long>(std::lround(std::sqrt(double(elements) / kCostOfPart)), 2, 8));
}

/// What rank 0 tells the others.
enum class Wish : uint8_t { no_more, next };

/// Elements [begin, end) of a flat buffer.
struct Part {
  int64_t begin, end;
};

/// The elements of parameter i that rank r owns.
Part part_of(const ParamStore& layout, size_t i, const Share& share, size_t r) {
  const int64_t begin = layout.offset(i), end = begin + layout.specs()[i].shape.size();
  const int64_t from = std::max(begin, share.bounds[r]);
  return {from, std::max(from, std::min(end, share.bounds[r + 1]))};
}

}  // namespace

Division divide(const ModelConfig& model, Group& group, Shard shard) {
  if (group.size() == 1 || shard == Shard::none) return {};
  std::set<std::string> multiplied, ternary;  // names of matrices that forward passes use as they are, and as codes
  for (const ProjectionSpec& p : projections(model)) {
    const std::string name = p.matrix.tied ? "model.embeddings.weight" : p.path + ".weight";
    (p.precision == Precision::ternary ? ternary : multiplied).insert(name);
  }
  const std::vector<ParamSpec> specs = parameter_specs(model);
  Division division;
  for (const ParamSpec& spec : specs) {
    const bool looked_up = spec.role == ParamRole::embedding || spec.role == ParamRole::vector;
    division.read.push_back(looked_up || multiplied.count(spec.name) > 0);
  }
  const auto divisible = [&](size_t i) {
    const ParamRole role = specs[i].role;
    return (role == ParamRole::embedding || role == ParamRole::head) && ternary.count(specs[i].name) == 0;
  };
  const Bounds bounds = owner_bounds(specs, group.size(), divisible);
  division.share = {&group, bounds, owner_parts(specs, bounds, update_parts(largest(bounds)), divisible)};
  return division;
}

Collector::~Collector() {
  if (!share_.group) return;
  const Wish end = Wish::no_more;
  try {
    for (int r = 1; r < share_.group->size(); ++r) share_.group->send(r, &end, sizeof end);
  } catch (const Error&) {
    // A rank is lost: training finds out too.
  }
}

Tensor Collector::parameter(const ParamStore& layout, size_t i, const Tensor& mine) {
  const Shape& shape = layout.specs()[i].shape;
  if (!share_.group) return layout.view(mine, i);
  const Part own = part_of(layout, i, share_, 0);
  if (own.end - own.begin == shape.size()) return mine.slice(own.begin, own.end).reshape(shape);
  Tensor all({shape.size()}, mine.dtype());
  for (size_t r = 0; r + 1 < share_.bounds.size(); ++r) {
    const Part part = part_of(layout, i, share_, r);
    if (part.begin == part.end) continue;
    Tensor to = all.slice(part.begin - layout.offset(i), part.end - layout.offset(i));
    if (r == 0) {
      to.copy_from(mine.slice(part.begin, part.end));
      continue;
    }
    const Wish next = Wish::next;
    share_.group->send(int(r), &next, sizeof next);
    share_.group->receive(int(r), to.raw_mut(), size_t(to.bytes()));
  }
  return all.reshape(shape);
}

void send_parts(const ParamStore& layout, const FlatState& flat) {
  Group& group = *flat.share.group;
  const auto wanted = [&] {
    Wish wish = Wish::no_more;
    group.receive(0, &wish, sizeof wish);
    return wish == Wish::next;
  };
  for (size_t i = 0; i < layout.specs().size(); ++i) {
    const Part part = part_of(layout, i, flat.share, size_t(group.rank()));
    if (part.begin == part.end) continue;
    for (size_t s = 0; s <= flat.states.size(); ++s) {
      const Tensor& mine = s == 0 ? flat.values : flat.states[s - 1].tensor;
      const Tensor host = mine.slice(part.begin - flat.share.begin(), part.end - flat.share.begin()).to(Device::cpu);
      if (!wanted()) return;
      group.send(0, host.raw(), size_t(host.bytes()));
    }
  }
  while (wanted()) {
  }
}

}  // namespace mmfree
