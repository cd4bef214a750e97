#include "core/ranks/group.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>

#include "core/gpu.h"
#include "core/ranks/group_state.h"
#include "core/system/report.h"

namespace mmfree {
namespace {

using tcp::Clock;

constexpr size_t kLongestText = size_t(1) << 20;

}  // namespace

Bounds even_bounds(int64_t count, int size) {
  Bounds bounds;
  for (int64_t r = 0; r <= size; ++r) bounds.push_back(count / size * r + std::min(r, count % size));
  return bounds;
}

Ranges ranges_of(const Bounds& bounds) {
  Ranges ranges;
  for (size_t r = 0; r + 1 < bounds.size(); ++r) ranges.push_back({bounds[r], bounds[r + 1]});
  return ranges;
}

int64_t largest(const Bounds& bounds) {
  int64_t most = 0;
  for (const Range& piece : ranges_of(bounds)) most = std::max(most, piece.size());
  return most;
}

void Group::State::leave(Exit status, const std::string& message) {
  if (std::exchange(left, true)) return;
  // Before the others end: what started them may then end this process too.
  if (rank == 0 && !message.empty()) print_message(message, status);
  // Links that end must have nothing under way that another GPU waits for.
  if (links) gpu::synchronize();
  // Nobody reads the others' memory any more when all have left, and each frees its own.
  if (peers && status == Exit::ok) {
    watch->set_cancel([links = links] { links->cancel(); });
    peers.reset();
  }
  all_left = watch->leave(status, message);
}

void Group::State::refuse(const std::string& problem) {
  leave(Exit::bad_config, problem);
  throw ConfigError("");
}

void Group::State::check(bool idle, const std::vector<Outgoing>& out, const std::vector<Incoming>& in) {
  watch->check();
  if (!idle) return;
  const auto see = [&](int peer) {
    if (watch->left(peer) >= 0) watch->miss(peer);
  };
  for (const Outgoing& piece : out) see(piece.to);
  for (const Incoming& piece : in) see(piece.from);
}

void Group::State::exchange(Transport::Channel channel, const std::vector<Outgoing>& out,
                            const std::vector<Incoming>& in) {
  const auto begin = Clock::now();
  if (channel == Transport::collective) watch->count_exchange();
  try {
    transport->exchange(channel, out, in, [&](bool idle) { check(idle, out, in); });
  } catch (const BrokenLink& broken) {
    const std::string peer = broken.peer < 0 ? "other ranks" : watch->meeting().name_of(broken.peer);
    if (broken.ended) watch->accuse(concat("lost the way to ", peer, ": ", broken.what()));
    throw Error(concat("ranks: ", peer, ": ", broken.what(), "; the ranks do not do the same"));
  }
  for (const Outgoing& piece : out) bytes += piece.bytes;
  waited_ns += std::chrono::nanoseconds(Clock::now() - begin).count();
}

Group::State::Pieces Group::State::pieces(const void* from, const std::vector<Part>& out, void* to,
                                          const std::vector<Part>& in) const {
  Pieces p;
  for (int r = 0; r < size; ++r) {
    if (r == rank) continue;
    const Part &send = out[size_t(r)], &take = in[size_t(r)];
    if (send.bytes > 0) p.out.push_back({r, static_cast<const char*>(from) + send.at, send.bytes});
    if (take.bytes > 0) p.in.push_back({r, static_cast<char*>(to) + take.at, take.bytes});
  }
  return p;
}

Group::Group(std::unique_ptr<State> state) : state_(std::move(state)) {}

std::unique_ptr<Group> Group::alone() { return pretended(1); }

std::unique_ptr<Group> Group::pretended(int size) {
  auto state = std::make_unique<State>();
  state->size = state->local_size = size;
  return std::unique_ptr<Group>(new Group(std::move(state)));
}

Group::~Group() {
  State& s = *state_;
  if (!s.has_others()) return;
  if (!s.left && s.transport && std::uncaught_exceptions() == 0) {
    try {
      s.watch->check();
      s.leave(Exit::ok);
    } catch (const Error&) {  // lost, or a GPU that failed: others notice
    }
  }
  s.watch->set_cancel(nullptr);
  if (s.peers) s.peers->cancel();
  if (s.all_left && s.transport) s.transport->finish();
}

int Group::rank() const { return state_->rank; }
int Group::size() const { return state_->size; }
int Group::local_rank() const { return state_->local_rank; }
int Group::local_size() const { return state_->local_size; }
int Group::threads() const { return state_->threads; }

std::string Group::describe() const {
  if (!state_->has_others()) return "";
  return concat(state_->size, " ranks on ", state_->machines, state_->machines == 1 ? " machine" : " machines", ", by ",
                name_of(state_->launch.launcher), " over ", state_->transport->name());
}

Group::InTime::InTime(Group& group, double usual) : group_(group) {
  if (usual <= 0 || !group.state_->has_others()) return;
  const auto most = std::chrono::seconds(int64_t(std::min(10 * usual, 1e6)));
  group.state_->watch->may_stand(std::max(rank_timeout(), most));
}

Group::InTime::~InTime() {
  if (group_.state_->has_others()) group_.state_->watch->may_stand(std::chrono::seconds(0));
}

Group::Traffic Group::traffic() const {
  return {state_->bytes + state_->gpu_bytes, state_->gpu_bytes, std::chrono::nanoseconds(state_->waited_ns.load())};
}

void Group::run(const std::function<void()>& body) {
  State& s = *state_;
  if (!s.has_others()) return body();
  try {
    body();
  } catch (const LostRank&) {
    throw;
  } catch (const Error& e) {
    if (s.left) throw;
    if (e.status() == Exit::stopped)
      s.leave(e.status(), e.what());
    else if (!s.watch->fail(e.status(), e.what()))
      throw;
    throw Error("", e.status());
  } catch (const std::exception& e) {
    if (!s.watch->fail(Exit::internal, concat("internal error: ", e.what()))) throw;
    throw Error("");
  }
}

void Group::all_gather(const void* mine, size_t bytes, void* all) {
  State& s = *state_;
  char* to = static_cast<char*>(all);
  for (int r = 0; r < s.size; ++r)
    if (bytes > 0 && (r == s.rank || !s.has_others())) std::memmove(to + size_t(r) * bytes, mine, bytes);
  if (!s.has_others()) return;
  std::vector<State::Part> out(size_t(s.size), {0, bytes}), in;
  for (int r = 0; r < s.size; ++r) in.push_back({size_t(r) * bytes, bytes});
  s.exchange_parts(to + size_t(s.rank) * bytes, out, to, in);
}

void Group::broadcast(void* data, size_t bytes, int root) {
  State& s = *state_;
  MMFREE_CHECK(Error, root >= 0 && root < s.size, "ranks: broadcast from rank ", root, " of ", s.size);
  if (!s.has_others()) return;
  const size_t n = size_t(s.size);
  std::vector<State::Part> out(n, {0, s.rank == root ? bytes : 0}), in(n, {0, 0});
  in[size_t(root)] = {0, bytes};
  s.exchange_parts(data, out, data, in);
}

void Group::all_to_all(const void* from, void* to, size_t bytes) {
  State& s = *state_;
  for (int r = 0; r < s.size; ++r) {
    const size_t at = size_t(r) * bytes;
    if (bytes > 0 && (r == s.rank || !s.has_others()))
      std::memcpy(static_cast<char*>(to) + at, static_cast<const char*>(from) + at, bytes);
  }
  if (!s.has_others()) return;
  std::vector<State::Part> parts;
  for (int r = 0; r < s.size; ++r) parts.push_back({size_t(r) * bytes, bytes});
  s.exchange_parts(from, parts, to, parts);
}

void Group::barrier() {
  std::vector<char> all(static_cast<size_t>(state_->size));
  const char mine = 0;
  all_gather(&mine, 1, all.data());
}

std::vector<std::string> Group::gather_texts(const std::string& mine) {
  State& s = *state_;
  MMFREE_CHECK(Error, mine.size() <= kLongestText, "ranks: a text of ", mine.size(), " bytes; at most 1 MiB is sent");
  std::vector<uint64_t> sizes(size_t(s.size));
  const uint64_t own = mine.size();
  all_gather(&own, sizeof own, sizes.data());
  std::vector<State::Part> out(size_t(s.size), {0, mine.size()}), in;
  size_t total = 0;
  for (const uint64_t n : sizes) {
    MMFREE_CHECK(Error, n <= kLongestText, "ranks: another rank sends a text of ", n, " bytes; at most 1 MiB is sent");
    in.push_back({total, n});
    total += n;
  }
  std::string bytes(total, 0);
  if (s.has_others()) s.exchange_parts(mine.data(), out, bytes.data(), in);
  std::vector<std::string> texts;
  for (int r = 0; r < s.size; ++r)
    texts.push_back(r == s.rank || !s.has_others() ? mine : bytes.substr(in[size_t(r)].at, in[size_t(r)].bytes));
  return texts;
}

void Group::send(int to, const void* data, size_t bytes) {
  MMFREE_CHECK(Error, to >= 0 && to < size() && to != rank(), "ranks: rank ", rank(), " of ", size(), " sends to ", to);
  if (state_->has_others()) state_->exchange(Transport::beside, {{to, data, bytes}}, {});
}

void Group::receive(int from, void* data, size_t bytes) {
  MMFREE_CHECK(Error, from >= 0 && from < size() && from != rank(), "ranks: rank ", rank(), " of ", size(),
               " receives from ", from);
  if (state_->has_others()) state_->exchange(Transport::beside, {}, {{from, data, bytes}});
}

void Group::require(const std::string& problem) {
  State& s = *state_;
  const std::vector<std::string> problems = gather_texts(problem);
  const auto first = std::find_if(problems.begin(), problems.end(), [](const std::string& p) { return !p.empty(); });
  if (first == problems.end()) return;
  if (!s.has_others()) throw ConfigError(*first);
  const bool everywhere = std::count(problems.begin(), problems.end(), *first) == s.size;
  s.refuse(everywhere ? *first : concat(s.watch->meeting().name_of(int(first - problems.begin())), ": ", *first));
}

void Group::require_same(const std::string& what, const std::string& mine) {
  State& s = *state_;
  if (!s.has_others()) return;
  const std::vector<std::string> all = gather_texts(mine);
  const auto other = std::find_if(all.begin(), all.end(), [&](const std::string& text) { return text != all[0]; });
  if (other == all.end()) return;
  const size_t at =
      size_t(std::mismatch(all[0].begin(), all[0].end(), other->begin(), other->end()).first - all[0].begin());
  const auto part = [&](const std::string& text) { return quote(text.substr(std::min(at, text.size()), 60)); };
  const Meeting& meeting = s.watch->meeting();
  s.refuse(concat("ranks have different ", what, ": ", meeting.name_of(0), " has ", part(all[0]), ", ",
                  meeting.name_of(int(other - all.begin())), " has ", part(*other),
                  "; all must be started with the same"));
}

}  // namespace mmfree
