#include "core/ranks/tcp_transport.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>

#include "core/error.h"

namespace mmfree {
namespace {

using std::chrono::milliseconds;
using tcp::Clock;

constexpr int kChannels = 2;
constexpr char kLinkMagic[9] = "mmfreeL1";
constexpr uint32_t kMessageMagic = 0x6D6D664D;
constexpr auto kIdle = std::chrono::seconds(2);

/// The first frame on a connection, and its answer.
struct Introduction {
  char magic[8];
  uint64_t key[2];
  uint32_t from, to, channel, reserved;
};

/// Stands before each message.
struct Header {
  uint32_t magic, reserved;
  uint64_t number, bytes;
};

struct Link {
  Fd socket;
  uint64_t sent = 0, received = 0;  ///< messages
};

/// A message under way: its header, then its bytes.
struct Sending {
  const Outgoing* piece;
  Link* link;
  Header header;
  size_t done = 0;
  bool is_done() const { return done == sizeof header + piece->bytes; }
};
struct Receiving {
  const Incoming* piece;
  Link* link;
  Header header;
  size_t done = 0;
  bool is_done() const { return done == sizeof header + piece->bytes; }
};

[[noreturn]] void ended(int rank) { throw BrokenLink(rank, "the connection has ended", true); }

/// Sends what the socket takes. Returns whether that was anything.
bool advance(Sending& s) {
  iovec parts[2] = {{&s.header, sizeof s.header}, {const_cast<void*>(s.piece->data), s.piece->bytes}};
  msghdr message = {};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  const size_t of_header = std::min(s.done, sizeof s.header), of_data = s.done - of_header;
  parts[0] = {reinterpret_cast<char*>(&s.header) + of_header, sizeof s.header - of_header};
  parts[1] = {static_cast<char*>(parts[1].iov_base) + of_data, s.piece->bytes - of_data};
  const ssize_t n = ::sendmsg(s.link->socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) ended(s.piece->to);
  s.done += size_t(std::max<ssize_t>(n, 0));
  return n > 0;
}

/// Reads what has come. Returns whether that was anything.
bool advance(Receiving& r) {
  const bool in_header = r.done < sizeof r.header;
  char* to = in_header ? reinterpret_cast<char*>(&r.header) + r.done
                       : static_cast<char*>(r.piece->data) + (r.done - sizeof r.header);
  const size_t wanted = in_header ? sizeof r.header - r.done : sizeof r.header + r.piece->bytes - r.done;
  const ssize_t n = tcp::read_some(r.link->socket, to, wanted);
  if (n < 0) ended(r.piece->from);
  r.done += size_t(n);
  if (in_header && r.done == sizeof r.header) {
    const bool is_message = r.header.magic == kMessageMagic && r.header.number == r.link->received;
    if (!is_message || r.header.bytes != r.piece->bytes)
      throw BrokenLink(r.piece->from,
                       concat("message ", r.link->received, ": expected ", r.piece->bytes, " bytes, it sent ",
                              is_message ? concat(r.header.bytes) : "what is no message"),
                       false);
  }
  return n > 0;
}

class TcpTransport : public Transport {
 public:
  explicit TcpTransport(int size) {
    for (auto& links : links_) links.resize(size_t(size));
  }
  std::string name() const override { return "TCP"; }
  void exchange(Channel, const std::vector<Outgoing>&, const std::vector<Incoming>&, const Check&) override;

