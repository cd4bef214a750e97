#include <algorithm>
#include <set>
#include <utility>

#include "core/gpu.h"
#include "core/ranks/group.h"
#include "core/ranks/group_state.h"

namespace mmfree {
namespace {

void check_bounds(const char* what, const Bounds& bounds, int size, int64_t elements) {
  MMFREE_CHECK(ShapeError, bounds.size() == size_t(size) + 1, what, ": ", bounds.size(), " bounds; ", size,
               " ranks need ", size + 1);
  MMFREE_CHECK(ShapeError,
               bounds.front() == 0 && bounds.back() == elements && std::is_sorted(bounds.begin(), bounds.end()), what,
               ": the bounds must go from 0 to the tensor's ", elements, " elements");
}

}  // namespace

void Group::all_to_all(const Tensor& from, const Bounds& bounds, Tensor& to) {
  State& s = *state_;
  const int64_t unit = size_of(from.dtype());
  check_bounds("ranks: all_to_all", bounds, s.size, from.size());
  const int64_t mine = bounds[size_t(s.rank) + 1] - bounds[size_t(s.rank)];
  MMFREE_CHECK(DTypeError, from.dtype() == to.dtype(), "ranks: all_to_all from ", from.describe(), " to ",
               to.describe());
  MMFREE_CHECK(DeviceError, from.device() == to.device(), "ranks: all_to_all from ", from.describe(), " to ",
               to.describe());
  MMFREE_CHECK(ShapeError, to.size() == mine * s.size, "ranks: all_to_all: ", s.size, " pieces of ", mine,
               " elements do not fit into ", to.describe());
  std::vector<State::Part> out, in;
  for (int r = 0; r < s.size; ++r) {
    const auto i = size_t(r);
    out.push_back({size_t(bounds[i] * unit), size_t((bounds[i + 1] - bounds[i]) * unit)});
    in.push_back({size_t(r * mine * unit), size_t(mine * unit)});
  }
  char* target = to.raw_mut();
  const State::Part &own = out[size_t(s.rank)], &place = in[size_t(s.rank)];
  for (int r = 0; r < s.size; ++r)
    if (r == s.rank || !s.has_others())
      copy_bytes(target + in[size_t(r)].at, to.device(), from.raw() + own.at, from.device(), place.bytes);
  if (s.has_others()) s.exchange_on(from.device(), s.pieces(from.raw(), out, target, in));
}

void Group::all_gather(Tensor& all, const Bounds& bounds) {
  State& s = *state_;
  const int64_t unit = size_of(all.dtype());
  check_bounds("ranks: all_gather", bounds, s.size, all.size());
  if (!s.has_others()) return;
  std::vector<State::Part> in;
  std::vector<size_t> bytes;
  for (size_t r = 0; r < size_t(s.size); ++r) {
    in.push_back({size_t(bounds[r] * unit), size_t((bounds[r + 1] - bounds[r]) * unit)});
    bytes.push_back(in.back().bytes);
  }
  char* data = all.raw_mut();
  if (all.device() == Device::cpu) {
    const std::vector<State::Part> out(size_t(s.size), in[size_t(s.rank)]);
    return s.exchange_parts(data, out, data, in);
  }
  if (DryRun::active()) return;
  gpu::Links& links = s.links_of_gpu();
  if (std::all_of(bytes.begin(), bytes.end(), [&](size_t n) { return n == bytes[0]; }))
    links.all_gather(data, bytes[0]);
  else
    links.all_gather(data, bytes);
  s.bytes += bytes[size_t(s.rank)] * size_t(s.size - 1);
}

gpu::Links& Group::State::links_of_gpu() const {
  MMFREE_CHECK(DeviceError, links, "ranks: tensors on the GPU are exchanged after Group::use_gpu only");
  return *links;
}

void Group::State::exchange_on(Device device, const Pieces& pieces) {
  if (device == Device::cpu) return exchange(Transport::collective, pieces.out, pieces.in);
  if (DryRun::active()) return;
  links_of_gpu().exchange(pieces.out, pieces.in);
  for (const Outgoing& piece : pieces.out) bytes += piece.bytes;
}

int Group::gpu_index() const { return gpu::count() == 1 ? 0 : state_->local_rank; }

void Group::use_gpu() {
  State& s = *state_;
  if (!s.has_others()) return;
  require(gpu::Links::problem());
  require_same("GPUs", gpu::info().name);
  const std::vector<std::string> gpus = gather_texts(gpu::identity());
  std::string twice;
  for (size_t i = 0; i < gpus.size() && twice.empty(); ++i)
    for (size_t j = 0; j < i && twice.empty(); ++j)
      if (gpus[i] == gpus[j])
        twice = concat(s.watch->meeting().name_of(int(j)), " and ", s.watch->meeting().name_of(int(i)),
                       " use one GPU, ", gpus[i], "; start as many ranks as a machine has GPUs");
  require(twice);
  std::string id = s.rank == 0 ? gpu::Links::new_id() : "";
  id = gather_texts(id)[0];
  s.links = std::make_shared<gpu::Links>(id, s.rank, s.size, int(rank_timeout().count()));
  s.watch->set_cancel([links = s.links] { links->cancel(); });
  // Ways are made at their first use: now, not while a step is recorded.
  Tensor from({s.size}, DType::f32, Device::cuda), to({s.size}, DType::f32, Device::cuda);
  from.fill_zero();
  all_to_all(from, even_bounds(s.size, s.size), to);
  all_gather(from, even_bounds(s.size, s.size));
  Bounds uneven = even_bounds(s.size, s.size);
  uneven[1] = 0;
  all_gather(to, uneven);
  gpu::synchronize();
}

void Group::check() const {
  State& s = *state_;
  if (!s.has_others()) return;
  s.watch->check();
  if (!s.links) return;
  if (const std::string failure = s.links->failure(); !failure.empty()) s.watch->accuse(failure);
}

}  // namespace mmfree
