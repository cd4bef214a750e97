#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include "core/ranks/group.h"
#include "core/ranks/group_state.h"
#include "core/ranks/meeting.h"
#include "core/ranks/mpi_transport.h"
#include "core/ranks/tcp_transport.h"
#include "core/system/files.h"
#include "core/system/hash.h"

namespace mmfree {
namespace {

using tcp::Clock;

/// What rank 0 prints for all: others throw an error without a message.
[[noreturn]] void refuse(const Launch& launch, const std::string& problem) {
  throw ConfigError(launch.rank == 0 ? concat("ranks: ", problem) : "");
}

std::unique_ptr<Transport> start_mpi_of(const Launch& launch) {
  int rank = 0, size = 0;
  std::string problem;
  std::unique_ptr<Transport> mpi = start_mpi(rank, size, problem);
  if (!mpi)
    refuse(launch,
           concat("mpirun started this program, but MPI cannot be used: ", problem,
                  "; install MPI (Debian: libopenmpi-dev) and build again, or set MASTER_ADDR and MASTER_PORT"));
  if (rank != launch.rank || size != launch.size)
    refuse(launch, concat("mpirun says rank ", launch.rank, " of ", launch.size, ", but ", mpi->name(), " says rank ",
                          rank, " of ", size, "; use the mpirun of that MPI"));
  return mpi;
}

/// A free port, or that of the launch. An earlier run may just be leaving it.
tcp::Listener listen_for(const Launch& launch, int port) {
  const auto deadline = Clock::now() + std::chrono::seconds(10);
  for (;;) {
    tcp::Listener listener = tcp::listen_at(port);
    if (listener.socket.is_open()) return listener;
    const int error = errno;
    if (error != EADDRINUSE || Clock::now() > deadline)
      throw ConfigError(concat("ranks: rank ", launch.rank, " cannot listen at port ", port, ": ", error_text(error),
                               error == EADDRINUSE ? "; set another MASTER_PORT or MMFREE_PORT" : ""));
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

/// Rank 0 tells the others over MPI where they meet.
void agree_on_place(const Launch& launch, Transport& mpi, MeetingPlace& place) {
  char text[4096] = {};
  if (launch.rank == 0) {
    std::ostringstream out;
    out << place.port << ' ' << std::random_device()() << std::random_device()();
    for (const std::string& address : tcp::own_addresses()) out << ' ' << address;
    out.str().copy(text, sizeof text - 1);
  }
  const auto deadline = Clock::now() + rank_timeout();
  const auto check = [&](bool) {
    if (Clock::now() > deadline) refuse(launch, "not all ranks have started MPI");
  };
  std::vector<Outgoing> out;
  for (int r = 1; r < launch.size && launch.rank == 0; ++r) out.push_back({r, text, sizeof text});
  std::vector<Incoming> in;
  if (launch.rank != 0) in.push_back({0, text, sizeof text});
  try {
    mpi.exchange(Transport::collective, out, in, check);
  } catch (const BrokenLink& broken) {
    refuse(launch, broken.what());
  }
  text[sizeof text - 1] = 0;
  std::istringstream words(text);
  words >> place.port >> place.run;
  for (std::string address; words >> address;) place.addresses.push_back(address);
}

/// The processors that this thread may use, as hex digits; empty if the system does not say.
std::string affinity() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return "";
  std::string text;
  for (int i = 0; i < CPU_SETSIZE; i += 4) {
    int digit = 0;
    for (int bit = 0; bit < 4; ++bit) digit |= CPU_ISSET(i + bit, &set) ? 1 << bit : 0;
    text += "0123456789abcdef"[digit];
  }
  return text;
}

int value_of(char hex) { return hex <= '9' ? hex - '0' : hex - 'a' + 10; }

/// This rank's share of its processors, those with others divided among all that may use them.
int share_of_cores(const std::vector<std::string>& masks, size_t mine) {
  const std::string& own = masks[mine];
  int cores = 0, users = 0;
  for (const char digit : own) cores += __builtin_popcount(unsigned(value_of(digit)));
  for (const std::string& other : masks) {
    bool shares = false;
    for (size_t i = 0; i < std::min(own.size(), other.size()); ++i)
      shares = shares || (value_of(own[i]) & value_of(other[i])) != 0;
    users += shares ? 1 : 0;
  }
  return users > 0 ? std::max(1, cores / users) : 0;
}

/// Torchrun sets OMP_NUM_THREADS to 1 where nobody asked for a number.
bool threads_are_set(const Launch& launch) {
  const char* set = std::getenv("OMP_NUM_THREADS");
  return set && *set && !(launch.launcher == Launch::Launcher::torchrun && std::strcmp(set, "1") == 0);
}

std::string program_hash() {
  const std::string path = "/proc/self/exe";
  const Fd file = open_input(path);
  Hash128 hash;
  std::vector<char> buffer(size_t(1) << 20);
  for (int64_t at = 0, size = size_of_file(file, path); at < size;) {
    const int64_t n = std::min<int64_t>(size - at, int64_t(buffer.size()));
    read_exactly(file, path, at, buffer.data(), n);
    hash.update(buffer.data(), size_t(n));
    at += n;
  }
  return hex16(hash.digest()[0]);
}

}  // namespace

std::unique_ptr<Group> Group::join(const Launch& launch) {
  if (launch.size == 1) return alone();
  auto state = std::make_unique<State>();
  state->launch = launch;
  state->rank = launch.rank;
  state->size = launch.size;
  const bool by_mpi = launch.launcher == Launch::Launcher::mpi && launch.address.empty();
  if (by_mpi) state->transport = start_mpi_of(launch);
  MeetingPlace place{launch.rank, launch.size, launch.run, {launch.address}, launch.port, 0};
  tcp::Listener meeting_port, own_port;
  if (by_mpi) {
    place.addresses.clear();
    if (launch.rank == 0) meeting_port = listen_for(launch, 0);
    place.port = meeting_port.port;
    agree_on_place(launch, *state->transport, place);
  } else {
    own_port = listen_for(launch, 0);
    place.own_port = own_port.port;
    if (launch.rank == 0) meeting_port = listen_for(launch, launch.port);
  }
  state->watch =
      std::make_unique<Watch>(launch.rank == 0 ? host_meeting(place, std::move(meeting_port)) : join_meeting(place));
  std::unique_ptr<Group> group(new Group(std::move(state)));
  State& s = *group->state_;
  group->run([&] {
    if (!by_mpi) s.transport = connect_by_tcp(s.watch->meeting(), std::move(own_port), [&](bool) { s.watch->check(); });
    s.find_neighbours(group->gather_texts(affinity()));
    group->require_same("programs", "mmfree " MMFREE_VERSION " " + program_hash());
  });
  return group;
}

void Group::State::find_neighbours(const std::vector<std::string>& masks) {
  State& s = *this;
  const std::vector<Member>& members = s.watch->meeting().members;
  std::set<uint64_t> machines;
  std::vector<std::string> masks_here;
  s.local_size = 0;
  for (int r = 0; r < s.size; ++r) {
    const uint64_t machine = members[size_t(r)].machine;
    machines.insert(machine);
    if (machine != members[size_t(s.rank)].machine) continue;
    if (r == s.rank) s.local_rank = s.local_size;
    ++s.local_size;
    masks_here.push_back(masks[size_t(r)]);
  }
  s.machines = int(machines.size());
  if (!threads_are_set(s.launch)) s.threads = share_of_cores(masks_here, size_t(s.local_rank));
}

}  // namespace mmfree
