#pragma once
#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "core/system/files.h"

/// TCP sockets that never block: every wait has an end. None is inherited by programs that this one starts.
namespace mmfree::tcp {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

/// Milliseconds left for poll, 0 to `most`.
int left_ms(Deadline deadline, int most = 1000);

struct Listener {
  Fd socket;
  int port = 0;
};
/// Listens at a port of all addresses of this machine; port 0: any free one. Not open, with errno set, if it cannot.
Listener listen_at(int port);

/// Connects, without another try. Not open, with a reason in `problem`, if it cannot.
Fd connect_once(const std::string& host, int port, Deadline deadline, std::string& problem);

/// The next connection that someone has made, or not open.
Fd accept_one(const Fd& listener);

/// The other end's numeric address.
std::string peer_address(const Fd& socket);
/// Whether it is this machine's own loopback.
bool is_loopback(const std::string& address);
/// This machine's addresses by which others may reach it, loopback last.
std::vector<std::string> own_addresses();

/// All of `bytes`, before the deadline. False if not.
bool send_all(const Fd& socket, const void* data, size_t bytes, Deadline deadline);
bool read_all(const Fd& socket, void* data, size_t bytes, Deadline deadline);
/// What one call takes or gives now: 0 if nothing, -1 if the connection is closed or failed.
ssize_t send_some(const Fd& socket, const void* data, size_t bytes);
ssize_t read_some(const Fd& socket, void* data, size_t bytes);
/// Whether the other end has closed or reset the connection, and all that it sent has been read.
bool is_closed(const Fd& socket);

/// Takes the connections of a port at which strangers may call too, and reads one frame of a fixed size from each. Who
/// sends another magic, closes, or takes more than ten seconds is dropped without an answer.
class Reception {
 public:
  /// magic: the first 8 bytes of a frame. most: connections that may be incomplete at a time; beyond it the oldest
  /// goes.
  Reception(Listener listener, const char* magic, size_t frame_bytes, size_t most);
  int port() const { return listener_.port; }
  /// Waits for the next complete frame. False at the deadline.
  bool next(Fd& connection, void* frame, Deadline deadline);

 private:
  struct Caller {
    Fd socket;
    std::string got;
    Deadline until;
  };
  void accept_callers();
  bool is_frame_or_stranger(Caller& caller);
  Listener listener_;
  std::string magic_;
  size_t frame_bytes_, most_;
  std::vector<Caller> callers_;  ///< oldest first
};

}  // namespace mmfree::tcp
