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

/// Almost equal shares of a range, of whole blocks.
Ranges shares_of(const Range& range, int ranks) {
  Ranges shares = ranges_of(even_bounds(range.size() / kParamBlock, ranks));
  for (Range& share : shares) share = {range.begin + share.begin * kParamBlock, range.begin + share.end * kParamBlock};
  return shares;
}

}  // namespace

GradientExchange::GradientExchange(ParamStore& params, Optimizer& optimizer, Group& group)
    : params_(params),
      optimizer_(optimizer),
      group_(group),
      bounds_(pieces_of(params, group)),
      chunk_(std::min(kChunk, largest(bounds_))),
      reached_([this](const Var& first) { exchange_from(params_.index(first), !is_hidden(params_.index(first))); }),
      end_(params.size()),
      side_(params.device() == Device::cuda && !DryRun::active()),
      ways_{Beside(side_.on()), Beside(side_.on())} {}

void GradientExchange::open(bool beside) {
  gpu::Peers* peers = group_.open_peers(2 * int(params_.specs().size()));  // at most two of a span
  if (params_.divides_gradients()) return;
  peers_ = peers;
  beside_ = beside && peers_;
  if (peers_ || (DryRun::active() && params_.device() == Device::cuda)) rooms_ = make_rooms();
}

/// Room for a chunk of all other ranks, twice: one is added, the next one arrives.
std::array<Tensor, 2> GradientExchange::make_rooms() const {
  const Shape shape{(group_.size() - 1) * chunk_};
  return {Tensor(shape, params_.dtype(), params_.device()), Tensor(shape, params_.dtype(), params_.device())};
}

/// Chunk i of a rank's piece; empty behind its end.
Range GradientExchange::chunk(size_t rank, int64_t i) const {
  const int64_t end = bounds_[rank + 1], begin = std::min(bounds_[rank] + i * chunk_, end);
  return {begin, std::min(begin + chunk_, end)};
}

/// What of a range lies in this rank's piece.
Range GradientExchange::own_part(const Range& range) const {
  const auto rank = size_t(group_.rank());
  const int64_t begin = std::max(range.begin, bounds_[rank]);
  return {begin, std::max(begin, std::min(range.end, bounds_[rank + 1]))};
}

/// Whether much of the backward pass is still to come when it is through with a parameter: the products of one before
/// it.
bool GradientExchange::is_hidden(size_t parameter) const {
  const auto begin = params_.specs().begin(), end = begin + std::ptrdiff_t(parameter);
  return std::any_of(begin, end, [](const ParamSpec& spec) { return spec.role == ParamRole::matrix; });
}

/// Gradients of parameters from this one on are final. by_shares: nothing hides their exchange.
void GradientExchange::exchange_from(size_t parameter, bool by_shares) {
  const WatchedRange watched("send gradients");
  const int64_t begin = params_.offset(parameter);
  const Range span{begin, std::exchange(end_, begin)};
  params_.finish_gradients(parameter);
  const int mark = mark_++;
  side_.run([&] { peers_->tell(mark); });
  if (!by_shares) return add_from(own_part(span), mark);
  add_from(shares_of(span, group_.size())[size_t(group_.rank())], mark);
  take_shares(span);
}

void GradientExchange::in_chunks(const Range& range, const std::function<void(size_t, bool, const Range&)>& run) {
  for (int64_t at = range.begin, i = 0; at < range.end; at += chunk_, ++i) {
    const size_t way = size_t(i) % ways_.size();
    ways_[way].run([&] { run(way, size_t(i) < ways_.size(), {at, std::min(at + chunk_, range.end)}); });
  }
}

