#include "train/run/gradient_exchange.h"

#include <algorithm>

#include "core/op_watch.h"
#include "core/ops/tree_sum.h"

namespace mmfree {
namespace {

/// Elements of a chunk: 32 MiB of f32, at which copy engines and NCCL reach their rate.
constexpr int64_t kChunk = int64_t(8) << 20;

Bounds pieces_of(const ParamStore& params, const Group& group) {
  if (params.share().group) return params.share().bounds;
  Bounds bounds = even_bounds(params.size() / kParamBlock, group.size());
  for (int64_t& b : bounds) b *= kParamBlock;
  return bounds;
}

int64_t largest(const Bounds& bounds) {
  int64_t most = 0;
  for (const Range& piece : ranges_of(bounds)) most = std::max(most, piece.size());
  return most;
}

}  // namespace

GradientExchange::GradientExchange(ParamStore& params, Optimizer& optimizer, Group& group, bool beside)
    : params_(params),
      optimizer_(optimizer),
      group_(group),
      bounds_(pieces_of(params, group)),
      chunk_(std::min(kChunk, largest(bounds_))),
      reached_([this](const Var& first) { exchange_from(params_.index(first)); }),
      end_(params.size()),
      tell_(params.device() == Device::cuda && !DryRun::active()),
      sends_(tell_.on()),
      fetches_{Beside(tell_.on()), Beside(tell_.on())} {
  if (!params.divides_gradients()) peers_ = group.open_peers(params.grads(), int(params.specs().size()));
  beside_ = beside && peers_;
  for (Tensor& room : rooms_) room = Tensor({(group.size() - 1) * chunk_}, params.dtype(), params.device());
}

/// Chunk i of a rank's piece; empty behind its end.
Range GradientExchange::chunk(size_t rank, int64_t i) const {
  const int64_t end = bounds_[rank + 1], begin = std::min(bounds_[rank] + i * chunk_, end);
  return {begin, std::min(begin + chunk_, end)};
}

/// Gradients of parameters from this one on are final.
void GradientExchange::exchange_from(size_t parameter) {
  const WatchedRange watched("send gradients");
  const int64_t begin = params_.offset(parameter), end = std::exchange(end_, begin);
  params_.finish_gradients(parameter);
  const int mark = mark_++;
  tell_.run([&] { peers_->tell(mark); });
  const auto rank = size_t(group_.rank());
  const int64_t first = std::max(begin, bounds_[rank]), last = std::min(end, bounds_[rank + 1]);
  for (int64_t at = first; at < last; at += chunk_)
    fetch({at, std::min(at + chunk_, last)}, mark, at < first + int64_t(rooms_.size()) * chunk_);
}

/// awaits: `mark` was not awaited on this way yet.
void GradientExchange::fetch(const Range& range, int mark, bool awaits) {
  const auto way = size_t(fetched_++) % rooms_.size();
  fetches_[way].run([&] {
    if (awaits) peers_->await(mark);
    const int64_t unit = size_of(params_.dtype()), n = range.size();
    char* room = rooms_[way].raw_mut();
    for (int k = 1; k < group_.size(); ++k) {
      const int from = (group_.rank() + k) % group_.size(), place = from - (from > group_.rank());
      peers_->read(from, size_t(range.begin * unit), room + place * n * unit, size_t(n * unit));
    }
    group_.count_sent(size_t(n * unit) * size_t(group_.size() - 1));
    add_chunk(rooms_[way], params_.grads(), range);
  });
}

/// others: that range of all other ranks, at its front. mine: flat, [P].
void GradientExchange::add_chunk(const Tensor& others, const Tensor& mine, const Range& range) {
  const int64_t begin = params_.divides_gradients() ? params_.share().begin() : 0;
  Tensor sums = params_.grads().slice(range.begin - begin, range.end - begin);
  tree_sum(others.slice(0, (group_.size() - 1) * range.size()), mine.slice(range.begin, range.end), group_.rank(),
           sums);
  optimizer_.measure_gradients(range);
}

void GradientExchange::join() {
  if (!beside_) return;
  tell_.join_all();
  for (Beside& way : fetches_) way.join_all();
}

void GradientExchange::finish() {
  if (params_.divides_gradients() || beside_) return;
  if (!peers_) return add(params_.grads());
  exchange_from(0);
  tell_.join_all();
  for (Beside& way : fetches_) way.join_all();
}

void GradientExchange::add(const Tensor& gradients) {
  const int64_t count = (largest(bounds_) + chunk_ - 1) / chunk_;
  const auto send = [&](int64_t i) {
    sends_.run([&] {
      const WatchedRange watched("send gradients");
      Ranges pieces;
      for (size_t r = 0; r + 1 < bounds_.size(); ++r) pieces.push_back(chunk(r, i));
      Tensor to =
          rooms_[size_t(i) % rooms_.size()].slice(0, (group_.size() - 1) * pieces[size_t(group_.rank())].size());
      group_.all_to_all(gradients, pieces, to);
    });
  };
  send(0);
  for (int64_t i = 0; i < count; ++i) {
    if (i + 1 < count) send(i + 1);
    sends_.join();
    add_chunk(rooms_[size_t(i) % rooms_.size()], gradients, chunk(size_t(group_.rank()), i));
  }
}

void GradientExchange::settle() {
  end_ = params_.size();
  mark_ = 0;
  fetched_ = 0;
  if (peers_) peers_->take_back();
}

void GradientExchange::share() {
  if (!params_.share().group) group_.all_gather(params_.grads(), bounds_);
}

}  // namespace mmfree
