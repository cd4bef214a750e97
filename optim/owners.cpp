#include "optim/owners.h"

#include <algorithm>

namespace mmfree {
namespace {

/// Blocks that belong together.
using Units = std::vector<int64_t>;

Units units_of(const std::vector<ParamSpec>& specs, const std::function<bool(size_t)>& divisible) {
  Units units;
  for (size_t i = 0; i < specs.size(); ++i) {
    const int64_t blocks = (specs[i].shape.size() + kParamBlock - 1) / kParamBlock;
    if (divisible(i))
      units.insert(units.end(), size_t(blocks), 1);
    else
      units.push_back(blocks);
  }
  return units;
}

/// The blocks of each piece if no piece has more than `most`; more than `ranks` of them if that is not enough.
std::vector<int64_t> fill(const Units& units, int64_t most) {
  std::vector<int64_t> pieces = {0};
  for (const int64_t unit : units) {
    if (pieces.back() + unit > most) pieces.push_back(0);
    pieces.back() += unit;
  }
  return pieces;
}

}  // namespace

Bounds owner_bounds(const std::vector<ParamSpec>& specs, int ranks, const std::function<bool(size_t)>& divisible) {
  const Units units = units_of(specs, divisible);
  int64_t largest = 1, all = 0;
  for (const int64_t blocks : units) largest = std::max(largest, blocks), all += blocks;
  int64_t least = std::max(largest, (all + ranks - 1) / ranks), most = std::max(largest, all);
  while (least < most) {
    const int64_t middle = (least + most) / 2;
    if (int(fill(units, middle).size()) <= ranks)
      most = middle;
    else
      least = middle + 1;
  }
  Bounds bounds = {0};
  for (const int64_t blocks : fill(units, least)) bounds.push_back(bounds.back() + blocks * kParamBlock);
  bounds.resize(size_t(ranks) + 1, bounds.back());
  return bounds;
}

std::vector<Ranges> owner_parts(const std::vector<ParamSpec>& specs, const Bounds& bounds, int count,
                                const std::function<bool(size_t)>& divisible) {
  Bounds cuts = {0};  // where parts may begin
  for (const int64_t blocks : units_of(specs, divisible)) cuts.push_back(cuts.back() + blocks * kParamBlock);
  std::vector<Ranges> parts(static_cast<size_t>(count));
  for (const Range& piece : ranges_of(bounds)) {
    int64_t begin = piece.begin;
    for (int i = 0; i < count; ++i) {
      const int64_t wanted = piece.begin + piece.size() * (i + 1) / count;
      const int64_t end = *std::lower_bound(cuts.begin(), cuts.end(), wanted);
      parts[size_t(i)].push_back({begin, end});
      begin = end;
    }
  }
  return parts;
}

}  // namespace mmfree
