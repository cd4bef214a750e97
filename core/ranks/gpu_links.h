#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/ranks/transport.h"

namespace mmfree::gpu {

/// Device memory.
struct Span {
  void* data;
  size_t bytes;
};

/// The ways between the ranks' GPUs: NCCL, which is opened at run time. Exists in every build; without the CUDA backend
/// `problem` says so, and the rest throws DeviceError. Exchanges run on the compute stream, in the order of its
/// kernels, and may be recorded; all ranks make the same ones in the same order. Bytes arrive as they were sent.
class Links {
 public:
  /// Why NCCL cannot be used, in one line; empty if it can.
  static std::string problem();
  /// Names a new set of links: made by one rank, known to all before they construct theirs.
  static std::string new_id();

  /// Connects all ranks' GPUs, each the one in use. Collective. @throws DeviceError, also if that takes longer than
  /// `seconds`
  Links(const std::string& id, int rank, int size, int seconds);
  ~Links();
  Links(const Links&) = delete;

  /// Device memory; at most one piece of each kind per rank, and none of this one's. @throws DeviceError
  void exchange(const std::vector<Outgoing>&, const std::vector<Incoming>&);
  /// Of each list: the ranks' pieces, wherever they are and of any size; this rank's goes to all. @throws DeviceError
  void all_gather(const std::vector<std::vector<Span>>& lists);

  /// What has gone wrong since, in one line; empty if nothing. Any thread.
  std::string failure() const;
  /// Ends all exchanges that are under way, also recorded ones. Nothing may be exchanged afterwards. Any thread.
  void cancel();

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

}  // namespace mmfree::gpu
