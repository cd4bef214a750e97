#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/ranks/launch.h"
#include "core/ranks/watch.h"
#include "core/tensor.h"

namespace mmfree {

namespace gpu {
class Peers;
}

/// Where the pieces of a flat tensor begin, in elements: size() + 1 numbers that do not fall. Piece r is rank r's.
using Bounds = std::vector<int64_t>;
/// `count` elements in `size` pieces of which the first ones are at most one element longer.
Bounds even_bounds(int64_t count, int size);

/// Elements [begin, end) of a flat tensor.
struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};
/// Where the ranks' pieces of a flat tensor are; range r is rank r's. They do not overlap, and may leave gaps.
using Ranges = std::vector<Range>;
Ranges ranges_of(const Bounds& bounds);
/// Elements of the largest piece.
int64_t largest(const Bounds& bounds);

/// The ranks of one run and what they exchange. A rank is a process. Unless it says otherwise, a call is collective:
/// every rank makes the same calls in the same order, from one thread. Results are bytes as they were sent: nothing is
/// added up here.
///
/// A rank that ends before the others, or does not answer for most of a minute, is lost: in all others the current or
/// next call throws LostRank, and a process that makes none is ended ten seconds later. A rank that is merely slow is
/// waited for without limit, but in an InTime.
class Group {
 public:
  /// The only rank of a run. Calls copy at most.
  static std::unique_ptr<Group> alone();
  /// Rank 0 of `size` that do not exist, for dry runs: what others would send is what this one would.
  static std::unique_ptr<Group> pretended(int size);
  /// Finds the other ranks, within a minute: by MPI, or by TCP at launch.address and launch.port.
  /// @throws ConfigError if ranks are missing or do not fit together, or MPI is missing; with an empty message in ranks
  /// whose reason rank 0 prints
  static std::unique_ptr<Group> join(const Launch&);
  /// Waits until all ranks come here, unless one is lost or failed.
  ~Group();
  Group(const Group&) = delete;

  int rank() const;
  int size() const;
  /// Among the ranks of this machine.
  int local_rank() const;
  int local_size() const;
  /// Threads for computing: this rank's share of the cores that it may use. 0 if OpenMP's own default is right: alone,
  /// or with an OMP_NUM_THREADS that is not torchrun's.
  int threads() const;
  /// "4 ranks on 2 machines, by mpirun over MPI (Open MPI 4.1.4)"; empty if alone.
  std::string describe() const;

  /// Runs `body`. If it throws, rank 0 prints the message, and all ranks end with the status of that error: those that
  /// exchange something, or check, with a LostRank. One that is asked to stop (Exit::stopped) waits for all others.
  /// @throws what `body` throws; an Error with an empty message if rank 0 has printed it
  void run(const std::function<void()>& body);

  /// Host memory. all: size() · bytes, in the order of ranks. @throws LostRank, as all of these
  void all_gather(const void* mine, size_t bytes, void* all);
  void broadcast(void* data, size_t bytes, int root);
  /// Piece p of `from` goes to rank p; piece p of `to` comes from rank p. bytes: of one piece.
  void all_to_all(const void* from, void* to, size_t bytes);
  void barrier();
  /// Each rank's text, in the order of ranks.
  std::vector<std::string> gather_texts(const std::string& mine);

  /// Not collective: one rank sends, the other receives as many bytes. A second thread may do so beside the collective
  /// calls. What one pair of ranks sends arrives in order.
  void send(int to, const void* data, size_t bytes);
  void receive(int from, void* data, size_t bytes);

  /// Tensors of any dtype, taken as flat; on the GPU by NCCL (or see open_peers) in the order of the kernels, which may
  /// be recorded (a first one outside of a recording connects the ranks).
  /// Piece p of `from` goes to rank p. to: what comes from the other ranks, in their order, (size() − 1) · (elements of
  /// my piece). @throws ShapeError, DTypeError, DeviceError, LostRank
  void all_to_all(const Tensor& from, const Ranges& pieces, Tensor& to);
  /// Piece r of each `all` is rank r's at first and everybody's afterwards.
  struct Gather {
    Tensor all;
    Ranges pieces;
  };
  void all_gather(const std::vector<Gather>& gathers);
  void all_gather(const Tensor& all, const Ranges& pieces) { all_gather({{all, pieces}}); }
  void all_gather(const Tensor& all, const Bounds& bounds) { all_gather(all, ranges_of(bounds)); }

  /// The GPU for this rank, for gpu::use: the one of its number on this machine, or the only one that it sees.
  int gpu_index() const;
  /// Opens NCCL for the GPU in use. Call it once, after gpu::use.
  /// @throws ConfigError as `require` does: NCCL is missing, or two ranks use one GPU, or the GPUs' models differ
  void use_gpu();

  /// The arena for tensors that other ranks read (open_peers): of memory that other processes can open, or on the CPU
  /// and alone the one of this thread. All ranks take the same tensors from it.
  std::shared_ptr<Arena> exchange_arena(Device device) const;
  /// Zeros, in that arena.
  Tensor zeros(const Shape& shape, DType dtype, Device device) const;
  /// Lets the ranks' GPUs read from each other what is in the exchange_arena, with so many marks; from then on
  /// all_gather does so too. nullptr where that is not possible: on the CPU, on several machines, between GPUs that
  /// CUDA does not let read each other, or with NCCL_P2P_DISABLE=1. What it gives lives as long as the group, or until
  /// the next call, before which all work of GPUs must be collected.
  gpu::Peers* open_peers(int marks);
  /// Why the last open_peers was not possible between the GPUs of one machine, in one line; else empty.
  std::string peers_problem() const;
  /// Counts bytes that GPUs bring to another rank in other ways than calls of this group.
  void count_sent(uint64_t bytes);

  /// Unless all ranks' problems are empty, rank 0 prints the first one and whose it is. @throws ConfigError
  void require(const std::string& problem);
  /// The same if two ranks' texts differ. what: "configurations"; mine: at most 1 MiB. @throws ConfigError
  void require_same(const std::string& what, const std::string& mine);

  /// Not collective, any thread. @throws LostRank if a rank is lost. For loops that wait for something else, such as
  /// gpu::Readback::wait: a lost rank's exchanges on the GPU are cancelled first, so that they end.
  void check() const;

  /// While one is alive, its rank must not stand still: if it begins no exchange for rank_timeout() or ten times
  /// `usual`, whichever is longer, while the others wait for it, it is lost. usual: seconds that the work takes at
  /// most; 0: not known, it may stand. Not collective; one at a time.
  class InTime {
   public:
    InTime(Group& group, double usual);
    ~InTime();
    InTime(const InTime&) = delete;

   private:
    Group& group_;
  };

  /// What this rank has sent to others, and how long it has waited in calls that exchange host memory.
  struct Traffic {
    uint64_t bytes = 0;
    uint64_t of_gpu = 0;  ///< of these, what calls of its GPU's exchanges sent, or recorded
    std::chrono::nanoseconds waited{0};
  };
  Traffic traffic() const;

 private:
  struct State;
  explicit Group(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace mmfree
