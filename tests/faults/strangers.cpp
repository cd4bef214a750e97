// Strangers call at the ports where the ranks of a run meet: the ranks find each other nevertheless, and nobody else.
//   strangers COUNT SEED [CASE]     random bytes, requests of other protocols, callers that say nothing, or a byte at a
//                                   time, or the beginning of what a rank says, or what a rank of another run says; and
//                                   ranks that say damaged things after they have met
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "core/ranks/meeting.h"
#include "core/ranks/tcp_transport.h"
#include "core/ranks/watch.h"
#include "tests/support/fault_main.h"

namespace mmfree {
namespace {

using Random = std::mt19937_64;
using tcp::Clock;
constexpr auto kSoon = std::chrono::seconds(60);  ///< far more than what an idle machine needs

std::string random_bytes(Random& random, size_t most) {
  std::string bytes(random() % (most + 1), 0);
  for (char& c : bytes) c = char(random());
  return bytes;
}

template <class Number>
void append(std::string& bytes, Number number) {
  bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
}

/// What a rank says, but for what tells its run from others.
std::string nearly_a_rank(Random& random) {
  std::string bytes;
  if (random() % 2) {  // from, to, channel
    bytes = "mmfreeL1";
    for (int i = 0; i < 2; ++i) append(bytes, uint64_t(random()));
    for (const uint32_t number : {uint32_t(1 + random() % 3), uint32_t(random() % 2), uint32_t(random() % 2), 0u})
      append(bytes, number);
  } else {  // rank, size, port, process, run, machine, host
    bytes = "mmfreeH2";
    for (const uint32_t number : {uint32_t(random() % 4), uint32_t(2 + random() % 3), 1u, 1u}) append(bytes, number);
    for (int i = 0; i < 2; ++i) append(bytes, uint64_t(random()));
    bytes.resize(bytes.size() + 64, 'h');
  }
  return bytes;
}

/// What a stranger may say.
std::string words_of_stranger(Random& random) {
  if (random() % 4 == 0) return nearly_a_rank(random);
  const char* begins[] = {"mmfreeH2",      "mmfreeA1",     "mmfreeL1", "mmfw", "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                          "SSH-2.0-x\r\n", "\x16\x03\x01", ""};
  std::string bytes = begins[random() % std::size(begins)];
  // Two introductions are 112 and 40 bytes long: shorter, as long, and longer.
  return bytes + random_bytes(random, random() % 2 ? 160 : 5000);
}

/// Calls until the run has met: says something, at once or slowly, waits or goes.
void be_a_stranger(uint64_t seed, const std::vector<int>& ports, const std::atomic<bool>& over,
                   std::atomic<int64_t>& calls) {
  Random random(seed);
  std::vector<Fd> waiting;
  while (!over && waiting.size() < 40) {
    std::string problem;
    Fd socket = tcp::connect_once("127.0.0.1", ports[random() % ports.size()], Clock::now() + kSoon, problem);
    if (!socket.is_open()) continue;
    ++calls;
    const std::string words = words_of_stranger(random);
    const size_t step = random() % 3 == 0 ? 1 + random() % 7 : words.size();
    for (size_t at = 0; at < words.size() && !over; at += step) {
      if (tcp::send_some(socket, words.data() + at, std::min(step, words.size() - at)) < 0) break;
      if (step < words.size()) std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    if (random() % 2) {
      const linger now = {1, 0};  // a reset, not a goodbye
      ::setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
    if (random() % 3 == 0) waiting.push_back(std::move(socket));
  }
}

struct Rank {
  MeetingPlace place;
  tcp::Listener own, meeting_port;
  Meeting meeting;
  std::unique_ptr<Transport> transport;
  std::string problem;
};

/// Meets, connects, and exchanges a word with each other rank.
void be_a_rank(Rank& rank, const std::atomic<bool>& failed) {
  try {
    rank.meeting =
        rank.place.rank == 0 ? host_meeting(rank.place, std::move(rank.meeting_port)) : join_meeting(rank.place);
    rank.transport = connect_by_tcp(rank.meeting, std::move(rank.own), [](bool) {});
    std::vector<uint64_t> got(size_t(rank.place.size));
    const uint64_t mine = uint64_t(rank.place.rank) * 1000003;
    std::vector<Outgoing> out;
    std::vector<Incoming> in;
    for (int r = 0; r < rank.place.size; ++r) {
      if (r == rank.place.rank) continue;
      out.push_back({r, &mine, sizeof mine});
      in.push_back({r, &got[size_t(r)], sizeof mine});
    }
    rank.transport->exchange(Transport::collective, out, in, [&](bool) {
      if (failed) throw std::runtime_error("another rank failed");
    });
    for (int r = 0; r < rank.place.size; ++r)
      if (r != rank.place.rank && got[size_t(r)] != uint64_t(r) * 1000003) throw std::runtime_error("a wrong word");
  } catch (const std::exception& e) {
    rank.problem = concat("rank ", rank.place.rank, ": ", e.what());
  }
}

/// A process of another run comes to the same port: it must be sent away.
void be_of_another_run(MeetingPlace place, std::string& wrong) {
  place.run = "another";
  place.rank = 1;
  try {
    join_meeting(place);
    wrong = "a rank of another run was taken in";
  } catch (const ConfigError& e) {
    if (std::strstr(e.what(), "another run") || std::strstr(e.what(), "no answer")) return;
    if (std::strstr(e.what(), "cannot reach")) return;  // the run had met before
    wrong = e.what();
  }
}

class Strangers {
 public:
  std::string run(uint64_t seed, int64_t number, Tally& tally) {
    Random random(seed * 1000003 + uint64_t(number));
    return random() % 4 == 0 ? damaged_member(random, tally) : meeting_among_strangers(random, tally);
  }

 private:
  static std::string meeting_among_strangers(Random& random, Tally& tally) {
    const int size = 2 + int(random() % 3);
    tcp::Listener first = tcp::listen_at(0);
    std::vector<int> ports = {first.port};
    std::vector<Rank> ranks(static_cast<size_t>(size));
    for (int r = 0; r < size; ++r) {
      Rank& rank = ranks[size_t(r)];
      rank.own = tcp::listen_at(0);
      ports.push_back(rank.own.port);
      rank.place = {r, size, "this", {"127.0.0.1"}, first.port, rank.own.port};
    }
    ranks[0].meeting_port = std::move(first);
    std::atomic<bool> over = false, failed = false;
    std::atomic<int64_t> calls = 0;
    std::vector<std::thread> strangers, threads;
    for (int i = 0; i < 3; ++i)
      strangers.emplace_back(be_a_stranger, random(), ports, std::cref(over), std::ref(calls));
    const bool other_run = random() % 2;
    std::string wrong;
    MeetingPlace place = ranks[0].place;
    if (other_run) threads.emplace_back([&, place] { be_of_another_run(place, wrong); });
    for (Rank& rank : ranks) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 20000));
      threads.emplace_back([&] {
        be_a_rank(rank, failed);
        if (!rank.problem.empty()) failed = true;
      });
    }
    for (size_t i = other_run; i < threads.size(); ++i) threads[i].join();
    if (other_run) threads[0].join();
    over = true;
    for (std::thread& t : strangers) t.join();
    for (const Rank& rank : ranks)
      if (!rank.problem.empty()) return rank.problem;
    tally.count("meetings");
    for (int64_t i = 0; i < calls; ++i) tally.count("calls of strangers");
    return wrong;
  }

  /// Rank 1 meets rank 0 and then says what makes no sense, or goes: rank 0 notices.
  static std::string damaged_member(Random& random, Tally& tally) {
    tcp::Listener port = tcp::listen_at(0), own = tcp::listen_at(0);
    const MeetingPlace place{0, 2, "this", {"127.0.0.1"}, port.port, own.port};
    MeetingPlace others = place;
    others.rank = 1;
    Meeting theirs;
    std::thread other([&] { theirs = join_meeting(others); });
    Meeting meeting = host_meeting(place, std::move(port));
    other.join();
    Watch watch(std::move(meeting));
    std::string bytes = random() % 2 ? "mmfw" + random_bytes(random, 60) : random_bytes(random, 60);
    if (bytes.size() < 32) bytes.resize(32, 'x');                         // as long as a word
    if (bytes.compare(0, 4, "mmfw") == 0 && bytes[7] == 0) bytes[7] = 1;  // no kind of word
    tcp::send_all(theirs.spokes[0], bytes.data(), bytes.size(), Clock::now() + kSoon);
    const bool goes = random() % 2;
    if (goes) theirs.spokes.clear();
    for (const auto end = Clock::now() + std::chrono::seconds(8); Clock::now() < end;) {
      try {
        watch.check();
      } catch (const LostRank&) {
        tally.count("damaged words noticed");
        return "";
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return "nobody noticed damaged words";
  }
};

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  return mmfree::fault_main([&] { return mmfree::run_cases<mmfree::Strangers>("strangers", argc, argv); });
}
