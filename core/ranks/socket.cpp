#include "core/ranks/socket.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "core/error.h"

namespace mmfree::tcp {
namespace {

constexpr auto kCallerTime = std::chrono::seconds(10);

Fd new_socket(int family) { return Fd(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)); }

void set_option(const Fd& socket, int level, int option, int value) {
  ::setsockopt(socket.get(), level, option, &value, sizeof value);
}

std::string text_of(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = {};
  if (address->sa_family == AF_INET) {
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text, sizeof text);
    return text;
  }
  const in6_addr& six = reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
  if (IN6_IS_ADDR_V4MAPPED(&six))
    ::inet_ntop(AF_INET, six.s6_addr + 12, text, sizeof text);
  else
    ::inet_ntop(AF_INET6, &six, text, sizeof text);
  return text;
}

/// Binds and listens; -1 with errno set if it cannot.
Listener listen_by(int family, int port) {
  Fd socket = new_socket(family);
  if (!socket.is_open()) return Listener{Fd(), 0};
  set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);
  sockaddr_storage at = {};
  socklen_t size = sizeof(sockaddr_in);
  if (family == AF_INET6) {
    set_option(socket, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    auto& six = reinterpret_cast<sockaddr_in6&>(at);
    six.sin6_family = AF_INET6;
    six.sin6_addr = in6addr_any;
    six.sin6_port = htons(uint16_t(port));
    size = sizeof six;
  } else {
    auto& four = reinterpret_cast<sockaddr_in&>(at);
    four.sin_family = AF_INET;
    four.sin_port = htons(uint16_t(port));
  }
  auto* address = reinterpret_cast<sockaddr*>(&at);
  if (::bind(socket.get(), address, size) != 0 || ::listen(socket.get(), SOMAXCONN) != 0) return Listener{Fd(), 0};
  if (::getsockname(socket.get(), address, &size) != 0) return Listener{Fd(), 0};
  const uint16_t bound =
      family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(at).sin6_port : reinterpret_cast<sockaddr_in&>(at).sin_port;
  return {std::move(socket), ntohs(bound)};
}

/// Connects to one address; an error of errno, or 0.
int connect_socket(const Fd& socket, const sockaddr* address, socklen_t size, Deadline deadline) {
  if (::connect(socket.get(), address, size) == 0) return 0;
  if (errno != EINPROGRESS && errno != EINTR) return errno;
  pollfd ready = {socket.get(), POLLOUT, 0};
  while (::poll(&ready, 1, left_ms(deadline)) <= 0)
    if (Clock::now() >= deadline) return ETIMEDOUT;
  int error = 0;
  socklen_t length = sizeof error;
  return ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length) == 0 ? error : errno;
}

bool may_pass(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

}  // namespace

int left_ms(Deadline deadline, int most) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return int(std::clamp<int64_t>(left, 0, most));
}

Listener listen_at(int port) {
  Listener listener = listen_by(AF_INET6, port);
  // A machine may be without IPv6.
  if (!listener.socket.is_open() && errno != EADDRINUSE && errno != EACCES) listener = listen_by(AF_INET, port);
  return listener;
}

Fd connect_once(const std::string& host, int port, Deadline deadline, std::string& problem) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int failed = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (failed) {
    problem = ::gai_strerror(failed);
    return Fd();
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(list, ::freeaddrinfo);
  for (const addrinfo* one = list; one; one = one->ai_next) {
    Fd socket = new_socket(one->ai_family);
    const int error = socket.is_open() ? connect_socket(socket, one->ai_addr, one->ai_addrlen, deadline) : errno;
    if (error == 0) {
      set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
      return socket;
    }
    problem = error_text(error);
  }
  return Fd();
}

Fd accept_one(const Fd& listener) {
  Fd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (socket.is_open()) set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  return socket;
}

std::string peer_address(const Fd& socket) {
  sockaddr_storage at = {};
  socklen_t size = sizeof at;
  if (::getpeername(socket.get(), reinterpret_cast<sockaddr*>(&at), &size) != 0) return "";
  return text_of(reinterpret_cast<sockaddr*>(&at));
}

bool is_loopback(const std::string& address) { return address.starts_with("127.") || address == "::1"; }

