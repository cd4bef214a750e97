#include <algorithm>
#include <cstdlib>
#include <functional>
#include <optional>
#include <utility>

#include "core/gpu.h"
#include "core/ranks/group.h"
#include "core/ranks/group_state.h"
#include "core/system/shared_file.h"

namespace mmfree {
namespace {

void check_pieces(const char* what, const Ranges& pieces, int size, int64_t elements) {
  MMFREE_CHECK(ShapeError, pieces.size() == size_t(size), what, ": ", pieces.size(), " pieces for ", size, " ranks");
  int64_t last = 0;
  for (const Range& piece : pieces) {
    MMFREE_CHECK(ShapeError, piece.begin >= last && piece.end >= piece.begin && piece.end <= elements, what,
                 ": the pieces must lie in order in the tensor's ", elements, " elements");
    last = piece.end;
  }
}

}  // namespace

void Group::all_to_all(const Tensor& from, const Ranges& pieces, Tensor& to) {
  State& s = *state_;
  const int64_t unit = size_of(from.dtype());
  check_pieces("ranks: all_to_all", pieces, s.size, from.size());
  const int64_t mine = pieces[size_t(s.rank)].size();
  MMFREE_CHECK(DTypeError, from.dtype() == to.dtype(), "ranks: all_to_all from ", from.describe(), " to ",
               to.describe());
  MMFREE_CHECK(DeviceError, from.device() == to.device(), "ranks: all_to_all from ", from.describe(), " to ",
               to.describe());
  MMFREE_CHECK(ShapeError, to.size() == mine * (s.size - 1), "ranks: all_to_all: ", s.size - 1, " pieces of ", mine,
               " elements do not fit into ", to.describe());
  std::vector<State::Part> out, in;
  for (int r = 0; r < s.size; ++r) {
    const Range& piece = pieces[size_t(r)];
    out.push_back({size_t(piece.begin * unit), size_t(piece.size() * unit)});
    in.push_back({size_t((r - (r > s.rank)) * mine * unit), size_t(mine * unit)});
  }
  char* target = to.raw_mut();
  if (s.has_others()) return s.exchange_on(from.device(), s.pieces(from.raw(), out, target, in));
  for (const State::Part& place : in)
    if (&place != &in[size_t(s.rank)])
      copy_bytes(target + place.at, to.device(), from.raw() + out[size_t(s.rank)].at, from.device(), place.bytes);
}

void Group::all_gather(const std::vector<Gather>& gathers) {
  State& s = *state_;
  std::vector<std::vector<gpu::Span>> lists;  // of those on the GPU
  bool peers_reach = s.peers != nullptr;
  for (const auto& [all, pieces] : gathers) {
    check_pieces("ranks: all_gather", pieces, s.size, all.size());
    if (!s.has_others()) continue;
    const int64_t unit = size_of(all.dtype());
    char* data = Tensor(all).raw_mut();
    const Range& mine = pieces[size_t(s.rank)];
    if (all.device() == Device::cpu) {
      std::vector<State::Part> in;
      for (const Range& piece : pieces) in.push_back({size_t(piece.begin * unit), size_t(piece.size() * unit)});
      const std::vector<State::Part> out(size_t(s.size), in[size_t(s.rank)]);
      s.exchange_parts(data, out, data, in);
    } else if (!DryRun::active()) {
      peers_reach = peers_reach && s.peers->reach({data, size_t(all.bytes())});
      lists.emplace_back();
      for (const Range& piece : pieces)
        lists.back().push_back({data + piece.begin * unit, size_t(piece.size() * unit)});
      s.gpu_bytes += uint64_t(mine.size() * unit) * uint64_t(s.size - 1);
    }
  }
  if (lists.empty()) return;
  if (peers_reach) return s.peers->all_gather(lists);
  s.links_of_gpu().all_gather(lists);
}

gpu::Links& Group::State::links_of_gpu() const {
  MMFREE_CHECK(DeviceError, links, "ranks: tensors on the GPU are exchanged after Group::use_gpu only");
  return *links;
}

void Group::State::exchange_on(Device device, const Pieces& pieces) {
  if (device == Device::cpu) return exchange(Transport::collective, pieces.out, pieces.in);
  if (DryRun::active()) return;
  links_of_gpu().exchange(pieces.out, pieces.in);
  for (const Outgoing& piece : pieces.out) gpu_bytes += piece.bytes;
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
  s.arena = std::make_shared<Arena>(gpu::Peers::memory());
  s.watch->set_cancel([links = s.links] { links->cancel(); });
  // Ways are made at their first use: now, not while a step is recorded.
  Tensor from({s.size}, DType::f32, Device::cuda), to({s.size - 1}, DType::f32, Device::cuda);
  from.fill_zero();
  Bounds bounds = even_bounds(s.size, s.size);
  all_to_all(from, ranges_of(bounds), to);
  all_gather(from, bounds);
  bounds[1] = 0;  // pieces of other sizes go another way
  all_gather(from, bounds);
  gpu::synchronize();
}

std::shared_ptr<Arena> Group::exchange_arena(Device device) const {
  return device == Device::cuda && state_->arena ? state_->arena : Arena::current(device);
}

Tensor Group::zeros(const Shape& shape, DType dtype, Device device) const {
  const State& s = *state_;
  MMFREE_CHECK(DeviceError, device == Device::cpu || !s.has_others() || s.arena || DryRun::active(),
               "ranks: tensors that GPUs exchange are made after Group::use_gpu only");
  const ArenaScope scope(exchange_arena(device));
  return Tensor::zeros(shape, dtype, device);
}

gpu::Peers* Group::open_peers(int marks) {
  State& s = *state_;
  s.peers_problem.clear();
  if (!s.links || s.machines > 1) return nullptr;
  s.watch->set_cancel([links = s.links] { links->cancel(); });
  s.peers.reset();
  // One thing after the other: what one rank cannot do, none does.
  const auto all_can = [&](const std::function<void()>& attempt) {
    std::string problem;
    try {
      const char* off = std::getenv("NCCL_P2P_DISABLE");
      MMFREE_CHECK(Error, !off || std::string(off) != "1", "NCCL_P2P_DISABLE=1 is set");
      attempt();
    } catch (const Error& e) {
      problem = e.what();
    }
    for (const std::string& p : gather_texts(problem))
      if (s.peers_problem.empty()) s.peers_problem = p;
    return s.peers_problem.empty();
  };
  const std::vector<Arena::Slab> slabs = s.arena->slabs();
  std::string mine;
  std::optional<SharedFile> file;
  const std::vector<std::string> layouts = gather_texts(s.arena->layout());
  const bool offered = all_can([&] {
    MMFREE_CHECK(Error, layouts[0] == layouts[size_t(s.rank)], "its memory is laid out otherwise than rank 0's");
    mine = gpu::Peers::addresses(slabs);
    if (s.rank == 0) file.emplace(gpu::Peers::bytes_of_marks(s.size, marks));
  });
  if (!offered) return nullptr;
  const std::vector<std::string> addresses = gather_texts(mine);
  const std::string name = gather_texts(file ? file->name() : "")[0];
  std::shared_ptr<gpu::Peers> peers;
  if (!all_can([&] { peers = std::make_shared<gpu::Peers>(slabs, addresses, s.rank, marks, name); })) return nullptr;
  s.peers = std::move(peers);
  // Marks go first: the end of the links waits for kernels that may stand behind one.
  s.watch->set_cancel([links = s.links, peers = s.peers] {
    peers->cancel();
    links->cancel();
  });
  return s.peers.get();
}

std::string Group::peers_problem() const { return state_->peers_problem; }

void Group::count_sent(uint64_t bytes) { state_->gpu_bytes += bytes; }

void Group::check() const {
  State& s = *state_;
  if (!s.has_others()) return;
  s.watch->check();
  if (!s.links) return;
  if (const std::string failure = s.links->failure(); !failure.empty()) s.watch->accuse(failure);
}

}  // namespace mmfree