  std::vector<Link> links_[kChannels];
};

void TcpTransport::exchange(Channel channel, const std::vector<Outgoing>& out, const std::vector<Incoming>& in,
                            const Check& check) {
  std::vector<Sending> sending;
  std::vector<Receiving> receiving;
  for (const Outgoing& piece : out) {
    Link& link = links_[channel][size_t(piece.to)];
    sending.push_back({&piece, &link, {kMessageMagic, 0, link.sent++, piece.bytes}});
  }
  for (const Incoming& piece : in) receiving.push_back({&piece, &links_[channel][size_t(piece.from)], {}});
  auto moved = Clock::now(), checked = moved;
  std::vector<pollfd> ready;
  for (;;) {
    bool any = false;
    for (Sending& s : sending)
      if (!s.is_done()) any = advance(s) || any;
    for (Receiving& r : receiving) {
      if (r.is_done()) continue;
      while (advance(r)) {
        any = true;
        if (r.is_done()) break;
      }
      if (r.is_done()) ++r.link->received;
    }
    std::erase_if(sending, [](const Sending& s) { return s.is_done(); });
    std::erase_if(receiving, [](const Receiving& r) { return r.is_done(); });
    if (sending.empty() && receiving.empty()) return;
    const auto now = Clock::now();
    if (any) moved = now;
    if (now - checked > milliseconds(50)) check(now - moved > kIdle), checked = now;
    if (any) continue;
    ready.clear();
    for (const Sending& s : sending) ready.push_back({s.link->socket.get(), POLLOUT, 0});
    for (const Receiving& r : receiving) ready.push_back({r.link->socket.get(), POLLIN, 0});
    ::poll(ready.data(), ready.size(), 50);
  }
}

Introduction introduction(const Meeting& meeting, int from, int to, int channel) {
  Introduction i = {};
  std::memcpy(i.magic, kLinkMagic, 8);
  std::copy(meeting.key.begin(), meeting.key.end(), i.key);
  i.from = uint32_t(from);
  i.to = uint32_t(to);
  i.channel = uint32_t(channel);
  return i;
}

/// A connection to a lower rank, which answers when it has its own.
Fd call(const Meeting& meeting, int rank, int channel, tcp::Deadline deadline, const Check& check) {
  const Member& member = meeting.members[size_t(rank)];
  const Introduction mine = introduction(meeting, meeting.rank, rank, channel);
  std::string problem;
  while (Clock::now() < deadline) {
    check(false);
    Fd socket = tcp::connect_once(member.address, member.port, deadline, problem);
    if (!socket.is_open()) {
      std::this_thread::sleep_for(milliseconds(100));
      continue;
    }
    problem = "no answer of this run";
    Introduction answer = {};
    if (!tcp::send_all(socket, &mine, sizeof mine, deadline)) continue;
    for (pollfd ready = {socket.get(), POLLIN, 0}; ::poll(&ready, 1, 50) <= 0 && Clock::now() < deadline;) check(false);
    if (tcp::read_all(socket, &answer, sizeof answer, deadline) && std::memcmp(&answer, &mine, sizeof mine) == 0)
      return socket;
    std::this_thread::sleep_for(milliseconds(100));
  }
  throw ConfigError(concat("cannot reach ", meeting.name_of(rank), " at ", quote(member.address), " port ", member.port,
                           ": ", problem, "; each machine must reach each other by TCP"));
}

}  // namespace

std::unique_ptr<Transport> connect_by_tcp(const Meeting& meeting, tcp::Listener listener, const Check& check) {
  const tcp::Deadline deadline = Clock::now() + rank_timeout();
  auto transport = std::make_unique<TcpTransport>(meeting.size());
  for (int r = 0; r < meeting.rank; ++r)
    for (int c = 0; c < kChannels; ++c) transport->links_[c][size_t(r)].socket = call(meeting, r, c, deadline, check);
  tcp::Reception reception(std::move(listener), kLinkMagic, sizeof(Introduction), size_t(meeting.size()) * 2 + 64);
  for (int wanted = kChannels * (meeting.size() - 1 - meeting.rank); wanted > 0;) {
    check(false);
    Introduction i = {};
    Fd caller;
    if (!reception.next(caller, &i, std::min(deadline, Clock::now() + milliseconds(100)))) {
      MMFREE_CHECK(ConfigError, Clock::now() < deadline, "ranks that met cannot reach ", meeting.name_of(meeting.rank),
                   " at port ", reception.port(), "; each machine must reach each other by TCP");
      continue;
    }
    const Introduction expected = introduction(meeting, int(i.from), meeting.rank, int(i.channel));
    const bool known = std::memcmp(&i, &expected, sizeof i) == 0 && int64_t(i.from) > meeting.rank &&
                       i.from < uint32_t(meeting.size()) && i.channel < uint32_t(kChannels);
    if (!known) continue;
    Fd& socket = transport->links_[i.channel][i.from].socket;
    if (!tcp::send_all(caller, &i, sizeof i, deadline)) continue;
    wanted -= socket.is_open() ? 0 : 1;  // a caller that got no answer may have come again
    socket = std::move(caller);
  }
  return transport;
}

}  // namespace mmfree
