#pragma once
#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace mmfree {

/// Memory that goes to a rank, and memory that is filled by one.
struct Outgoing {
  int to;
  const void* data;
  size_t bytes;
};
struct Incoming {
  int from;
  void* data;
  size_t bytes;
};

/// What a wait may ask: throws when waiting is useless. idle: nothing has arrived or left for some seconds.
using Check = std::function<void(bool idle)>;

/// A transport lost the way to a rank, or got from it what was not expected.
struct BrokenLink : std::runtime_error {
  BrokenLink(int rank, const std::string& message, bool ended)
      : std::runtime_error(message), peer(rank), ended(ended) {}
  int peer;
  bool ended;  ///< the way is lost: the peer probably ended
};

/// What carries bytes between the host memories of ranks. Messages between two ranks keep their order, separately on
/// each channel; each channel is used by one thread at a time.
class Transport {
 public:
  enum Channel : int { collective, beside };

  virtual ~Transport() = default;
  virtual std::string name() const = 0;
  /// Sends and receives all pieces at once, at most one of each kind per rank and none of this one's. Calls `check`
  /// about twenty times a second while it waits. @throws BrokenLink; what `check` throws: then the transport is
  /// useless
  virtual void exchange(Channel, const std::vector<Outgoing>&, const std::vector<Incoming>&, const Check& check) = 0;
  /// All ranks have come to their end: says goodbye to the engine.
  virtual void finish() {}
};

}  // namespace mmfree