/// Fetches a range of all others, when they have told the mark, and adds it.
void GradientExchange::add_from(const Range& range, int mark) {
  in_chunks(range, [&](size_t way, bool first, const Range& chunk) {
    if (first) {
      // A wait must not come before what it waits for in the order of any rank's own work.
      ways_[way].follow(side_);
      peers_->await(mark);
    }
    const Tensor mine = params_.grads().slice(chunk.begin, chunk.end);
    char* room = rooms_[way].raw_mut();
    for (int k = 1; k < group_.size(); ++k) {
      const int from = (group_.rank() + k) % group_.size(), place = from - (from > group_.rank());
      peers_->read(from, mine.raw(), room + place * mine.bytes(), size_t(mine.bytes()));
    }
    group_.count_sent(uint64_t(mine.bytes()) * uint64_t(group_.size() - 1));
    add_chunk(rooms_[way], params_.grads(), chunk);
  });
}

/// Behind the sum of this rank's share of a span: fetches the sums of the others' shares that lie in its piece.
void GradientExchange::take_shares(const Range& span) {
  const int mark = mark_++;
  ways_[1].run([] {});  // one without work has nothing that can be followed
  ways_[0].run([&] {
    ways_[0].follow(ways_[1]);
    peers_->tell(mark);
  });
  ways_[1].run([&] { ways_[1].follow(ways_[0]); });
  for (Beside& way : ways_) way.run([&] { peers_->await(mark); });
  const Ranges shares = shares_of(span, group_.size());
  for (size_t r = 0; r < shares.size(); ++r) {
    if (int(r) == group_.rank()) continue;
    in_chunks(shares[r], [&](size_t, bool, const Range& chunk) {
      const Range mine = own_part(chunk);
      if (mine.size() == 0) return;
      Tensor to = params_.grads().slice(mine.begin, mine.end);
      peers_->read(int(r), to.raw(), to.raw_mut(), size_t(to.bytes()));
      group_.count_sent(size_t(to.bytes()));
    });
  }
  ways_[0].run([&] {
    ways_[0].follow(ways_[1]);
    if (const Range mine = own_part(span); mine.size() > 0) optimizer_.measure_gradients(mine);
  });
}

/// others: that range of all other ranks, at its front. mine: flat, [P].
void GradientExchange::add_chunk(const Tensor& others, const Tensor& mine, const Range& range) {
  const int64_t begin = params_.divides_gradients() ? params_.share().begin() : 0;
  Tensor sums = params_.grads().slice(range.begin - begin, range.end - begin);
  tree_sum(others.slice(0, (group_.size() - 1) * range.size()), mine.slice(range.begin, range.end), group_.rank(),
           sums);
  if (const Range own = own_part(range); own.size() > 0) optimizer_.measure_gradients(own);
}

void GradientExchange::join() {
  side_.join_all();
  for (Beside& way : ways_) way.join_all();
}

void GradientExchange::finish() {
  if (params_.divides_gradients() || beside_) return;
  if (!peers_) return add(params_.grads());
  exchange_from(0, false);
  join();
}

void GradientExchange::add(const Tensor& gradients) {
  const std::array<Tensor, 2> rooms = rooms_[0].defined() ? rooms_ : make_rooms();
  const int64_t count = (largest(bounds_) + chunk_ - 1) / chunk_;
  const auto send = [&](int64_t i) {
    side_.run([&] {
      const WatchedRange watched("send gradients");
      Ranges pieces;
      for (size_t r = 0; r + 1 < bounds_.size(); ++r) pieces.push_back(chunk(r, i));
      Tensor to = rooms[size_t(i) % rooms.size()].slice(0, (group_.size() - 1) * pieces[size_t(group_.rank())].size());
      group_.all_to_all(gradients, pieces, to);
    });
  };
  send(0);
  for (int64_t i = 0; i < count; ++i) {
    if (i + 1 < count) send(i + 1);
    side_.join();
    add_chunk(rooms[size_t(i) % rooms.size()], gradients, chunk(size_t(group_.rank()), i));
  }
}

void GradientExchange::settle() {
  end_ = params_.size();
  mark_ = 0;
  if (peers_) peers_->take_back();
}

void GradientExchange::share() {
  if (!params_.share().group) group_.all_gather(params_.grads(), bounds_);
}

}  // namespace mmfree
