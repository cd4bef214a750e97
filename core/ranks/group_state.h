#pragma once
#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/ranks/gpu_links.h"
#include "core/ranks/gpu_peers.h"
#include "core/ranks/group.h"
#include "core/ranks/transport.h"
#include "core/ranks/watch.h"

namespace mmfree {

/// What a Group consists of. Private to group*.cpp.
struct Group::State {
  Launch launch;
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1, machines = 1, threads = 0;
  std::unique_ptr<Watch> watch;  ///< not there if there are no other ranks, or if they are pretended
  std::unique_ptr<Transport> transport;
  std::shared_ptr<Arena> arena;  ///< of Peers::memory
  /// Links go first: while they wait for others, memory cannot be given back. A cancelling thread may outlive the
  /// group.
  std::shared_ptr<gpu::Peers> peers;
  std::string peers_problem;
  std::shared_ptr<gpu::Links> links;
  std::atomic<uint64_t> bytes{0}, gpu_bytes{0};  ///< sent from host memory, and by GPUs
  std::atomic<int64_t> waited_ns{0};
  bool left = false, all_left = false;  ///< this rank has said goodbye; so have all others

  bool has_others() const { return watch != nullptr; }
  /// Says goodbye, once; rank 0 prints the message first.
  void leave(Exit status, const std::string& message = "");
  /// All ranks know the problem: rank 0 prints it, and all end. @throws ConfigError
  [[noreturn]] void refuse(const std::string& problem);
  /// Throws if what the exchange waits for cannot come.
  void check(bool idle, const std::vector<Outgoing>& out, const std::vector<Incoming>& in);
  void exchange(Transport::Channel channel, const std::vector<Outgoing>& out, const std::vector<Incoming>& in);

  /// Counts machines, the ranks of this one, and this rank's share of the cores. masks: each rank's processors.
  void find_neighbours(const std::vector<std::string>& masks);

  struct Part {
    size_t at, bytes;
  };
  /// The pieces of one exchange, this rank's and empty ones left out: part r of `from` goes to rank r, part r of `to`
  /// comes from it.
  struct Pieces {
    std::vector<Outgoing> out;
    std::vector<Incoming> in;
  };
  Pieces pieces(const void* from, const std::vector<Part>& out, void* to, const std::vector<Part>& in) const;
  /// The same in host memory.
  void exchange_parts(const void* from, const std::vector<Part>& out, void* to, const std::vector<Part>& in) {
    const Pieces p = pieces(from, out, to, in);
    exchange(Transport::collective, p.out, p.in);
  }
  /// Tensors' memory.
  void exchange_on(Device device, const Pieces& pieces);
  gpu::Links& links_of_gpu() const;
};

}  // namespace mmfree
