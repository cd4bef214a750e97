#include "core/ranks/watch.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/system/report.h"

namespace mmfree {

using std::chrono::milliseconds;
using std::chrono::seconds;
using tcp::Clock;

namespace {

constexpr auto kBetweenWords = seconds(1);
/// A loop of this thread takes less; if it did not, the process was stopped.
constexpr auto kStopped = seconds(5);
constexpr auto kVerdictTime = seconds(5), kOwnErrorTime = seconds(1), kCancelTime = seconds(3), kEndTime = seconds(10);
constexpr size_t kLongestText = 4096;
constexpr char kMagic[5] = "mmfw";
constexpr const char* kAdvice = "; run again, training with --resume";

}  // namespace

struct Watch::Frame {
  enum Kind : uint32_t { word, failed, verdict, left, all_left };
  char magic[4];
  Kind kind;
  int32_t rank, status;
  uint32_t length;     ///< of the text that follows
  uint32_t may_stand;  ///< of a word, as Pace
  uint64_t exchanges;

  static Frame of(Kind kind, int rank = 0, int status = 0) {
    return {{'m', 'm', 'f', 'w'}, kind, rank, status, 0, 0, 0};
  }
  bool valid(int size) const {
    return std::memcmp(magic, kMagic, 4) == 0 && kind <= all_left && rank >= 0 && rank < size && status >= 0 &&
           status < 256 && length <= kLongestText;
  }
};

struct Watch::Peer {
  int rank;
  Fd socket;
  tcp::Deadline heard;
  std::string got, unsent;
};

Watch::Watch(Meeting meeting)
    : meeting_(std::move(meeting)),
      limit_(rank_timeout()),
      wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      left_(size_t(meeting_.size())) {
  MMFREE_CHECK(IoError, wake_.is_open(), "ranks: eventfd: ", error_text(errno));
  for (auto& left : left_) left = -1;
  for (size_t i = 0; i < meeting_.spokes.size(); ++i)
    if (meeting_.spokes[i].is_open())
      peers_.push_back(std::make_unique<Peer>(Peer{int(i), std::move(meeting_.spokes[i]), Clock::now(), {}, {}}));
  meeting_.spokes.clear();
  if (meeting_.rank == 0) paces_.resize(size_t(meeting_.size()));
  ran_ = next_word_ = Clock::now();
  thread_ = std::thread([this] { run(); });
}

Watch::~Watch() {
  ending_ = true;
  wake();
  thread_.join();
  // A GPU's exchanges end when the recordings that hold them are destroyed, which they are by now. The process must not
  // end in the midst of it.
  if (cancelled_ && !wait_for_cancel(kEndTime)) ::_exit(status_);
}

void Watch::wake() const {
  const uint64_t one = 1;
  if (::write(wake_.get(), &one, sizeof one) < 0) return;  // it is awake already
}

/// What was waited for on a GPU ends when it is cancelled, which is before lost_: nobody may take that for success.
void Watch::check() const {
  if (!judged_) return;
  Lock lock(mutex_);
  changed_.wait(lock, [&] { return lost_.load(); });
  throw LostRank(Exit(status_.load()));
}

void Watch::set_cancel(std::function<void()> cancel) {
  const Lock lock(mutex_);
  cancel_ = std::move(cancel);
}

/// Puts a frame behind what is not sent yet. Words are left out where nothing moves. Needs the lock.
void Watch::tell(Peer& peer, const Frame& frame, const std::string& text) {
  if (!peer.socket.is_open() || (frame.kind == Frame::word && !peer.unsent.empty())) return;
  Frame head = frame;
  head.length = uint32_t(std::min(text.size(), kLongestText));
  peer.unsent.append(reinterpret_cast<const char*>(&head), sizeof head).append(text, 0, head.length);
  const ssize_t n = tcp::send_some(peer.socket, peer.unsent.data(), peer.unsent.size());
  if (n > 0) peer.unsent.erase(0, size_t(n));
}

void Watch::tell_all(const Frame& frame) {
  for (auto& peer : peers_) tell(*peer, frame);
}

/// The first verdict stands. Needs the lock.
void Watch::judge(Exit status, const std::string& message, Prints prints) {
  if (judged_) return;
  judged_ = true;
  status_ = int(status);
  verdict_ = concat(message, status == Exit::lost ? kAdvice : "");
  prints_ = prints;
  judged_at_ = Clock::now();
  changed_.notify_all();
  wake();
}

/// Needs the lock.
void Watch::lose(int rank, const std::string& how) {
  const std::vector<Member>& all = meeting_.members;
  const auto mine = [&](const Member& m) { return m.machine == all[size_t(meeting_.rank)].machine; };
  const bool first_here = std::find_if(all.begin(), all.end(), mine) - all.begin() == meeting_.rank;
  const bool prints = meeting_.rank <= 1 || first_here;
  judge(Exit::lost, meeting_.name_of(rank) + how, prints ? Prints::here : Prints::elsewhere);
}

void Watch::end_by_verdict(Lock& lock, const std::string& message, Exit status) {
  const auto judged = [&] { return lost_.load(); };
  if (meeting_.rank == 0)
    judge(status, message, Prints::here);
  else if (!judged_)
    tell(*peers_[0], Frame::of(Frame::failed, meeting_.rank, int(status)), message);
  if (!changed_.wait_for(lock, kVerdictTime, judged)) judge(status, message, Prints::here);
  changed_.wait(lock, judged);
  throw LostRank(Exit(status_.load()));
}

void Watch::accuse(const std::string& message) {
  Lock lock(mutex_);
  changed_.wait_for(lock, kVerdictTime, [&] { return lost_.load(); });
  end_by_verdict(lock, message, Exit::lost);
}

void Watch::miss(int rank) {
  Lock lock(mutex_);
  const int status = left(rank);
  const bool known = status != 0 && !left_message_.empty();
  const std::string message = known ? left_message_ : concat(meeting_.name_of(rank), " has ended before others");
  end_by_verdict(lock, message, status != 0 ? Exit(status) : Exit::internal);
}

bool Watch::fail(Exit status, const std::string& message) {
  Lock lock(mutex_);
  if (meeting_.rank == 0) {
    judge(status, message, Prints::here);
    // Another rank may have been faster with the same error.
    if (prints_ == Prints::here_unless_own_error && !printed_) verdict_ = message, prints_ = Prints::here;
    return changed_.wait_for(lock, kVerdictTime, [&] { return printed_; });
  }
  if (judged_) return true;
  tell(*peers_[0], Frame::of(Frame::failed, meeting_.rank, int(status)), message);
  if (changed_.wait_for(lock, kVerdictTime, [&] { return judged_.load(); })) return true;
  judge(status, "", Prints::elsewhere);
  return false;
}

bool Watch::leave(Exit status, const std::string& message) {
  Lock lock(mutex_);
  note_left(meeting_.rank, int(status), message);
  if (meeting_.rank != 0) tell(*peers_[0], Frame::of(Frame::left, meeting_.rank, int(status)), message);
  changed_.wait(lock, [&] { return all_left_ || judged_; });
  return !judged_;
}

/// Needs the lock.
void Watch::note_left(int rank, int status, const std::string& message) {
  left_[size_t(rank)] = status;
  if (left_message_.empty() && !message.empty()) left_message_ = concat(meeting_.name_of(rank), ": ", message);
  if (meeting_.rank != 0) return;
  tell_all(Frame::of(Frame::left, rank, status));
  if (std::any_of(left_.begin(), left_.end(), [](const auto& left) { return left < 0; })) return;
  tell_all(Frame::of(Frame::all_left));
  all_left_ = true;
  changed_.notify_all();
}

void Watch::take(Peer& peer, const Frame& frame, const std::string& text) {
  peer.heard = Clock::now();
  const bool from_rank_0 = meeting_.rank != 0;
  if (frame.kind == Frame::word && !from_rank_0) note_pace(peer.rank, frame);
  if (frame.kind == Frame::failed && !from_rank_0) {
    const std::string what = text.empty() ? concat(" failed with status ", frame.status) : ": " + text;
    const bool left_so = frame.status == int(Exit::stopped) && !left_message_.empty();
    judge(Exit(frame.status), left_so ? left_message_ : meeting_.name_of(peer.rank) + what,
          Prints::here_unless_own_error);
  } else if (frame.kind == Frame::verdict && from_rank_0) {
    judge(Exit(frame.status), "", Prints::elsewhere);
  } else if (frame.kind == Frame::left) {
    note_left(from_rank_0 ? frame.rank : peer.rank, frame.status, text);
  } else if (frame.kind == Frame::all_left && from_rank_0) {
    all_left_ = true;
    changed_.notify_all();
  }
}

/// Takes what has come from a peer. Needs the lock.
void Watch::read(Peer& peer) {
  char bytes[4096];
  ssize_t n = 0;
  while (peer.socket.is_open() && (n = tcp::read_some(peer.socket, bytes, sizeof bytes)) > 0) {
    peer.got.append(bytes, size_t(n));
    Frame frame;
    while (peer.got.size() >= sizeof frame) {
      std::memcpy(&frame, peer.got.data(), sizeof frame);
      if (!frame.valid(meeting_.size())) {
        peer.socket.close();
        return lose(peer.rank, " was lost: it sent what makes no sense");
      }
      if (peer.got.size() < sizeof frame + frame.length) break;
      take(peer, frame, peer.got.substr(sizeof frame, frame.length));
      peer.got.erase(0, sizeof frame + frame.length);
    }
  }
  if (n >= 0) return;
  peer.socket.close();
  if (!all_left_ && left_[size_t(peer.rank)] < 0) lose(peer.rank, " was lost: it ended without a word");
}

void Watch::wait_and_read() {
  std::vector<pollfd> ready = {{wake_.get(), POLLIN, 0}};
  {
    const Lock lock(mutex_);
    for (auto& peer : peers_)
      ready.push_back({peer->socket.get(), short(peer->unsent.empty() ? POLLIN : POLLIN | POLLOUT), 0});
  }
  ::poll(ready.data(), ready.size(), 200);
  uint64_t count = 0;
  if (ready[0].revents && ::read(wake_.get(), &count, sizeof count) < 0) return;
  const Lock lock(mutex_);
  for (size_t i = 0; i < peers_.size(); ++i) {
    Peer& peer = *peers_[i];
    if (ready[i + 1].revents & ~POLLOUT) read(peer);
    if (ready[i + 1].revents & POLLOUT && peer.socket.is_open()) {
      const ssize_t n = tcp::send_some(peer.socket, peer.unsent.data(), peer.unsent.size());
      if (n > 0) peer.unsent.erase(0, size_t(n));
    }
  }
}

void Watch::keep_time() {
  const Lock lock(mutex_);
  const auto now = Clock::now();
  if (now - std::exchange(ran_, now) > kStopped) {
    for (auto& peer : peers_) peer->heard = now;
    for (Pace& pace : paces_) pace.since = now;
  }
  if (now >= next_word_) {
    const Frame mine = word();
    tell_all(mine);
    next_word_ = now + kBetweenWords;
    if (!paces_.empty()) note_pace(0, mine), judge_pace();
  }
  for (const auto& peer : peers_)
    if (now - peer->heard > limit_ && left_[size_t(peer->rank)] < 0 && !all_left_)
      lose(peer->rank, concat(" was lost: it has not answered for ", limit_.count(), " s"));
}

Watch::Frame Watch::word() const {
  Frame word = Frame::of(Frame::word, meeting_.rank);
  word.may_stand = may_stand_;
  word.exchanges = exchanges_;
  return word;
}

/// Needs the lock.
void Watch::note_pace(int rank, const Frame& word) {
  Pace& pace = paces_[size_t(rank)];
  const bool stands = word.exchanges == pace.exchanges && word.may_stand > 0 && pace.may_stand > 0;
  pace = {word.exchanges, word.may_stand, stands ? pace.since : Clock::now()};
}

/// Needs the lock.
void Watch::judge_pace() {
  if (std::any_of(left_.begin(), left_.end(), [](const auto& left) { return left >= 0; })) return;
  const auto fewer = [](const Pace& a, const Pace& b) { return a.exchanges < b.exchanges; };
  const Pace& last = *std::min_element(paces_.begin(), paces_.end(), fewer);
  const auto now = Clock::now();
  const auto behind = [&](const Pace& pace) { return pace.exchanges == last.exchanges; };
  const auto stands = [&](const Pace& pace) {
    return pace.may_stand > 0 && now - pace.since > seconds(pace.may_stand);
  };
  if (!std::all_of(paces_.begin(), paces_.end(), [&](const Pace& p) { return !behind(p) || stands(p); })) return;
  const auto time = std::chrono::duration_cast<seconds>(now - last.since).count();
  if (std::all_of(paces_.begin(), paces_.end(), behind))
    return judge(Exit::lost, concat("all ranks have stood in a step for ", time, " s: a GPU or the network hangs"),
                 Prints::here);
  lose(int(&last - paces_.data()), concat(" was lost: it has stood in a step for ", time, " s and others wait for it"));
}

/// What is waited for on a GPU may wait in vain: a call that cancels it is not trusted to return either.
void Watch::cancel_waits() {
  std::function<void()> cancel;
  {
    const Lock lock(mutex_);
    cancel = std::exchange(cancel_, nullptr);
  }
  if (!cancel) return;
  cancelled_ = std::make_shared<std::atomic<bool>>(false);
  std::thread([cancel = std::move(cancel), done = cancelled_]() mutable {
    cancel();
    cancel = nullptr;
    *done = true;
  }).detach();
  wait_for_cancel(kCancelTime);
}

bool Watch::wait_for_cancel(seconds most) const {
  for (const auto end = Clock::now() + most; !*cancelled_ && Clock::now() < end;)
    std::this_thread::sleep_for(milliseconds(5));
  return *cancelled_;
}

/// Prints the verdict when it is time, then tells the others of it: what starts the ranks may end all when the first
/// one ends.
void Watch::print_verdict() {
  std::string line;
  {
    const Lock lock(mutex_);
    if (told_) return;
    const bool own_error_may_come = prints_ == Prints::here_unless_own_error && !ending_;
    if (own_error_may_come && Clock::now() - judged_at_ < kOwnErrorTime) return;
    if (prints_ != Prints::elsewhere) line = verdict_;
    told_ = true;
  }
  if (!line.empty()) print_message(line, Exit(status_.load()));
  const Lock lock(mutex_);
  printed_ = true;
  if (meeting_.rank == 0) tell_all(Frame::of(Frame::verdict, 0, status_));
  changed_.notify_all();
}

/// Prints the verdict, lets this process know, and ends it if it does not end by itself.
void Watch::act_on_verdict() {
  {
    const Lock lock(mutex_);
    if (!judged_) return;
  }
  print_verdict();
  if (!lost_) {
    cancel_waits();
    const Lock lock(mutex_);
    lost_ = true;
    changed_.notify_all();
  }
  if (!ending_ && Clock::now() - judged_at_ > kEndTime) ::_exit(status_);
}

void Watch::run() {
  while (!ending_) {
    wait_and_read();
    keep_time();
    act_on_verdict();
  }
  // Goodbyes and verdicts that are not sent yet.
  for (const auto end = Clock::now() + seconds(2); Clock::now() < end;) {
    act_on_verdict();
    {
      const Lock lock(mutex_);
      if (std::all_of(peers_.begin(), peers_.end(), [](auto& p) { return p->unsent.empty() || !p->socket.is_open(); }))
        break;
    }
    wait_and_read();
  }
}

}  // namespace mmfree
