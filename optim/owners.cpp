#include "optim/owners.h"

#include <algorithm>

namespace mmfree {
namespace {

/// Blocks that belong together.
using Units = std::vector<int64_t>;

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
  Units units;
  int64_t largest = 1, all = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    const int64_t blocks = (specs[i].shape.size() + kParamBlock - 1) / kParamBlock;
    all += blocks;
    if (divisible(i)) {
      units.insert(units.end(), size_t(blocks), 1);
    } else {
      units.push_back(blocks);
      largest = std::max(largest, blocks);
    }
  }
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

}  // namespace mmfree