std::vector<std::string> own_addresses() {
  std::vector<std::string> addresses;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) == 0) {
    const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owned(list, ::freeifaddrs);
    for (const ifaddrs* one = list; one; one = one->ifa_next)
      if (one->ifa_addr && (one->ifa_flags & IFF_UP) &&
          (one->ifa_addr->sa_family == AF_INET || one->ifa_addr->sa_family == AF_INET6))
        addresses.push_back(text_of(one->ifa_addr));
  }
  // An address of one link alone has no meaning elsewhere.
  std::erase_if(addresses, [](const std::string& a) { return a.starts_with("fe80:"); });
  std::stable_partition(addresses.begin(), addresses.end(), [](const std::string& a) { return !is_loopback(a); });
  return addresses;
}

ssize_t send_some(const Fd& socket, const void* data, size_t bytes) {
  const ssize_t n = ::send(socket.get(), data, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
  return n >= 0 ? n : may_pass(errno) ? 0 : -1;
}

ssize_t read_some(const Fd& socket, void* data, size_t bytes) {
  const ssize_t n = ::recv(socket.get(), data, bytes, MSG_DONTWAIT);
  return n > 0 ? n : n < 0 && may_pass(errno) ? 0 : -1;
}

bool send_all(const Fd& socket, const void* data, size_t bytes, Deadline deadline) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t n = send_some(socket, static_cast<const char*>(data) + done, bytes - done);
    if (n < 0) return false;
    done += size_t(n);
    pollfd ready = {socket.get(), POLLOUT, 0};
    if (n == 0 && ::poll(&ready, 1, left_ms(deadline)) <= 0 && Clock::now() >= deadline) return false;
  }
  return true;
}

bool read_all(const Fd& socket, void* data, size_t bytes, Deadline deadline) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t n = read_some(socket, static_cast<char*>(data) + done, bytes - done);
    if (n < 0) return false;
    done += size_t(n);
    pollfd ready = {socket.get(), POLLIN, 0};
    if (n == 0 && ::poll(&ready, 1, left_ms(deadline)) <= 0 && Clock::now() >= deadline) return false;
  }
  return true;
}

bool is_closed(const Fd& socket) {
  char byte;
  const ssize_t n = ::recv(socket.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return n == 0 || (n < 0 && !may_pass(errno));
}

Reception::Reception(Listener listener, const char* magic, size_t frame_bytes, size_t most)
    : listener_(std::move(listener)), magic_(magic, 8), frame_bytes_(frame_bytes), most_(most) {}

void Reception::accept_callers() {
  for (Fd socket = accept_one(listener_.socket); socket.is_open(); socket = accept_one(listener_.socket)) {
    if (callers_.size() == most_) callers_.erase(callers_.begin());
    callers_.push_back({std::move(socket), {}, Clock::now() + kCallerTime});
  }
}

/// Reads what has come. True if the frame is complete or will never be: then `got` is empty.
bool Reception::is_frame_or_stranger(Caller& caller) {
  std::string& got = caller.got;
  const size_t had = got.size();
  got.resize(frame_bytes_);
  const ssize_t n = read_some(caller.socket, got.data() + had, frame_bytes_ - had);
  got.resize(had + size_t(std::max<ssize_t>(n, 0)));
  const size_t seen = std::min(got.size(), magic_.size());
  const bool stranger = n < 0 || got.compare(0, seen, magic_, 0, seen) != 0 || Clock::now() >= caller.until;
  if (got.size() < frame_bytes_ && !stranger) return false;
  if (stranger) got.clear();
  return true;
}

bool Reception::next(Fd& connection, void* frame, Deadline deadline) {
  for (;;) {
    for (size_t i = 0; i < callers_.size(); ++i) {
      if (!is_frame_or_stranger(callers_[i])) continue;
      Caller caller = std::move(callers_[i]);
      callers_.erase(callers_.begin() + ptrdiff_t(i--));
      if (caller.got.empty()) continue;
      caller.got.copy(static_cast<char*>(frame), frame_bytes_);
      connection = std::move(caller.socket);
      return true;
    }
    if (Clock::now() >= deadline) return false;
    std::vector<pollfd> ready = {{listener_.socket.get(), POLLIN, 0}};
    for (const Caller& caller : callers_) ready.push_back({caller.socket.get(), POLLIN, 0});
    // Where accept fails for want of descriptors, the port stays ready: do not spin.
    const size_t before = callers_.size();
    if (::poll(ready.data(), ready.size(), left_ms(deadline, 200)) <= 0) continue;
    if (ready[0].revents) accept_callers();
    if (ready[0].revents && callers_.size() == before) ::poll(nullptr, 0, 10);
  }
}

}  // namespace mmfree::tcp
