#include "core/ranks/meeting.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/system/hash.h"

namespace mmfree {
namespace {

using tcp::Clock;
using tcp::Deadline;

constexpr char kHelloMagic[9] = "mmfreeH2", kAnswerMagic[9] = "mmfreeA1";
constexpr auto kPause = std::chrono::milliseconds(100), kOneTry = std::chrono::milliseconds(5000);

/// What a rank says when it comes, and what it is answered: fixed sizes in the byte order of the machine. A rank of
/// another order or version has another magic number or another hash of its run.
struct Hello {
  char magic[8];
  uint32_t rank, size, port, process;
  uint64_t run, machine;
  char host[64];
};
enum class Verdict : uint32_t { welcome, other_run, refused };
struct Answer {
  char magic[8];
  Verdict verdict;
  uint32_t size;  ///< so many Entry follow a welcome
  uint64_t key[2];
};
struct Entry {
  uint64_t machine;
  uint32_t port, process;
  char host[64], address[48];
};

template <size_t N>
void put(char (&to)[N], const std::string& text) {
  std::memset(to, 0, N);
  text.copy(to, N - 1);
}
template <size_t N>
std::string take(const char (&from)[N]) {
  return std::string(from, strnlen(from, N));
}

std::string this_host() {
  char name[65] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

/// Containers of one machine have names of their own and may have devices and cores of their own.
uint64_t this_machine() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  return hash64(boot + this_host());
}

Hello hello_of(const MeetingPlace& place) {
  Hello hello = {};
  std::memcpy(hello.magic, kHelloMagic, 8);
  hello.rank = uint32_t(place.rank);
  hello.size = uint32_t(place.size);
  hello.port = uint32_t(place.own_port);
  hello.process = uint32_t(::getpid());
  hello.run = hash64(place.run);
  hello.machine = this_machine();
  put(hello.host, this_host());
  return hello;
}

Member member_of(const Hello& hello, const std::string& address) {
  return {take(hello.host), hello.machine, hello.process, address, int(hello.port)};
}

void answer(const Fd& caller, Verdict verdict) {
  Answer a = {};
  std::memcpy(a.magic, kAnswerMagic, 8);
  a.verdict = verdict;
  tcp::send_all(caller, &a, sizeof a, Clock::now() + std::chrono::seconds(1));
}

/// The first ranks that have not come: "1, 2 and 5 more".
std::string missing_ranks(const Meeting& meeting) {
  std::string text;
  int count = 0;
  for (int r = 1; r < meeting.size(); ++r)
    if (!meeting.spokes[size_t(r)].is_open() && ++count <= 8) text += (text.empty() ? "" : ", ") + std::to_string(r);
  return count > 8 ? concat(text, " and ", count - 8, " more") : text;
}

/// Takes a caller in, or says what is wrong with the run.
std::string admit(Meeting& meeting, const MeetingPlace& place, const Hello& hello, Fd& caller) {
  const std::string who = concat("rank ", hello.rank, " on ", quote(take(hello.host)));
  if (hello.size != uint32_t(place.size))
    return concat(who, " was started as one of ", hello.size, " ranks, and rank 0 as one of ", place.size,
                  "; start all ranks by one command");
  if (hello.rank == 0 || hello.rank >= hello.size)
    return concat("a second process, ", hello.process, " on ", quote(take(hello.host)), ", came as rank ", hello.rank,
                  " of ", hello.size, "; start all ranks by one command");
  Fd& spoke = meeting.spokes[hello.rank];
  if (spoke.is_open() && !tcp::is_closed(spoke))
    return concat("two processes came as rank ", hello.rank, ": ", meeting.name_of(int(hello.rank)), " and process ",
                  hello.process, " on ", quote(take(hello.host)), "; start all ranks by one command");
  meeting.members[hello.rank] = member_of(hello, tcp::peer_address(caller));
  spoke = std::move(caller);
  return "";
}

/// Whether all that came are still there; who went may come again.
bool all_here(Meeting& meeting) {
  bool all = true;
  for (size_t r = 1; r < meeting.spokes.size(); ++r) {
    if (meeting.spokes[r].is_open() && tcp::is_closed(meeting.spokes[r])) meeting.spokes[r].close();
    all = all && meeting.spokes[r].is_open();
  }
  return all;
}

void welcome(Meeting& meeting, Deadline deadline) {
  std::random_device random;
  for (uint64_t& half : meeting.key) half = uint64_t(random()) << 32 | random();
  Answer a = {};
  std::memcpy(a.magic, kAnswerMagic, 8);
  a.verdict = Verdict::welcome;
  a.size = uint32_t(meeting.size());
  std::copy(meeting.key.begin(), meeting.key.end(), a.key);
  std::string bytes(reinterpret_cast<const char*>(&a), sizeof a);
  for (const Member& m : meeting.members) {
    Entry e = {m.machine, uint32_t(m.port), m.process, {}, {}};
    put(e.host, m.host);
    put(e.address, m.address);
    bytes.append(reinterpret_cast<const char*>(&e), sizeof e);
  }
  // Who went in the meantime is noticed as any rank that is lost.
  for (size_t r = 1; r < meeting.spokes.size(); ++r)
    tcp::send_all(meeting.spokes[r], bytes.data(), bytes.size(), deadline);
}

/// A try to meet rank 0 at one address. `again`: it may go better later. `problem`: why it went wrong.
bool try_to_join(Meeting& meeting, const MeetingPlace& place, const std::string& address, Deadline deadline,
                 bool& again, std::string& problem) {
  again = true;
  Fd socket = tcp::connect_once(address, place.port, std::min(deadline, Clock::now() + kOneTry), problem);
  if (!socket.is_open()) return false;
  const Hello hello = hello_of(place);
  Answer a = {};
  problem = "no answer";
  if (!tcp::send_all(socket, &hello, sizeof hello, deadline) ||
      !tcp::read_all(socket, a.magic, sizeof a.magic, deadline))
    return false;
  again = false;
  problem = "another program answers there; set another MASTER_PORT or MMFREE_PORT";
  if (std::memcmp(a.magic, kAnswerMagic, 8) != 0) return false;
  problem = "rank 0 ended";
  if (!tcp::read_all(socket, a.magic + 8, sizeof a - 8, deadline)) return false;
  problem = "ranks of another run meet there; set another MASTER_PORT or MMFREE_PORT";
  if (a.verdict == Verdict::other_run) return false;
  problem.clear();  // rank 0 says it
  if (a.verdict != Verdict::welcome) return false;
  problem = "rank 0 answered what makes no sense";
  if (a.size != uint32_t(place.size)) return false;
  std::vector<Entry> entries(a.size);
  problem = "rank 0 ended";
  if (!tcp::read_all(socket, entries.data(), entries.size() * sizeof(Entry), deadline)) return false;
  std::copy(a.key, a.key + 2, meeting.key.begin());
  for (const Entry& e : entries) {
    Member m = {take(e.host), e.machine, e.process, take(e.address), int(e.port)};
    // Rank 0 knows itself by no address, and by its loopback those beside it; this rank knows its way to them.
    if (m.address.empty() || tcp::is_loopback(m.address)) m.address = tcp::peer_address(socket);
    meeting.members.push_back(std::move(m));
  }
  meeting.spokes.push_back(std::move(socket));
  return true;
}

}  // namespace

std::chrono::seconds rank_timeout() {
  const char* text = std::getenv("MMFREE_RANK_TIMEOUT");
  if (!text || !*text) return std::chrono::seconds(40);
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  MMFREE_CHECK(ConfigError, *end == 0 && value >= 3 && value <= 3600, "MMFREE_RANK_TIMEOUT is ", quote(text),
               "; expected seconds, 3 to 3600");
  return std::chrono::seconds(value);
}

std::string Meeting::name_of(int r) const {
  const Member& m = members[size_t(r)];
  return concat("rank ", r, " on ", quote(m.host), " (process ", m.process, ")");
}

Meeting host_meeting(const MeetingPlace& place, tcp::Listener listener) {
  const auto patience = rank_timeout() + std::chrono::seconds(10);
  const Deadline deadline = Clock::now() + patience;
  Meeting meeting;
  meeting.members.resize(size_t(place.size));
  meeting.spokes.resize(size_t(place.size));
  const Hello own = hello_of(place);
  meeting.members[0] = member_of(own, "");
  tcp::Reception reception(std::move(listener), kHelloMagic, sizeof(Hello), size_t(place.size) * 2 + 64);
  std::string problem;
  while (problem.empty() && !all_here(meeting)) {
    Hello hello = {};
    Fd caller;
    if (!reception.next(caller, &hello, deadline)) {
      if (all_here(meeting)) break;
      problem = concat("no word of rank ", missing_ranks(meeting), " of ", place.size, " in ", patience.count(),
                       " s; were all ranks started, and can they reach port ", reception.port(), " of ",
                       quote(meeting.members[0].host), "?");
    } else if (hello.run != own.run) {
      answer(caller, Verdict::other_run);
    } else {
      problem = admit(meeting, place, hello, caller);
      if (!problem.empty()) answer(caller, Verdict::refused);
    }
  }
  if (problem.empty()) {
    welcome(meeting, deadline + std::chrono::seconds(10));
    return meeting;
  }
  for (const Fd& spoke : meeting.spokes)
    if (spoke.is_open()) answer(spoke, Verdict::refused);
  throw ConfigError(problem);
}

Meeting join_meeting(const MeetingPlace& place) {
  const auto patience = rank_timeout() + std::chrono::seconds(15);  // rank 0's own message comes first
  const Deadline deadline = Clock::now() + patience;
  Meeting meeting;
  meeting.rank = place.rank;
  std::string problem = "no address";
  do {
    for (const std::string& address : place.addresses) {
      bool again = true;
      if (try_to_join(meeting, place, address, deadline, again, problem)) return meeting;
      const std::string at = concat("rank ", place.rank, ": ", quote(address), " port ", place.port, ": ", problem);
      MMFREE_CHECK(ConfigError, again || place.addresses.size() > 1, problem.empty() ? "" : at);
      if (!again && problem.empty()) throw ConfigError("");
    }
    std::this_thread::sleep_for(kPause);
  } while (Clock::now() < deadline);
  throw ConfigError(concat("rank ", place.rank, " cannot reach rank 0 at ", quote(place.addresses.back()), " port ",
                           place.port, ": ", problem, "; does it run, and is MASTER_ADDR right?"));
}

}  // namespace mmfree
