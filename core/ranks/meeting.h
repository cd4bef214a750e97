#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "core/ranks/socket.h"

namespace mmfree {

/// How long a rank may be silent before it counts as lost; a start waits ten seconds longer for missing ranks.
/// 40 s, or MMFREE_RANK_TIMEOUT (3 to 3600), which a start of very many machines may need. @throws ConfigError
std::chrono::seconds rank_timeout();

/// A process of the run, as rank 0 has met it.
struct Member {
  std::string host;
  uint64_t machine = 0;  ///< equal for processes of one machine
  uint32_t process = 0;  ///< its number there
  std::string address;   ///< numeric; where it listens for other ranks
  int port = 0;          ///< 0: it does not listen
};

/// All ranks of a run after they have met at rank 0.
struct Meeting {
  int rank = 0;
  std::vector<Member> members;
  std::array<uint64_t, 2> key{};  ///< drawn by rank 0: who knows it belongs to this run
  /// Rank 0: a connection to each rank, the first one not open. Others: the connection to rank 0.
  std::vector<Fd> spokes;
  int size() const { return int(members.size()); }
  /// "rank 2 on 'host' (process 17)"
  std::string name_of(int rank) const;
};

/// Where the ranks of a run meet.
struct MeetingPlace {
  int rank = 0, size = 1;
  std::string run;                     ///< what all ranks know of their run, and ranks of others do not
  std::vector<std::string> addresses;  ///< of rank 0, tried in turn; not used by rank 0
  int port = 0;
  int own_port = 0;  ///< where this rank listens for the others; 0: it does not
};

/// Waits at `listener` for all other ranks. Strangers are dropped, ranks of other runs are sent away.
/// @throws ConfigError if ranks are missing, or two have one number, or their sizes differ; all ranks that came are
/// told and end too
Meeting host_meeting(const MeetingPlace&, tcp::Listener listener);
/// Comes to rank 0 and waits for the others. @throws ConfigError; with an empty message if rank 0 knows why
Meeting join_meeting(const MeetingPlace&);

}  // namespace mmfree
