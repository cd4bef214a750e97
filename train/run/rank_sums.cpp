#include "train/run/rank_sums.h"

#include <algorithm>

#include "core/ops/tree_sum.h"

namespace mmfree {

RankSums::RankSums(ParamStore& params, Group& group) : params_(params), group_(group), bounds_(params.share().bounds) {
  if (!params.share().group) {
    bounds_ = even_bounds(params.size() / kParamBlock, group.size());
    for (int64_t& b : bounds_) b *= kParamBlock;
  }
  if (group.size() > 1 && params.device() == Device::cuda && !DryRun::active()) side_.emplace();
}

void RankSums::add(const Tensor& gradients, int64_t begin, int64_t end) {
  if (begin == end) return;
  const auto rank = size_t(group_.rank());
  Bounds bounds;
  for (const int64_t b : bounds_) bounds.push_back(std::clamp(b, begin, end) - begin);
  const int64_t mine = bounds[rank + 1] - bounds[rank];
  const Tensor range = gradients.slice(begin, end);
  received_.emplace_back(Shape{group_.size() * mine}, range.dtype(), range.device());
  const auto work = [&] { add_range(range, begin, bounds, received_.back()); };
  side_ ? side_->run(work) : work();
}

void RankSums::add_range(Tensor range, int64_t begin, const Bounds& bounds, Tensor pieces) {
  const auto rank = size_t(group_.rank());
  const int64_t first = begin + bounds[rank], last = begin + bounds[rank + 1];
  const int64_t origin = params_.divides_gradients() ? bounds_[rank] : 0;
  group_.all_to_all(range, bounds, pieces);
  if (first < last) {
    Tensor sum = params_.grads().slice(first - origin, last - origin);
    tree_sum(pieces, group_.size(), sum);
  }
  if (!params_.share().group) group_.all_gather(range, bounds);
}

void RankSums::finish() {
  if (side_) side_->join();
  received_.clear();
}

}  // namespace mmfree
